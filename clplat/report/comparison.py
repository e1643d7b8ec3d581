"""Finished runs compared: what all forms of the report are made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clplat.report.configurations import Configuration, by_configuration, distinct
from clplat.report.find import find_runs
from clplat.report.quantities import check_metric
from clplat.report.statistics import Test
from clplat.report.table import Question, Table, tables, tested


@dataclass(frozen=True)
class Comparison:
    """`notes` say what was left out, and why."""

    question: Question
    configurations: list[Configuration]
    tests: dict[Configuration, Test]
    tables: list[Table]
    notes: list[str]


def compare(folders: Sequence[Path], question: Question) -> Comparison | None:
    """The finished runs below some folders; None where there are none. InputError for bad input."""
    found = find_runs(folders)
    runs, notes = distinct(found.runs), list(found.notes)
    if not runs:
        return None
    if repeated := len(found.runs) - len(runs):
        notes.append(f"counted once: {repeated} runs repeat the config and seeds of others")
    check_metric(question.metric, runs)
    configurations = by_configuration(runs, question.metric)
    tests = tested(configurations, question)
    written = tables(configurations, question, tests)
    return Comparison(question, configurations, tests, written, notes)
