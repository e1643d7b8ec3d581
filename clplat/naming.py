"""Short names for configurations: what they chose, and what else tells them apart."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from clplat.digest import KEPT, PLACES

# Beside the strategy, where they differ.
SHOWN = ("hypernet", "backbone", "head", "optimizer", "schedule")


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
    choices: Sequence[Mapping[str, str]], configs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """A name for each configuration: its strategy, unless it is that of all, the other choices in
    which they differ and, among those that made the same choices, the settings that do.

    `choices`: the chosen file of each group; `configs`: the resolved configs. Two names may be
    equal where a config is unknown, {}.
    """
    differ = [g for g in SHOWN if len({choice.get(g) for choice in choices}) > 1]
    one = differ and len({choice["strategy"] for choice in choices}) == 1
    parts = differ if one else ["strategy", *differ]
    bases = [" ".join(choice[g] for g in parts if g in choice) for choice in choices]
    alike: dict[tuple, list[int]] = defaultdict(list)
    for k, choice in enumerate(choices):
        alike[(choice.get("scenario"), bases[k])].append(k)

    names = list(bases)
    for members in alike.values():
        values = {k: settings(configs[k]) for k in members}
        keys = sorted(set().union(*values.values()))
        telling = [key for key in keys if len({repr(v.get(key)) for v in values.values()}) > 1]
        for k, value in values.items():
            told = [f"{_ending(key, telling)}={value[key]}" for key in telling if key in value]
            names[k] = " ".join([bases[k], *told])
    return names


def _ending(key: str, keys: Sequence[str]) -> str:
    """The last part of a dotted key; all of it where another of the keys ends alike."""
    last = key.rpartition(".")[2]
    return key if sum(other.rpartition(".")[2] == last for other in keys) > 1 else last
