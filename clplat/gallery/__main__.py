"""Draw the kinds of scenario from their configs, a picture each."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from clplat.errors import InputError
from clplat.gallery.kinds import KINDS, draw
from clplat.quiet import hush_avalanche


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m clplat.gallery",
        description=f"{__doc__} Fashion-MNIST where it is installed, else digits.",
    )
    parser.add_argument("names", nargs="*", help=f"{', '.join(KINDS)}; default: all")
    parser.add_argument(
        "--out", type=Path, default=Path("docs/pictures"), help="a folder (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    for name in options.names:
        if name not in KINDS:
            print(
                f"clplat: {name}: no such picture; expected some of {', '.join(KINDS)}; choose "
                "from these, or name none for all",
                file=sys.stderr,
            )
            sys.exit(2)
    hush_avalanche()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names or KINDS:
        try:
            figure = draw(name)
        except InputError as error:
            print(f"{name}: skipped: {error}")
            continue
        file = options.out / f"{name}.png"
        figure.savefig(file, metadata={"Software": None})
        print(f"{name}: {file}")


if __name__ == "__main__":
    main()
