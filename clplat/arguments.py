"""The command line: overrides, and options that may stand anywhere among them."""

from collections.abc import Sequence
from itertools import pairwise

MULTIRUN = ("-m", "--multirun")
INFO = ("-i", "--info")  # the next argument is their value unless it is an override
VALUED = (  # options that the next argument is the value of
    *("--config-dir", "-cd", "--config-path", "-cp", "--config-name", "-cn", "--cfg", "-c"),
    *("--package", "-p", "--experimental-rerun"),
)


def key_of(override: str) -> str:
    """The key of `key=value`, also where it is added (`+key`) or forced (`++key`)."""
    return override.lstrip("+").partition("=")[0]


def parted(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides, and options with the values that follow them."""
    overrides, options = [], []
    for before, argument in pairwise(["", *arguments]):
        is_value = before in VALUED or (before in INFO and not set("=~") & set(argument))
        (options if is_value or argument.startswith("-") else overrides).append(argument)
    return overrides, options
