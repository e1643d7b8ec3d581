"""Look over a whole config before anything heavy is imported."""

import math
import os
import re
from pathlib import Path
from typing import Any

from clplat.digest import KEPT, PLACES, SEEDS
from clplat.errors import InputError
from clplat.targets import check_names

PRECISIONS = ("fp32", "bf16", "fp16")
UNITS = ("seconds", "iterations", "experiences")
RESUME = ("auto", "never")
LARGEST_SEED = 2**32 - 1  # what NumPy takes
MOST_THREADS = 1024
MOST_BUILT = 10_000  # of what is built one by one: far more would fill the memory without a word
GROUPS = (
    *("scenario", "backbone", "head", "pretraining", "hypernet"),
    *("strategy", "optimizer", "schedule", "analysis"),
)
KEYS: dict[str, tuple[str, ...]] = {  # all that config.yaml has beside the groups
    "": (
        *SEEDS,
        *("device", "precision", "threads", "compile", *PLACES, "train", "eval", "data"),
        *KEPT,
    ),
    "train": ("epochs", "batch_size", "grad_clip", "accumulate", "experiences"),
    "eval": ("batch_size", "every"),
    "data": ("resident_gigabytes", "workers"),
    "checkpoint": ("every", "unit"),
}
SECTIONS = [section for section in KEYS if section]


