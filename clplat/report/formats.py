"""Tables as text: Markdown, LaTeX and CSV."""

import csv
import io
import re
from collections.abc import Iterable, Sequence

from clplat.report.configurations import Configuration
from clplat.report.quantities import known
from clplat.report.statistics import Test, summary
from clplat.report.table import Cell, Table

LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    **{c: f"\\{c}" for c in "&%$#_{}"},
}


def markdown(tables: Sequence[Table]) -> str:
    """Tables of Markdown, each under the name of its scenario."""

    def escaped(text: str) -> str:
        # Underscores inside words and brackets without an address are themselves.
        return re.sub(r"[\\`*<|]|(?<!\w)_|_(?!\w)|\](?=[(\[])", r"\\\g<0>", text)

    def written(cell: Cell) -> str:
        return f"**{escaped(cell.text)}**" if cell.best else escaped(cell.text)

    parts = []
    for table in tables:
        lines = [f"### {escaped(table.scenario)}", ""]
        lines.append(_row(escaped(column.label) for column in table.columns))
        lines.append(_row(["---", *["---:"] * (len(table.columns) - 1)]))
        lines += [_row(map(written, row)) for row in table.rows]
        lines += ["", *(f"- {escaped(note)}" for note in table.notes)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def latex(tables: Sequence[Table]) -> str:
    """A tabular for each scenario, with the rules of booktabs."""
    parts = []
    for table in tables:
        lines = [rf"% {_one_line(table.scenario)}; \usepackage{{booktabs}}"]
        lines += [f"% {_one_line(note)}" for note in table.notes]
        lines.append(rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}")
        lines.append(r"\toprule")
        lines.append(" & ".join(_latex(column.label) for column in table.columns) + r" \\")
        lines.append(r"\midrule")
        for row in table.rows:
            cells = [rf"\textbf{{{_latex(c.text)}}}" if c.best else _latex(c.text) for c in row]
            lines.append(" & ".join(cells) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _latex(text: str) -> str:
    """Special characters escaped; a minus before a number is one, not a hyphen."""
    minus = re.sub(r"(?<![\w.])-(?=\d)", "\0", text)
    escaped = "".join(LATEX.get(c, c) for c in minus).replace("\0", "$-$")
    return f"{{{escaped}}}" if escaped.startswith("[") else escaped  # \\[ would be a length


def comma_separated(
    configurations: Sequence[Configuration], tests: dict[Configuration, Test]
) -> str:
    """One row a configuration, every known quantity in full precision."""
    keys = known(run for c in configurations for run in c.runs)
    parts = ("mean", "std", "interval", "n")
    header = ["scenario", "configuration", "digest", "runs"]
    header += [f"{key}_{part}" for key in keys for part in parts]
    if tests:
        header += ["difference", "p", "p_holm", "pairs"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    for c in configurations:
        row: list[object] = [c.scenario, c.name, c.digest, len(c.runs)]
        for key in keys:
            s = summary(c.values(key))
            row += [s.mean, s.deviation, s.half, s.n] if s else [None, None, None, 0]
        if tests:
            t = tests.get(c)
            row += [t.difference, t.p, t.corrected, t.pairs] if t else [None] * 4
        writer.writerow(row)
    return text.getvalue()
