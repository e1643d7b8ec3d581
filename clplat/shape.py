"""Limits on configs: files that expand without end are refused before they are expanded."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.plugins.config_source import ConfigResult

from clplat.errors import InputError

LARGEST = 100_000  # values or characters of a config once all is written out
DEEPEST = 50  # levels
REFERENCE = re.compile(r"\$\{([^${}:]+)\}")


def written_out(root: Any, below: Callable[[Any], Iterator[Any]], own: Callable[[Any], int]) -> int:
    """The size of a graph written out as a tree, without doing so; RecursionError if too deep.

    `below` gives what a node stands for beside itself, which is of size `own`.
    """
    known: dict[int, int] = {}

    def size(node: Any, depth: int) -> int:
        if depth > DEEPEST:
            raise RecursionError
        if id(node) not in known:
            known[id(node)] = own(node) + sum(size(child, depth + 1) for child in below(node))
        return known[id(node)]

    return size(root, 0)


def _limited(size: Callable[[], int], name: str) -> None:
    try:
        count = size()
    except RecursionError:
        raise InputError(
            f"{name}: nested or referring to itself more than {DEEPEST} levels deep; flatten it"
        ) from None
    if count > LARGEST:
        raise InputError(
            f"{name}: {count:.3g} values once its aliases and ${{...}} are written out; expected "
            f"at most {LARGEST}; write less"
        )


def check_file(file: Path) -> None:
    """Refuse a YAML file whose aliases (`*name`) multiply, or that is nested too deeply."""

    def below(node: Any) -> Iterator[Any]:
        for child in node.value if isinstance(node, yaml.CollectionNode) else ():
            yield from child if isinstance(child, tuple) else (child,)

    with open(file, encoding="utf-8") as text:
        root = yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    _limited(lambda: written_out(root, below, lambda node: 1) if root else 0, str(file))


def check_references(config: dict[str, Any]) -> None:
    """Refuse a config, not yet resolved, whose `${key}` multiply or lead back to themselves."""

    def below(node: Any) -> Iterator[Any]:
        if isinstance(node, dict):
            yield from node.values()
        elif isinstance(node, list):
            yield from node
        elif isinstance(node, str):
            yield from (found for key in REFERENCE.findall(node) if (found := at(key)) is not None)

    def at(key: str) -> Any:
        node: Any = config
        for part in key.split("."):
            if not isinstance(node, dict) or part not in node:
                return None
            node = node[part]
        return node

    def own(node: Any) -> int:
        return len(node) if isinstance(node, str) else 1

    _limited(lambda: written_out(config, below, own), "the config")


class Files(FileConfigSource):
    """The user's config files, each looked at before it is loaded."""

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path, self._normalize_file_name(config_path))
        if file.is_file():
            check_file(file)
        return super().load_config(config_path)


def register() -> None:
    """Let Hydra read the user's files by way of the check."""
    SourcesRegistry.instance().types["file"] = Files
