"""Runs that differ only in their seeds, together under a short name."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from yaml import YAMLError

from clplat.directory import read_config
from clplat.naming import short_names
from clplat.report.find import Run
from clplat.report.printable import printable
from clplat.report.quantities import QUANTITIES


@dataclass(frozen=True, eq=False)
class Configuration:
    """The runs of one config over seeds; `name` is its own within the scenario."""

    name: str
    scenario: str
    digest: str
    runs: tuple[Run, ...]

    def values(self, key: str) -> list[float]:
        """What its runs measured of a quantity, those left out that have none."""
        return [v for v in (run.value(key) for run in self.runs) if v is not None]

    def by_seeds(self, key: str) -> dict[Any, float]:
        """The same by the seeds of the runs, where those are known."""
        found = ((run.seeds, run.value(key)) for run in self.runs)
        return {s: v for s, v in found if s is not None and v is not None}


def distinct(runs: Sequence[Run]) -> list[Run]:
    """The runs without those that repeat another's config and seeds: they would count twice."""
    kept: dict[Any, Run] = {}
    for run in runs:
        same = (run.result["scenario"], run.result["digest"], run.seeds)
        kept.setdefault(same if run.seeds is not None else run.out, run)
    return list(kept.values())


def by_configuration(runs: Sequence[Run], metric: str = "accuracy") -> list[Configuration]:
    """The configurations by scenario, within it the best mean of a metric first."""
    groups: dict[tuple[str, str], list[Run]] = defaultdict(list)
    for run in runs:
        groups[(run.result["scenario"], run.result["digest"])].append(run)
    firsts = [group[0] for group in groups.values()]
    choices = [{k: v for k, v in r.result.items() if isinstance(v, str)} for r in firsts]
    names = [printable(name) for name in short_names(choices, lambda k: _config(firsts[k]))]
    places = [(scenario, name) for (scenario, _), name in zip(groups, names, strict=True)]
    found = []
    for (scenario, digest), name, group in zip(groups, names, groups.values(), strict=True):
        clear = name if places.count((scenario, name)) == 1 else f"{name} {digest}"
        found.append(Configuration(clear, scenario, digest, tuple(group)))
    return sorted(found, key=lambda c: (c.scenario, _rank(c, metric), c.name))


def by_scenario(configurations: Sequence[Configuration]) -> dict[str, list[Configuration]]:
    found: dict[str, list[Configuration]] = defaultdict(list)
    for configuration in configurations:
        found[configuration.scenario].append(configuration)
    return dict(found)


def _rank(configuration: Configuration, metric: str) -> float:
    values = configuration.values(metric)
    if not values:
        return float("inf")
    mean = sum(values) / len(values)
    return mean if QUANTITIES[metric].lower_is_better else -mean


def _config(run: Run) -> dict[str, Any]:
    """{} where it cannot be read: the name then says less."""
    try:
        config = read_config(run.out)
    except (OSError, ValueError, YAMLError):
        return {}
    return config if isinstance(config, dict) else {}
