"""What is set of a choice that is swept over: `-m strategy=replay,mir strategy.capacity=500`."""

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException


def as_sweeps(overrides: Sequence[str]) -> list[str]:
    """The overrides with such settings as sweeps of one value; all others as they are.

    Hydra composes a sweep once without what is swept over, with the group's default: a setting that
    is no sweep is refused where that default does not have it.
    """
    try:
        parsed = OverridesParser.create().parse_overrides([*overrides])
    except HydraException:  # Hydra will say so itself
        return [*overrides]
    swept = {str(o.key_or_group) for o in parsed if o.is_sweep_override()}
    return [_as_sweep(o) if _is_set(o, swept) else str(o.input_line) for o in parsed]


def _is_set(override: Override, swept: set[str]) -> bool:
    """Whether it sets one value of a group that is swept over; an experiment may set any."""
    group, dot, _ = override.key_or_group.partition(".")
    return (
        bool(dot)
        and (group in swept or ("experiment" in swept and group != "hydra"))
        and not (override.is_add() or override.is_delete() or override.is_sweep_override())
        and override.value() is not None  # for which Hydra has no sweep
    )


def _as_sweep(override: Override) -> str:
    key, _, value = str(override.input_line).partition("=")
    return f"{key}=choice({value})"
