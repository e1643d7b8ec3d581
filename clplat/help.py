"""The help text, put together from the config files as they are, comments included.

Hydra's own would compose every group first, which takes longer than reading the text.
"""

import os
import textwrap
from collections.abc import Iterator, Sequence
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

CONF = Path(str(files("clplat.conf")))
USER_CONFIGS = "CLPLAT_CONF_PATH"  # folders like conf/, separated as in PATH
NOT_GROUPS = ("hydra", "__pycache__")

HEADER = """\
Train a continual-learning strategy on a scenario and record what it forgets.

Usage: clplat [key=value ...]                    one run
       clplat -m [key=value1,value2 ...]         a run for every combination
       clplat-report runs/...                    tables, tests and figures of finished runs

Examples:
  clplat strategy=replay strategy.capacity=200
  clplat strategy=ewc strategy.strength=100 scenario=split_digits backbone=mlp seed=0 out=runs/a
  clplat scenario.task_labels=true strategy=lwf
  clplat -m strategy=replay,ewc seed=0,1,2
  clplat --help strategy=ewc                     the keys of one choice
  clplat --cfg job strategy=ewc                  all keys, with the values that would be used
  clplat --config-dir mylab strategy=mine        a strategy of your own: mylab/strategy/mine.yaml
  eval "$(clplat -sc install=bash)"              shell completion (also zsh, fish)
  clplat --hydra-help                            more flags, Hydra's own
"""


def user_folders(arguments: Sequence[str]) -> Iterator[Path]:
    """The folders of the user's configs: `--config-dir`, then the environment's."""
    for flag, value in pairwise(arguments):
        if flag in ("--config-dir", "-cd"):
            yield Path(value)
    for argument in arguments:
        if argument.startswith("--config-dir="):
            yield Path(argument.partition("=")[2])
    yield from (Path(f) for f in os.environ.get(USER_CONFIGS, "").split(os.pathsep) if f)


def choices(folder: Path) -> dict[str, dict[str, Path]]:
    """The files of each group below a folder: group -> name -> file."""
    groups: dict[str, dict[str, Path]] = {}
    for file in sorted(folder.glob("*/**/*.yaml")):
        group, *name = file.relative_to(folder).with_suffix("").parts
        if group not in NOT_GROUPS and file.is_file():
            groups.setdefault(group, {})["/".join(name)] = file
    return groups


def all_choices(arguments: Sequence[str]) -> dict[str, dict[str, Path]]:
    """The files of each group, the user's among them."""
    groups = choices(CONF)
    for folder in user_folders(arguments):
        for group, named in choices(folder).items():
            groups.setdefault(group, {}).update(named)
    return groups


def help_text(arguments: Sequence[str]) -> str:
    """How to call `clplat`, the choices of every group, and every key with its default.

    `group=name` among the arguments shows that file's keys instead of the general ones.
    """
    groups = all_choices(arguments)
    asked = [a.partition("=") for a in arguments if "=" in a and not a.startswith("-")]
    chosen = [(g, n, groups[g][n]) for g, _, n in asked if n in groups.get(g, {})]
    if chosen:
        return "\n".join(
            f"{g}={n}, keys under {g}:\n\n{file.read_text(encoding='utf-8', errors='replace')}"
            for g, n, file in chosen
        )

    listing = [
        textwrap.fill(
            f"{group}: {', '.join(sorted(names, key=lambda n: ('/' in n, n)))}",
            width=98,
            initial_indent="  ",
            subsequent_indent="    ",
            break_on_hyphens=False,
        )
        for group, names in sorted(groups.items())
    ]
    general = (CONF / "config.yaml").read_text().partition("\nseed:")[2].partition("\nhydra:")[0]
    return "\n".join(
        [
            HEADER,
            "Groups, chosen by group=name (keys of a choice: clplat --help group=name):\n",
            *listing,
            "\nKeys, set by key=value:\n",
            "seed:" + general,
        ]
    )
