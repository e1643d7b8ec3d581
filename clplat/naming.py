"""Short names for configurations: what they chose, and what else tells them apart."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from clplat.digest import KEPT, PLACES

# Beside the strategy, where they differ; those that a strategy may imply where they differ in it.
SHOWN = ("hypernet", "backbone", "head", "optimizer", "schedule")
IMPLIED = ("hypernet", "head")


def settings(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a nested config by their dotted keys, seeds, places and what is kept apart."""
    values: dict[str, Any] = {}
    for key, value in config.items():
        if prefix + key in (*PLACES, *KEPT):
            continue
        if isinstance(value, Mapping):
            values |= settings(value, f"{prefix}{key}.")
        elif key != "seed" and not key.startswith("seed_"):
            values[prefix + key] = value
    return values


def short_names(
    choices: Sequence[Mapping[str, str]], config: Callable[[int], Mapping[str, Any]]
) -> list[str]:
    """A name for each configuration: its strategy, unless it is that of all, the other choices in
    which they differ and, among those that made the same choices, the settings that do.

    `choices`: the chosen file of each group; `config`: the resolved config of the k-th, asked for
    where the choices do not tell. Settings that tell two apart in one scenario are named in all.
    Two names may be equal where a config is unknown, {}.
    """
    differ = [g for g in SHOWN if _differ(choices, g)]
    one = differ and len({choice["strategy"] for choice in choices}) == 1
    parts = differ if one else ["strategy", *differ]
    names = [" ".join(choice[g] for g in parts if g in choice) for choice in choices]
    alike: dict[str, dict[str | None, list[int]]] = defaultdict(lambda: defaultdict(list))
    for k, choice in enumerate(choices):
        alike[names[k]][choice.get("scenario")].append(k)

    for base, scenarios in alike.items():
        if all(len(members) == 1 for members in scenarios.values()):
            continue
        values = {k: settings(config(k)) for members in scenarios.values() for k in members}
        found = {key for m in scenarios.values() for key in _telling(values, m)}
        telling = _without_echoes(sorted(found), [*values.values()])
        endings = {key: _ending(key, telling) for key in telling}
        for k, value in values.items():
            told = [f"{ending}={value[key]}" for key, ending in endings.items() if key in value]
            names[k] = " ".join([base, *told])
    return names


def _telling(values: Mapping[int, Mapping[str, Any]], members: Sequence[int]) -> set[str]:
    """The settings in which some configurations differ."""
    keys = set().union(*(values[k] for k in members))
    return {key for key in keys if len({repr(values[k].get(key)) for k in members}) > 1}


def _differ(choices: Sequence[Mapping[str, str]], group: str) -> bool:
    """Whether the choices differ in a group, and not as their strategies alone have it."""
    by_strategy = defaultdict(set)
    for choice in choices:
        by_strategy[choice["strategy"] if group in IMPLIED else None].add(choice.get(group))
    return any(len(chosen) > 1 for chosen in by_strategy.values())


def _without_echoes(keys: Sequence[str], values: Sequence[Mapping[str, Any]]) -> list[str]:
    """The keys but those that only repeat one of the same ending, as a head does its scenario's."""
    kept: list[str] = []
    for key in sorted(keys, key=lambda key: -sum(key in value for value in values)):
        alike = [other for other in kept if other.split(".")[-1] == key.split(".")[-1]]
        both = [[v for v in values if key in v and other in v] for other in alike]
        if not any(
            found and all(repr(v[key]) == repr(v[other]) for v in found)
            for found, other in zip(both, alike, strict=True)
        ):
            kept.append(key)
    return sorted(kept)


def _ending(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key; all of it where another of the keys ends alike."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last
