"""The numbers of result.json: what they are called, which way is better, how they are written."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from clplat.errors import InputError
from clplat.report.find import Run


def thousandths(value: float) -> str:
    return f"{value:.3f}"


def tenths(value: float) -> str:
    return f"{value:.1f}"


def millions(value: float) -> str:
    return f"{value / 1e6:.4g} M"


def in_bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


@dataclass(frozen=True)
class Quantity:
    """One number of a result. `shown`: a column of every table in which some run knows it."""

    label: str
    lower_is_better: bool = False
    shown: bool = False
    written: Callable[[float], str] = thousandths
    deviates: bool = True  # whether its deviation over seeds is worth a place in tables


QUANTITIES = {
    "accuracy": Quantity("accuracy", shown=True),
    "accuracy_deviation": Quantity("over tasks", lower_is_better=True, shown=True),
    "average_incremental_accuracy": Quantity("average incremental"),
    "average_incremental_accuracy_pooled": Quantity("average incremental, pooled"),
    "learning_accuracy": Quantity("learning accuracy"),
    "cross_entropy": Quantity("cross-entropy", lower_is_better=True, shown=True),
    "across_task_memory": Quantity("ATM", lower_is_better=True, shown=True),
    "multiply_accumulates": Quantity("MACs", True, True, millions, deviates=False),
    "forgetting": Quantity("forgetting", lower_is_better=True, shown=True),
    "backward_transfer": Quantity("backward transfer", shown=True),
    "forward_transfer": Quantity("forward transfer"),
    "intransigence": Quantity("intransigence", lower_is_better=True),
    "stability_gap": Quantity("stability gap", lower_is_better=True),
    "anytime_accuracy": Quantity("anytime", shown=True),
    "seconds": Quantity("seconds", True, True, tenths),
    "memory_bytes": Quantity("memory held", True, True, in_bytes, deviates=False),
    "peak_memory_bytes": Quantity("peak memory", True, False, in_bytes),
    "parameters": Quantity("parameters", True, False, "{:.0f}".format),
}


def known(runs: Iterable[Run]) -> list[str]:
    """The quantities that at least one of the runs has."""
    runs = list(runs)
    return [key for key in QUANTITIES if any(run.value(key) is not None for run in runs)]


def check_metric(metric: str, runs: Iterable[Run]) -> None:
    """Refuse a metric that does not exist or that none of the runs has."""
    has = known(runs)
    if metric not in has:
        why = "no run here has it" if metric in QUANTITIES else "no such metric"
        raise InputError(f"--metric {metric}: {why}; choose one of {', '.join(has)}")
