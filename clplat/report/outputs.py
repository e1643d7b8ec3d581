"""Everything that a comparison leaves in a folder: tables, figures and the page."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clplat.directory import write_atomically
from clplat.report.comparison import Comparison
from clplat.report.configurations import Configuration, by_scenario
from clplat.report.costs import forgetting_figure
from clplat.report.diagram import ranks_figure
from clplat.report.figures import (
    MOST,
    accuracy_curves,
    anytime_curves,
    curves_figure,
    matrices_figure,
    of_those,
    score_of,
)
from clplat.report.formats import comma_separated, latex, markdown
from clplat.report.matrices import matrices_of
from clplat.report.page import Picture, as_svg, page
from clplat.report.quantities import QUANTITIES
from clplat.report.ranks import Ranks, rank, ranks_told
from clplat.report.table import listed


def figures_of(
    scenario: str, configurations: Sequence[Configuration]
) -> Iterator[tuple[str, str, Figure]]:
    """Name, caption and figure of all that one scenario's runs allow."""
    some, score = configurations[:MOST], score_of(configurations)
    these = of_those(len(some), len(configurations))
    if curves := accuracy_curves(some):
        caption = f"{score} over the experiences so far{these}: mean and one standard deviation"
        yield "accuracy", caption, curves_figure(curves, scenario + these, score)
    if anytime := anytime_curves(some):
        caption = f"{score} against samples seen{these}: mean and one standard deviation"
        yield "anytime", caption, curves_figure(anytime, scenario + these, score, samples=True)
    if whole := {c.name: np.mean(found, axis=0) for c in some if (found := matrices_of(c))}:
        these = of_those(len(whole), len(configurations))
        caption = f"{score} on each experience after each, mean over seeds{these}"
        if without := [c.name for c in some if c.name not in whole]:
            caption += f"; without a whole matrix: {listed(without)}"
        yield "accuracy_matrix", caption, matrices_figure(whole, scenario + these, score)
    these = of_those(len(some), len(configurations))
    if figure := forgetting_figure(some, scenario + these):
        caption = (
            f"forgetting against what it costs{these}: mean and one standard deviation; lower and "
            "further left is better, the dotted line is the Pareto front"
        )
        yield "forgetting", caption, figure


def file_names(scenarios: Iterable[str]) -> dict[str, str]:
    """How the files of each scenario begin: by what any system takes, and none like another's."""
    names: dict[str, str] = {}
    for scenario in scenarios:
        name = re.sub(r"[^\w.,+=-]", "_", scenario)[:50]  # of up to four bytes each
        while name in names.values():
            name += "_"
        names[scenario] = name
    return names


@dataclass(frozen=True)
class Outputs:
    """What was written: the page, the tables beside it, and figures by their stems; `ranks` tells
    of the critical-difference diagram.
    """

    page: Path
    tables: list[str]
    figures: list[str]
    ranks: str


def write_outputs(comparison: Comparison, folder: Path) -> Outputs:
    """Write all forms to a folder, which is made if it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, list[Picture]] = {}
    drawn: list[str] = []

    def draw(scenario: str, stem: str, caption: str, figure: Figure) -> None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once for the three that follow
        figure.savefig(folder / f"{stem}.png")
        figure.savefig(folder / f"{stem}.pdf", metadata={"CreationDate": None})
        drawn.append(stem)
        pictures.setdefault(scenario, []).append(as_svg(figure, stem, caption))
        figure.clear()

    scenarios = by_scenario(comparison.configurations)
    files = file_names(scenarios)
    for scenario, members in scenarios.items():
        of_it = f"{files[scenario]}_" if len(scenarios) > 1 else ""
        for name, caption, figure in figures_of(scenario, members):
            draw(scenario, of_it + name, caption, figure)
    metric = comparison.question.metric
    ranks = rank(comparison.configurations, metric)
    told = ranks_told(ranks, metric)
    if isinstance(ranks, Ranks):
        title = f"mean rank by {QUANTITIES[metric].label}, 1 the best"
        draw("", "critical_difference", told, ranks_figure(ranks, title))
    texts = {
        "report.html": page(comparison, pictures, told),
        "table.md": markdown(comparison.tables),
        "table.csv": comma_separated(comparison.configurations, comparison.tests),
        "table.tex": latex(comparison.tables),
    }
    for name, text in texts.items():
        write_atomically(folder / name, text.encode(), durable=False)
    page_file, *tables = texts
    return Outputs(folder / page_file, tables, drawn, told)
