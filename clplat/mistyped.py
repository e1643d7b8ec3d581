"""What may have been meant by a key, or a choice, that there is not."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from hydra.errors import ConfigCompositionException, MissingConfigException
from omegaconf.errors import ConfigAttributeError, ConfigKeyError

from clplat import shape
from clplat.help import CONF, all_choices

ALL = "clplat --help lists them"
LIKENESS = 0.6  # of a name to what was given, at the least, to be proposed
GLOBAL = re.compile(r"^# *@package +_global_", re.MULTILINE)
NAMED = 3  # choices that have a key, at the most

Files = Mapping[str, Mapping[str, Path]]  # group -> name -> file


def meant(error: BaseException, arguments: Sequence[str]) -> str | None:
    """A message for what Hydra found no key, or no file, for; None for any other error."""
    if isinstance(error, MissingConfigException) and error.options:
        group, _, name = str(error.missing_cfg_file).partition("/")
        known = all_choices(arguments).get(group) if group != "hydra" else None
        if known is None:
            group, _, name = str(error.missing_cfg_file).rpartition("/")
            known = error.options
        return _no_choice(group, name, sorted(known, key=lambda n: ("/" in n, n)))
    absent = isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError)
    found = re.match(r"Could not override '(.+)'\.", str(error))
    if isinstance(error, ConfigCompositionException) and absent and found:
        return _no_key(found[1], arguments)
    return None


def _no_choice(group: str, name: str, known: Sequence[str]) -> str:
    return f"{group}={name}: no such choice{_like(name, known)}; there are {', '.join(known)}"


def _no_key(key: str, arguments: Sequence[str]) -> str:
    group, _, rest = key.partition(".")
    if group == "hydra":
        return f"{key}: no such key; clplat --cfg hydra lists those of Hydra"
    general = yaml.safe_load((CONF / "config.yaml").read_text())
    groups, chosen = all_choices(arguments), _chosen(arguments, general["defaults"])
    own = {
        known
        for node, names in chosen.items()
        for name in names
        for known in _file_keys(groups, node.partition(".")[0], name, node)
    }
    if not rest or group not in groups:
        return f"{key}: no such key{_like(key, own | {*_keys(general), *groups})}; {ALL}"
    node = max((n for n in chosen if key.startswith(f"{n}.")), key=len, default=group)
    deeper = sorted(k for k in own if k.startswith(f"{group}.") and k.endswith(f".{rest}"))
    having = [n for n in groups[group] if key in _file_keys(groups, group, n, node)]
    if deeper and key not in deeper:
        likely = f" (did you mean {' or '.join(deeper[:NAMED])}?)"
    else:
        likely = _belonging(group, having, chosen.get(node, [])) if having else _like(key, own)
    name = chosen.get(node, [""])[0]
    listing = f"clplat --help {group}={name} lists them" if name in groups[group] else ALL
    adds = "" if likely else f"; +{key}=... adds an argument that the file leaves out"
    return f"{key}: no such key{likely}; {listing}{adds}"


def _belonging(group: str, having: Sequence[str], chosen: Sequence[str]) -> str:
    """Which choices of a group have a key: those that are chosen, then those of no subfolder."""
    first = sorted(having, key=lambda name: (name not in chosen, "/" in name, name))
    more = f" and {len(first) - NAMED} more" if len(first) > NAMED else ""
    return f" (it belongs to {group}={', '.join(first[:NAMED])}{more})"


def _like(given: str, known: Iterable[str]) -> str:
    """A question for those that resemble what was given, or end in it; "" if none does.

    Only the last part may be mistaken where there are several; case does not matter.
    """
    place, _, last = given.lower().rpartition(".")
    near = [n for n in sorted(known) if n.lower().startswith(place)]
    tails = {n.lower().rpartition(".")[2]: n for n in near}
    found = [tails[tail] for tail in get_close_matches(last, sorted(tails), n=2, cutoff=LIKENESS)]
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def _keys(config: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The dotted keys of a config's leaves and of the sections they are in."""
    keys = []
    for key, value in config.items():
        if key not in ("defaults", "hydra"):
            keys.append(f"{prefix}{key}")
            keys += _keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else []
    return keys


def _chosen(arguments: Sequence[str], defaults: Sequence[Any]) -> dict[str, list[str]]:
    """The names that are given for each group, or its default, by where they are placed."""
    chosen = {g: [str(name)] for d in defaults if isinstance(d, dict) for g, name in d.items()}
    for argument in arguments:
        group, equals, value = argument.lstrip("+").partition("=")
        group, _, node = group.partition("@")
        if equals and group in chosen:
            chosen[node or group] = [name.strip(" '\"") for name in value.split(",")]
    return chosen


def _file_keys(
    groups: Files, group: str, name: str, node: str, above: tuple[str, ...] = ()
) -> set[str]:
    """The keys of a group's file placed at `node`, and of those of its group that it inherits from.

    Those that name what is built are left out. `above` are the files that inherit from this one.
    """
    file = groups.get(group, {}).get(name)
    if file is None or name in above:
        return set()
    config = _mapping(file)
    whole = config and GLOBAL.search(file.read_text(encoding="utf-8"))
    keys = _keys(config, "" if whole else f"{node}.")
    found = {key for key in keys if not key.rpartition(".")[2].startswith("_")}
    for inherited in _inherited(config.get("defaults"), group):
        found |= _file_keys(groups, group, inherited, node, (*above, name))
    return found


def _inherited(defaults: Any, group: str) -> list[str]:
    """The names of a group that a list of defaults of one of its files gives."""
    entries = [d for d in defaults if isinstance(d, str)] if isinstance(defaults, list) else []
    return [entry.removeprefix(f"/{group}/").removesuffix(".yaml") for entry in entries]


def _mapping(file: Path) -> Mapping[str, Any]:
    """What a file holds; empty where that is no mapping or cannot be read."""
    try:
        shape.check_file(file)
        loaded = yaml.safe_load(file.read_text(encoding="utf-8"))
    except Exception:  # whatever is wrong with a file that may not even be used: none is explained
        return {}
    return loaded if isinstance(loaded, dict) else {}
