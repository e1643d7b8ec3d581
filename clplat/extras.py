"""Packages that only some choices need."""

from importlib import import_module
from typing import Any

from clplat.errors import InputError


def needed(package: str, choice: str, extra: str) -> Any:
    """The package; InputError where it is not installed."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or not package.startswith(error.name):
            raise
        raise InputError(
            f"{choice}: {package} is not installed; pip install 'clplat[{extra}]'"
        ) from None
