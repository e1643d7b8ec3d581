"""`clplat-report` and `python -m clplat.report`: compare finished runs, or watch a sweep."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clplat.directory import RESULT
from clplat.errors import InputError
from clplat.links import tensorboard_told

FORMATS = ("terminal", "markdown", "csv", "latex")


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="clplat-report",
        description="Compare the finished runs below some folders: prints a table for each "
        "scenario, and writes report.html, table.md, .csv and .tex, and figures.",
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")])
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="test every configuration against this one, by the name in the table",
    )
    parser.add_argument(
        "--metric",
        default="accuracy",
        help="what is ranked and tested, by its name in result.json (default: accuracy)",
    )
    parser.add_argument(
        "--experiences", action="store_true", help="also the final score on each experience"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--out", type=Path, help="where files go (default: the first folder)")
    instead.add_argument(
        "--format", choices=FORMATS, help="print the tables in this form alone; no files"
    )
    instead.add_argument(
        "--watch", action="store_true", help="show how far the runs of a sweep are until all end"
    )
    options = parser.parse_args(arguments)
    if options.watch and (options.baseline or options.experiences or options.metric != "accuracy"):
        parser.error("--watch shows runs that go on: it takes folders alone")
    if options.experiences and options.format in ("markdown", "csv", "latex"):
        parser.error("--experiences is a table for the terminal; leave out --format")
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(arguments)
    try:
        if options.watch:
            from clplat.report.watch import watch

            watch(options.folders)
        else:
            report(options)
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except InputError as error:
        print(f"clplat-report: {error}", file=sys.stderr)
        sys.exit(2)


def report(options: argparse.Namespace) -> None:
    """Print the tables; unless one form alone is asked for, write all of them, and figures."""
    from clplat.report.comparison import compare
    from clplat.report.formats import comma_separated, latex, markdown
    from clplat.report.shown import show_experiences, show_tables
    from clplat.report.table import Question

    if options.out is not None and options.out.exists() and not options.out.is_dir():
        raise InputError(f"--out {options.out}: is a file; expected a folder; it need not exist")
    comparison = compare(options.folders, Question(options.metric, options.baseline))
    if comparison is None:
        looked = " ".join(map(str, options.folders))
        raise InputError(
            f"{looked}: no finished run (a folder with {RESULT}) below it; name the folder that "
            "your runs went to, or run some first: clplat -m strategy=finetune,replay"
        )
    for note in comparison.notes:
        print(f"clplat-report: {note}", file=sys.stderr)
    if options.format == "csv":
        print(comma_separated(comparison.configurations, comparison.tests), end="")
    elif options.format in ("markdown", "latex"):
        written = markdown if options.format == "markdown" else latex
        print(written(comparison.tables), end="")
    else:
        show_tables(comparison)
        if options.experiences:
            show_experiences(comparison)
    if options.format is None:
        write(comparison, options.out or options.folders[0])
        print(tensorboard_told(options.folders[0]))


def write(comparison: Any, folder: Path) -> None:
    """Write everything to a folder, and say what is there."""
    from clplat.report.outputs import write_outputs

    try:
        outputs = write_outputs(comparison, folder)
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be written to ({error.strerror}); name another folder by --out"
        ) from error
    print(outputs.ranks)
    print(f"page: {outputs.page}")
    print(f"beside it: {', '.join(outputs.tables)}")
    if outputs.figures:
        print(f"figures, .png and .pdf: {', '.join(outputs.figures)}")


if __name__ == "__main__":
    main()
