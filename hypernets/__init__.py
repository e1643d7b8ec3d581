"""Generators of weights, one a file."""

from typing import Any


def plain(target: Any, task_labels: bool, classes: int | None) -> Any:
    """No hypernetwork: the network's weights are its own."""
    return target
