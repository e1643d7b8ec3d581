"""What the tables say, whatever they are written in."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from clplat.errors import InputError
from clplat.report.configurations import Configuration, by_scenario
from clplat.report.quantities import QUANTITIES, Quantity, known
from clplat.report.statistics import Summary, Test, critical_t, holm, paired_test, summary

NONE = "-"


@dataclass(frozen=True)
class Cell:
    """`value` is what the column is sorted by; `interval` the 95 % interval of the mean."""

    text: str
    value: float | None = None
    best: bool = False
    interval: str = ""


@dataclass(frozen=True)
class Column:
    """A quantity by its key, or something else with a key of its own."""

    key: str
    label: str


@dataclass(frozen=True)
class Table:
    """The configurations of one scenario, the best first; `notes` say how to read it."""

    scenario: str
    columns: list[Column]
    rows: list[list[Cell]]
    notes: list[str]


@dataclass(frozen=True)
class Question:
    """What is ranked and tested: a metric, and against which baseline if any."""

    metric: str = "accuracy"
    baseline: str | None = None


def tested(
    configurations: Sequence[Configuration], question: Question
) -> dict[Configuration, Test]:
    """Each configuration but the baseline against the baseline of its scenario."""
    baseline, names = question.baseline, dict.fromkeys(c.name for c in configurations)
    if baseline is None:
        return {}
    if baseline not in names:
        raise InputError(f"--baseline {baseline}: no such configuration; one of {'; '.join(names)}")
    theirs = {c.scenario: c.by_seeds(question.metric) for c in configurations if c.name == baseline}
    found: dict[Configuration, Test] = {}
    for c in configurations:
        if c.name == baseline:
            continue
        if c.scenario in theirs:
            found[c] = paired_test(c.by_seeds(question.metric), theirs[c.scenario])
        else:
            found[c] = Test(0, reason=f"there is no {baseline} of {c.scenario}")
    have = [c for c, test in found.items() if test.p is not None]
    for c, corrected in zip(have, holm([found[c].p or 0.0 for c in have]), strict=True):
        found[c] = Test(found[c].pairs, found[c].difference, found[c].p, corrected)
    return found


def tables(
    configurations: Sequence[Configuration], question: Question, tests: dict[Configuration, Test]
) -> list[Table]:
    """One for each scenario."""
    return [
        _table(scenario, members, question, tests)
        for scenario, members in by_scenario(configurations).items()
    ]


def _table(
    scenario: str,
    configurations: Sequence[Configuration],
    question: Question,
    tests: dict[Configuration, Test],
) -> Table:
    runs = [run for c in configurations for run in c.runs]
    keys = [k for k in known(runs) if QUANTITIES[k].shown or k == question.metric]
    columns, cells = [Column("name", "strategy"), Column("runs", "runs")], []
    for key in keys:
        columns.append(Column(key, QUANTITIES[key].label))
        cells.append(_cells(QUANTITIES[key], configurations, key))
        if key == question.metric:
            columns.append(Column("interval", "95 % interval"))
            cells.append([Cell(cell.interval or NONE, cell.value) for cell in cells[-1]])
            if question.baseline is not None:
                columns += [Column("difference", "difference"), Column("p", "p")]
                columns.append(Column("pairs", "pairs"))
                cells += _test_cells(QUANTITIES[key], configurations, tests)
    rows = [
        [Cell(c.name), Cell(str(len(c.runs)), len(c.runs)), *row]
        for c, row in zip(configurations, zip(*cells, strict=True), strict=True)
    ]
    own = {c: tests[c] for c in configurations if c in tests}
    return Table(scenario, columns, rows, [*_notes(configurations, question), *_of(own, question)])


def _cells(quantity: Quantity, configurations: Sequence[Configuration], key: str) -> list[Cell]:
    summaries = [summary(c.values(key)) for c in configurations]
    means = [s.mean for s in summaries if s is not None]
    best = (min if quantity.lower_is_better else max)(means, default=0.0)
    level = {quantity.written(mean) for mean in means}
    cells = []
    for c, s in zip(configurations, summaries, strict=True):
        if s is None:
            cells.append(Cell(NONE))
            continue
        text = quantity.written(s.mean)
        # What reads alike is marked alike; what all reach is marked for none.
        marked = len(level) > 1 and text == quantity.written(best)
        if quantity.deviates and s.deviation is not None:
            text += f" ± {quantity.written(s.deviation)}"
        if s.n < len(c.runs):
            text += f" ({s.n} of {len(c.runs)})"
        cells.append(Cell(text, s.mean, marked, _interval(quantity, s)))
    return cells


def _interval(quantity: Quantity, s: Summary) -> str:
    if s.half is None or not quantity.deviates:
        return ""
    return f"[{quantity.written(s.mean - s.half)}, {quantity.written(s.mean + s.half)}]"


def _test_cells(
    quantity: Quantity, configurations: Sequence[Configuration], tests: dict[Configuration, Test]
) -> list[list[Cell]]:
    differences, ps, pairs = [], [], []
    for c in configurations:
        test = tests.get(c)
        if test is None:
            for column in (differences, ps, pairs):
                column.append(Cell("baseline" if column is differences else ""))
            continue
        d, p = test.difference, test.corrected
        sign = "+" if d is not None and d >= 0 else ""
        differences.append(Cell(NONE if d is None else sign + quantity.written(d), d))
        ps.append(Cell(NONE if p is None else written_p(p), p))
        pairs.append(Cell(str(test.pairs), test.pairs))
    return [differences, ps, pairs]


def written_p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _notes(configurations: Sequence[Configuration], question: Question) -> Iterable[str]:
    label = QUANTITIES[question.metric].label
    yield "mean ± standard deviation over seeds; 95 % interval of the mean: Student's t over seeds"
    if alone := [c.name for c in configurations if len(c.values(question.metric)) == 1]:
        yield f"no interval of one run alone: {listed(alone)}"
    if without := [c.name for c in configurations if not c.values(question.metric)]:
        yield f"no {label} known: {listed(without)}"


def _of(tests: dict[Configuration, Test], question: Question) -> Iterable[str]:
    """How the tests of one scenario came about."""
    if question.baseline is None:
        return
    done = [test.pairs for test in tests.values() if test.p is not None]
    label = QUANTITIES[question.metric].label
    if done:
        few, many = min(done), max(done)
        yield (
            f"difference: {label} less that of {question.baseline} on the same seeds; p: paired "
            f"t-test, two-sided, corrected by Holm for all configurations that are tested"
        )
        needed = critical_t(few) / few**0.5
        pairs = f"{few} pairs" if few == many else f"{few} to {many} pairs"
        yield (
            f"{pairs}: few seeds say little; with {few} a difference is below p = 0.05, before "
            f"the correction, from {needed:.1f} of its standard deviations on"
        )
    for c, test in tests.items():
        if test.reason:
            yield f"{c.name}: not tested, {test.reason}"


def listed(names: Sequence[str], most: int = 8) -> str:
    """Names in a row, the first of them where they are many."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest
