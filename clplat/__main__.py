"""`clplat` and `python -m clplat`: help at once, everything else by Hydra."""

import sys


def main() -> None:
    """The console script."""
    if {"--help", "-h"} & set(sys.argv[1:]):
        from clplat.help import help_text

        print(help_text(sys.argv[1:]))
    else:
        from clplat.command import run_command

        run_command()


if __name__ == "__main__":
    main()
