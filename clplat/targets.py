"""Which `_target_` a run may build: a config names objects, it does not run programs."""

import importlib.util
import inspect
import logging
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from clplat.errors import InputError

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # it logs what it also raises

ALLOWED = (
    "clplat.backbones",
    "clplat.schedule",
    "clplat.pretraining",
    "clplat.analysis",
    "clplat.adapter",
    "clplat.bridges",
    "clplat.several",
    "clplat.layers",
    "strategies",
    "scenarios",
    "hypernets",
    "torch.nn",
    "torch.optim",
    "avalanche.core",
    "avalanche.benchmarks",
    "avalanche.models",
    "avalanche.training",
)

# What is in those but loads pickles, which may run anything.
REFUSED = (
    "avalanche.benchmarks.datasets.openloris",
    "avalanche.benchmarks.datasets.core50",
    "avalanche.benchmarks.classic.openloris",
    "avalanche.benchmarks.classic.core50",
)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def is_public(name: str) -> bool:
    """Whether all parts of a dotted name are: no `ours.__loader__`, no `ours.f.__globals__`."""
    return all(part.isidentifier() and part[0] != "_" for part in name.split("."))


def is_allowed(name: str, folders: Sequence[Path]) -> bool:
    """Whether a dotted name is in a package of the list, of the user's folders, or that opted in.

    An installed package opts in by an entry point of the group `clplat`.
    """
    if any(_within(name, package) for package in REFUSED):
        return False
    if any(_within(name, package) for package in ALLOWED):
        return True
    root = name.split(".")[0]
    if not root.isidentifier():
        return False
    if root in sys.stdlib_module_names or root in ("clplat", "torch", "avalanche", "hydra"):
        return False
    if root in {point.value.split(":")[0].split(".")[0] for point in entry_points(group="clplat")}:
        return True
    spec = importlib.util.find_spec(root)
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    return any(
        Path(place).resolve().is_relative_to(folder.resolve())
        and "site-packages" not in Path(place).resolve().parts
        for place in places
        if place
        for folder in folders
    )


def targets(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every `_target_` below a node, as (the key it stands under, its value)."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield f"{key}._target_", str(node["_target_"])
        for name, value in node.items():
            yield from targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from targets(value, f"{key}[{index}]")


def check_names(config: dict[str, Any], folders: Sequence[Path]) -> None:
    """Refuse by name, without importing anything."""
    for key, name in targets(config):
        if not is_public(name) or not is_allowed(name, folders):
            where = ", ".join(map(str, folders))
            raise InputError(
                f"{key}={name}: not allowed; a config may name what is in {', '.join(ALLOWED)}, "
                f"or a module of your own in {where}; put the module there, or correct the name"
            )


def imported(given: str, name: str, expected: str) -> tuple[Any, str]:
    """What an import path names, and the module that defines it; InputError where there is none."""
    try:
        found = get_object(name)
    except Exception as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(
            f"{given}: cannot be imported ({reason}); expected the import path of a {expected}; "
            "correct the name, or install what it needs"
        ) from error
    return found, getattr(found, "__module__", None) or ""


def check_objects(config: dict[str, Any], folders: Sequence[Path]) -> None:
    """Import each target, and refuse what turns out to come from elsewhere (`ours.os.system`)."""
    for key, name in targets(config):
        found, home = imported(f"{key}={name}", name, "class or function")
        if not (inspect.isclass(found) or inspect.isroutine(found)) or not is_allowed(
            home, folders
        ):
            raise InputError(
                f"{key}={name}: not allowed; it is {found!r} from {home or 'nowhere'}; expected a "
                "class or function defined where the name says; name that place itself"
            )
