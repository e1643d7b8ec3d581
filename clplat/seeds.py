"""`seeds=5` on the command line: the same run with seeds 0 to 4."""

from collections.abc import Sequence

from clplat.arguments import MULTIRUN, key_of
from clplat.errors import InputError


def with_seeds(arguments: Sequence[str]) -> list[str]:
    """The command line with `seeds=n` written out as a sweep over seeds; others as they are."""
    given = [a for a in arguments if a.startswith("seeds=")]
    if not given:
        return [*arguments]
    count = given[0].removeprefix("seeds=")
    if len(given) > 1 or not count.isdecimal() or int(count) < 1:
        raise InputError(
            f"{' '.join(given)}: expected one whole number of at least 1, the number of seeds from "
            "0 on; for example seeds=5"
        )
    if own := [a for a in arguments if key_of(a) == "seed"]:
        raise InputError(f"{given[0]} {own[0]}: both say which seeds; leave out one")
    rest = [a for a in arguments if a not in (*given, *MULTIRUN)]
    return ["--multirun", *rest, f"seed={','.join(map(str, range(int(count))))}"]
