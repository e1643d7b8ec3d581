"""Avalanche's warnings about itself, kept from the user's screen."""

import warnings
from typing import Any


def hush_avalanche() -> None:
    """Show no deprecation that is raised in or by Avalanche's own code; all others as before.

    A filter is not enough: Avalanche puts a filter of its own first at every deprecated call.
    """
    show = warnings.showwarning
    if getattr(show, "hushes_avalanche", False):
        return

    def selective(
        message: Warning | str, category: type[Warning], filename: str, *rest: Any, **named: Any
    ) -> None:
        about_avalanche = "avalanche" in filename or "(removal in version" in str(message)
        if not (issubclass(category, DeprecationWarning) and about_avalanche):
            show(message, category, filename, *rest, **named)

    selective.hushes_avalanche = True  # type: ignore[attr-defined]
    warnings.showwarning = selective