def _number(
    config: dict[str, Any],
    key: str,
    least: float,
    most: float = math.inf,
    *,
    whole: bool = False,
    above: bool = False,
    optional: bool = False,
) -> None:
    """A finite number from `least` (above it if asked) to `most`, whole if asked."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            return  # not every optimizer has every key
        value = value[part]
    if value is None and optional:
        return
    fits = (
        isinstance(value, int if whole else int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (least < value if above else least <= value)
        and value <= most
    )
    if not fits:
        kind = "a whole number" if whole else "a number"
        bound = f"above {least:g}" if above else f"of at least {least:g}"
        bound += f" and at most {most}" if most < math.inf else ""
        mend = f"for example {key}={_example(least, whole, above)}"
        null = ", or null" if optional else ""
        raise InputError(f"{key}={value}: expected {kind} {bound}{null}; {mend}")


def _example(least: float, whole: bool, above: bool) -> str:
    return f"{int(least) + above}" if whole or not above else "0.001"


def _one_of(section: dict[str, Any], key: str, choices: tuple[str, ...], mend: str) -> None:
    value = section[key.split(".")[-1]]
    if value not in choices:
        raise InputError(f"{key}={value}: expected one of {', '.join(choices)}; {mend}")


def _whole(config: dict[str, Any]) -> None:
    """Refuse a config in which a section or a key of it was deleted or replaced."""
    for section, known in KEYS.items():
        node = config.get(section) if section else config
        if not isinstance(node, dict):
            raise InputError(
                f"{section}={node}: expected the keys {', '.join(known)}; set one of them, such as "
                f"{section}.{known[0]}=<value>"
            )
        for key in known:
            if key not in node:
                name = f"{section}.{key}" if section else key
                raise InputError(f"~{name}: every run needs this key; leave it as it is, or set it")
    for group in GROUPS:
        node = config.get(group)
        if not isinstance(node, dict) or "_target_" not in node:
            raise InputError(
                f"{group}={node}: expected a config with a _target_; choose a file of the group by "
                f"{group}=<name> (clplat --help lists them)"
            )


def _place(config: dict[str, Any], key: str) -> None:
    """Refuse what can be no directory; a number is taken as its name."""
    value = config[key]
    if value is None:
        return
    if isinstance(value, dict | list | bool) or value == "":
        raise InputError(f"{key}={value!r}: expected a directory; for example {key}=runs/a")
    config[key] = text = str(value)
    if not text.isprintable():
        raise InputError(f"{key}={text!r}: has characters that cannot be printed; leave them out")
    try:
        os.stat(text)
    except (FileNotFoundError, PermissionError):
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{key}={text}: is no possible directory ({reason}); choose another"
        ) from None


def _nothing_left(node: Any, key: str = "") -> None:
    """Refuse `${...}` that is still there once all is resolved: building would resolve it again,
    into what nobody has looked at.
    """
    if isinstance(node, dict):
        for name, value in node.items():
            _nothing_left(name, key)
            _nothing_left(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for value in node:
            _nothing_left(value, key)
    elif isinstance(node, str) and "${" in node:
        raise InputError(f"{key}={node}: an escaped ${{...}}; write it without the backslash")


def _flags(node: Any, key: str = "") -> None:
    """Refuse what would change how an object is built in ways that no config of ours needs."""
    for name, value in node.items() if isinstance(node, dict) else enumerate(node):
        place = f"{key}.{name}" if key else str(name)
        if name in ("_partial_", "_recursive_") and not isinstance(value, bool):
            raise InputError(f"{place}={value}: expected true or false; leave it as it was")
        if name == "_args_" and not isinstance(value, list):
            raise InputError(f"{place}={value}: expected a list; for example {place}=[1]")
        if isinstance(value, dict | list):
            _flags(value, place)


def _no_stray_keys(config: dict[str, Any]) -> None:
    """Refuse a key that nothing reads, such as one added by `+key=value` at the wrong place."""
    for section, known in KEYS.items():
        node = config[section] if section else config
        for key in set(node) - {*known, *(GROUPS if not section else ())}:
            places = [g for g in (*GROUPS, *SECTIONS) if key in (config[g] or ())]
            name = f"{section}.{key}" if section else key
            mend = f"set {places[0]}.{key}" if places else "clplat --help lists all keys"
            raise InputError(
                f"{name}={node[key]}: nothing reads this key; expected one of "
                f"{', '.join(known)}{' or a group' if not section else ''}; {mend}"
            )


def check(config: dict[str, Any], folders: list[Path]) -> None:
    """Raise InputError for the first thing that is wrong with a resolved config."""
    _whole(config)
    _no_stray_keys(config)
    _nothing_left(config)
    _flags(config)
    for place in PLACES:
        _place(config, place)
    _number(config, "optimizer.lr", 0, above=True)
    _number(config, "optimizer.weight_decay", 0)
    _number(config, "optimizer.momentum", 0)
    for key in ("train.epochs", "train.batch_size", "train.accumulate", "eval.batch_size"):
        _number(config, key, 1, whole=True)
    _number(config, "threads", 1, MOST_THREADS, whole=True)
    _number(config, "train.experiences", 1, whole=True, optional=True)
    _number(config, "train.grad_clip", 0, above=True, optional=True)
    _number(config, "eval.every", 1, whole=True, optional=True)
    _number(config, "checkpoint.every", 0, above=True, optional=True)
    _one_of(config["checkpoint"], "checkpoint.unit", UNITS, "seconds suits runs of any length")
    _one_of(config, "resume", RESUME, "auto goes on with a run that did not finish")
    _number(config, "data.resident_gigabytes", 0)
    _number(config, "data.workers", 0, whole=True)
    _number(config, "scenario.experiences", 1, MOST_BUILT, whole=True, optional=True)
    _number(config, "backbone.depth", 1, MOST_BUILT, whole=True)
    for key in ("epochs", "batch_size", "episodes", "ways", "shots", "queries"):
        _number(config, f"pretraining.{key}", 1, whole=True)
    _number(config, "pretraining.lr", 0, above=True)
    strategy = config["strategy"] if isinstance(config["strategy"], dict) else {}
    several = [f".{name}" for name, node in strategy.items() if isinstance(node, dict)]
    for node in ("", *several):
        for key in ("capacity", "experiences", "samples"):
            _number(config, f"strategy{node}.{key}", 1, whole=True)
        _number(config, f"strategy{node}.strength", 0)
    for key in SEEDS:
        _number(config, key, 0, LARGEST_SEED, whole=True)
    _one_of(config, "precision", PRECISIONS, "fp32 runs everywhere")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(config["device"])):
        raise InputError(
            f"device={config['device']}: expected auto, cpu, cuda or cuda:<number>; "
            "auto takes a GPU where there is one"
        )
    check_names(config, folders)
