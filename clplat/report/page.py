"""One page with everything, which needs no network and follows the reader's light or dark."""

import base64
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

import matplotlib
from matplotlib.figure import Figure

from clplat.figures import COLOURS
from clplat.report.comparison import Comparison
from clplat.report.quantities import QUANTITIES
from clplat.report.table import Cell, Table

NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
POINTS = 72  # to the inch in SVG; a browser's inch has 96 pixels


@dataclass(frozen=True)
class Picture:
    """An SVG whose colours are the page's."""

    svg: str
    caption: str


def as_svg(figure: Figure, name: str, caption: str) -> Picture:
    """A figure to be put into the page: black is its ink, our colours its own forms of them."""
    data = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name}):  # or its ids were new in each report
        figure.savefig(data, format="svg", transparent=True, metadata=NO_METADATA)
    text = data.getvalue()
    text = re.sub(
        r"<!--.*?-->|<metadata>.*?</metadata>| xmlns(:\w+)?=\"[^\"]*\"", "", text, flags=re.S
    )
    text = text[text.index("<svg") :]
    for k, colour in enumerate(COLOURS):
        ink = "currentColor" if colour == "#000000" else f"var(--c{k})"
        text = re.sub(rf"(?<=: ){colour}\b", ink, text, flags=re.IGNORECASE)
    width = figure.get_size_inches()[0] * 96
    head = f'<svg role="img" aria-label="{escape(caption)}" style="max-width: {width:.0f}px"'
    text = re.sub(r'^<svg width="[^"]*" height="[^"]*"', lambda _: head, text)
    return Picture(text, caption)


def page(comparison: Comparison, pictures: Mapping[str, Sequence[Picture]], told: str) -> str:
    """The page. All that comes from runs is escaped, and no script but its own may run."""
    own = files("clplat.report")
    style, script = ((own / f"page.{ending}").read_text() for ending in ("css", "js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
    )
    runs = sum(len(c.runs) for c in comparison.configurations)
    scenarios = ", ".join(table.scenario for table in comparison.tables)
    counts = f"{runs} runs of {len(comparison.configurations)} configurations"
    body = [f"<h1>{escape(scenarios)}</h1>", f"<p>{counts}</p>"]
    body += [f'<p class="note">{escape(note)}</p>' for note in comparison.notes]
    for table in comparison.tables:
        if len(comparison.tables) > 1:
            body.append(f"<h2>{escape(table.scenario)}</h2>")
        body.append(_table(table))
        body += [_picture(picture) for picture in pictures.get(table.scenario, ())]
    ranked = pictures.get("", ())
    body.append("<h2>Ranks</h2>")
    body += [_picture(picture) for picture in ranked] or [f"<p>{escape(told)}</p>"]
    body.append(_runs(comparison))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(scenarios)}: {counts}</title>\n<style>\n{style}</style>\n</head>\n"
        f"<body>\n{chr(10).join(body)}\n<script>{script}</script>\n</body>\n</html>\n"
    )


def _picture(picture: Picture) -> str:
    return f"<figure>{picture.svg}<figcaption>{escape(picture.caption)}</figcaption></figure>"


def _table(table: Table) -> str:
    """Every interval is below its mean, so the column of one of them is left out."""
    shown = [k for k, column in enumerate(table.columns) if column.key != "interval"]
    heads = [_head(table.columns[k].label) for k in shown]
    rows = [[_cell(row[k]) for k in shown] for row in table.rows]
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    return f'{_grid(heads, rows)}<ul class="note">{notes}</ul>'


def _head(label: str) -> str:
    return f'<th scope="col"><button type="button">{escape(label)}</button></th>'


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    head = "".join(heads)
    return (
        f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table>'
        "</div>"
    )


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    text = f"<b>{escape(cell.text)}</b>" if cell.best else escape(cell.text)
    interval = f"<small>{escape(cell.interval)}</small>" if cell.interval else ""
    return f"<td{value}>{text}{interval}</td>"


def _runs(comparison: Comparison) -> str:
    """Every run, so that no mean hides what it is made of."""
    metric = comparison.question.metric
    quantity = QUANTITIES[metric]
    rows = []
    for c in comparison.configurations:
        for run in c.runs:
            seeds = dict(run.seeds or ())
            value = run.value(metric)
            text = "-" if value is None else quantity.written(value)
            cells = [Cell(c.scenario), Cell(c.name), Cell(_seed(seeds)), Cell(text, value)]
            rows.append([_cell(cell) for cell in (*cells, Cell(str(run.out)))])
    heads = [_head(label) for label in ("scenario", "strategy", "seed", quantity.label, "folder")]
    return f"<details><summary>All {len(rows)} runs</summary>{_grid(heads, rows)}</details>"


def _seed(seeds: Mapping[str, int]) -> str:
    """The seed, and those that are set apart from it."""
    own = seeds.get("seed")
    apart = [f"{key}={value}" for key, value in seeds.items() if key != "seed" and value != own]
    return " ".join([*([] if own is None else [str(own)]), *apart]) or "-"
