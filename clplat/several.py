"""Several strategies in one run: `strategy=[replay,lwf]`."""

import re
from collections.abc import Sequence
from typing import Any

from clplat.errors import InputError

LIST = re.compile(r"strategy=\[(.*)\]")
MEND = "expected names of the group, such as 'strategy=[replay,lwf]'"


def expanded(arguments: Sequence[str]) -> list[str]:
    """The command line with a list of strategies written out for Hydra.

    Each becomes a node of its own: its keys are `strategy.<name>.<key>`.
    """
    found = []
    for argument in arguments:
        if not argument.startswith("strategy=["):
            found.append(argument)
            continue
        match = LIST.fullmatch(argument)
        if match is None or "[" in match[1]:
            raise InputError(
                f"{argument}: one list of strategies a command, in quotes if it has spaces; to "
                "sweep over lists write each into a file of the group (docs/guides/strategies.md)"
            )
        names = [name.strip() for name in match[1].split(",")]
        for name in names:
            if not re.fullmatch(r"\w+", name):
                raise InputError(f"{argument}: {name!r} is none that can be combined; {MEND}")
            if names.count(name) > 1:
                raise InputError(f"{argument}: {name} is given twice; leave out one")
        nodes = [f"+strategy@strategy.{name}={name}" for name in names]
        found += ["strategy=several", *nodes]
    return found


def combined_name(choice: str, node: dict[str, Any]) -> str:
    """What a run of this choice is called: the names of its strategies where it has several."""
    parts = [name for name in node if name != "_target_"]
    return "+".join(parts) if choice == "several" and parts else choice


class Several:
    """Strategies that act in turn at each hook, in the order in which they are given.

    A strategy says what it alone may decide on by `owns`, a tuple of words such as "the batches".
    """

    def __init__(self, **parts: Any):
        if not parts:
            raise InputError(f"strategy=several: no strategies; {MEND}")
        self.parts = parts
        owners: dict[str, str] = {}
        for name, part in parts.items():
            if hasattr(part, "template"):
                raise InputError(
                    f"strategy=[{','.join(parts)}]: {name} brings a loop of its own, in which "
                    "others do not act; leave it out"
                )
            for what in getattr(part, "owns", ()):
                if what in owners:
                    raise InputError(
                        f"strategy=[{','.join(parts)}]: both {owners[what]} and {name} decide on "
                        f"{what}; leave out one"
                    )
                owners[what] = name

    @property
    def memory(self) -> Any:
        """The first that a strategy holds, None where none does."""
        held = (getattr(part, "memory", None) for part in self.parts.values())
        return next((memory for memory in held if memory is not None), None)

    @property
    def measured(self) -> dict[str, float]:
        own = [getattr(part, "measured", {}) for part in self.parts.values()]
        return {key: value for values in own for key, value in values.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            n: part.state_dict() for n, part in self.parts.items() if hasattr(part, "state_dict")
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, own in state.items():
            self.parts[name].load_state_dict(own)


def parts_of(strategy: Any) -> list[Any]:
    """The strategies that one is made of: itself, where it is not several."""
    return [*strategy.parts.values()] if isinstance(strategy, Several) else [strategy]
