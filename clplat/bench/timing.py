"""Measure contenders in turns, so that what else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One measured value beside its target."""

    name: str
    value: float
    target: float
    unit: str = "x"
    at_most: bool = False  # otherwise the target is a lower bound

    @property
    def met(self) -> bool:
        return self.value <= self.target if self.at_most else self.value >= self.target

    def __str__(self) -> str:
        bound = "at most" if self.at_most else "at least"
        verdict = "met" if self.met else "MISSED"
        return (
            f"{self.name:<66} {self.value:8.2f} {self.unit:<4} {bound} {self.target:g}  {verdict}"
        )


def in_turns(
    contenders: Mapping[str, Callable[[], Iterator[float]]], rounds: int
) -> dict[str, list[float]]:
    """Seconds of each part of each contender, part by part in turns, for some rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        running = [contender() for contender in contenders.values()]
        for parts in zip(*running, strict=True):
            for name, part in zip(contenders, parts, strict=True):
                seconds[name].append(part)
    return seconds


def ratio(slower: list[float], faster: list[float]) -> float:
    """Median over parts of one contender's seconds over the other's in the same turn."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def clock() -> float:
    return time.perf_counter()
