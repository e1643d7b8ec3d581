"""A comparison in the terminal."""

import sys
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as Drawn
from rich.text import Text

from clplat.report.comparison import Comparison
from clplat.report.configurations import by_scenario
from clplat.report.matrices import matrices_of
from clplat.report.quantities import thousandths
from clplat.report.statistics import summary
from clplat.report.table import NONE, Table

KEPT = ("name", "runs", "interval", "difference", "p", "pairs")  # in a narrow terminal too


def console() -> Console:
    """Elsewhere than in a terminal a table takes the width that it needs."""
    return Console(width=None if sys.stdout.isatty() else 1000, highlight=False)


def show_tables(comparison: Comparison) -> None:
    screen = console()
    for table in comparison.tables:
        _print_table(screen, table, comparison.question.metric)


def _print_table(console: Console, table: Table, metric: str) -> None:
    """As many columns as the console is wide; what was left out for that is said."""
    keys, left_out = [column.key for column in table.columns], []
    while (drawn := _drawn(table, keys)) and _width(console, drawn) > console.width:
        spare = [key for key in keys if key not in (*KEPT, metric)]
        if not spare:
            break
        keys.remove(spare[-1])
        left_out += [c.label for c in table.columns if c.key == spare[-1]]
    console.print(Text(table.scenario, style="bold"), soft_wrap=True)
    console.print(drawn)
    for note in table.notes:
        console.print(Text(note, style="dim"), soft_wrap=True)
    if left_out:
        wide = f"the terminal is too narrow for: {', '.join(reversed(left_out))}"
        console.print(Text(wide, style="dim"), soft_wrap=True)


def _width(console: Console, drawn: Drawn) -> int:
    return Measurement.get(console, console.options.update(max_width=100_000), drawn).maximum


def _drawn(table: Table, keys: Sequence[str]) -> Drawn:
    drawn = Drawn(box=box.HEAVY_HEAD)
    shown = [k for k, column in enumerate(table.columns) if column.key in keys]
    for k in shown:
        column = table.columns[k]
        if column.key == "name":
            drawn.add_column(column.label, overflow="fold")
        else:
            drawn.add_column(column.label, justify="right", no_wrap=True)
    for row in table.rows:
        cells = [row[k] for k in shown]
        drawn.add_row(*(Text(c.text, style="bold" if c.best else "") for c in cells))
    return drawn


def show_experiences(comparison: Comparison) -> None:
    """The last row of the accuracy matrix, mean and standard deviation over the runs."""
    screen = console()
    for scenario, members in by_scenario(comparison.configurations).items():
        finals = {c.name: [m[-2] for m in found] for c in members if (found := matrices_of(c))}
        if not finals:
            continue
        drawn = Drawn(box=box.HEAVY_HEAD)
        drawn.add_column("strategy", overflow="fold")
        for j in range(max(len(rows[0]) for rows in finals.values())):
            drawn.add_column(str(j), justify="right", no_wrap=True)
        for name, rows in finals.items():
            drawn.add_row(Text(name), *(_score(column) for column in np.stack(rows).T.tolist()))
        title = f"{scenario}: score on each experience after the last one"
        screen.print(Text(title, style="bold"), soft_wrap=True)
        screen.print(drawn)


def _score(values: Sequence[float]) -> str:
    s = summary(values)
    if s is None:
        return NONE
    spread = "" if s.deviation is None else f" ± {thousandths(s.deviation)}"
    return thousandths(s.mean) + spread
