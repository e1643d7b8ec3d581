"""From finished runs to a table, figures and the TensorBoard command: `python -m clplat.report`."""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from rich.console import Console
from rich.table import Table

from clplat.directory import LINES, MATRIX, RESULT, read_config, read_result
from clplat.figures import anytime_figure, curves_figure, matrices_figure
from clplat.metrics import Matrix
from clplat.naming import short_names

Runs = list[tuple[Path, dict[str, Any]]]
COLUMNS = {
    "accuracy": "accuracy",
    "accuracy_deviation": "over tasks",
    "cross_entropy": "cross-entropy",
    "across_task_memory": "ATM",
    "multiply_accumulates": "MACs",
    "forgetting": "forgetting",
    "backward_transfer": "backward transfer",
    "anytime_accuracy": "anytime",
    "seconds": "seconds",
    "memory_bytes": "memory held",
}


def find_runs(paths: Sequence[Path]) -> Runs:
    """Every finished run below the paths, by place."""
    files = sorted({file for path in paths for file in path.rglob(RESULT)})
    found = [(file.parent, read_result(file.parent)) for file in files]
    return [(out, result) for out, result in found if result is not None]


def by_configuration(runs: Runs) -> dict[str, Runs]:
    """The runs that differ only in their seeds, best mean accuracy first, under a short name."""
    by_digest: dict[tuple[str, str], Runs] = defaultdict(list)
    for out, result in runs:
        by_digest[(result["scenario"], result["digest"])].append((out, result))
    groups = sorted(by_digest.values(), key=lambda g: -np.mean([r["accuracy"] for _, r in g]))
    firsts = [group[0] for group in groups]
    names = short_names([result for _, result in firsts], [read_config(out) for out, _ in firsts])
    if len({result["scenario"] for _, result in runs}) > 1:
        names = [f"{r['scenario']}: {name}" for name, (_, r) in zip(names, firsts, strict=True)]
    unclear = {name for name in names if names.count(name) > 1}
    return {
        f"{name} {group[0][1]['digest']}" if name in unclear else name: group
        for name, group in zip(names, groups, strict=True)
    }


def by_experience(groups: dict[str, Runs], title: str) -> Table:
    """The last row of the accuracy matrix, mean and standard deviation over the runs."""
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("strategy", no_wrap=True)
    size = max(result["experiences"] for runs in groups.values() for _, result in runs)
    for j in range(size):
        rows.add_column(str(j), justify="right", no_wrap=True)
    for name, runs in groups.items():
        final = np.stack([np.load(out / MATRIX, allow_pickle=False)[-2] for out, _ in runs])
        rows.add_row(name, *(_cell("accuracy", column.tolist()) for column in final.T))
    return rows


def _cell(name: str, values: list[float | None]) -> str:
    known = [v for v in values if v is not None]
    if not known:
        return "-"
    mean, deviation = float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
    if name == "memory_bytes":
        return _bytes(mean)
    if name == "multiply_accumulates":
        return f"{mean / 1e6:.4g} M"
    if name == "seconds":
        return f"{mean:.1f} ± {deviation:.1f}"
    return f"{mean:.3f} ± {deviation:.3f}"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"


def table(groups: dict[str, Runs], title: str) -> Table:
    """Mean and standard deviation over the runs of each configuration."""
    rows = Table(title=title, title_justify="left", title_style="bold")
    rows.add_column("strategy", no_wrap=True)
    rows.add_column("runs", justify="right")
    results = [result for runs in groups.values() for _, result in runs]
    columns = [c for c in COLUMNS if any(result.get(c) is not None for result in results)]
    for column in columns:
        rows.add_column(COLUMNS[column], justify="right", no_wrap=True)
    for name, runs in groups.items():
        cells = [_cell(column, [r.get(column) for _, r in runs]) for column in columns]
        rows.add_row(name, str(len(runs)), *cells)
    return rows


def mean_matrix(runs: Runs) -> Matrix:
    return np.mean([np.load(out / MATRIX, allow_pickle=False) for out, _ in runs], axis=0)


def anytime_curves(groups: dict[str, Runs]) -> dict[str, tuple[list[int], list[list[float]]]]:
    """Samples seen and accuracy of each run, of the configurations evaluated inside experiences."""
    curves = {}
    for name, runs in groups.items():
        if any(result.get("anytime_accuracy") is None for _, result in runs):
            continue
        points = []
        for out, _ in runs:
            lines = map(json.loads, (out / LINES).read_text().splitlines())
            points.append(
                {line["samples"]: line["accuracy"] for line in lines if "samples" in line}
            )
        common = sorted(set.intersection(*map(set, points)))  # groups end at different places
        if common:
            curves[name] = common, [[of_run[samples] for samples in common] for of_run in points]
    return curves


def write_figures(groups: dict[str, Runs], scenarios: str, folder: Path) -> list[Path]:
    """Accuracy against experience, the mean accuracy matrix of each configuration, and accuracy
    against samples where it was measured.
    """
    curves = {name: [r["accuracy_so_far"] for _, r in runs] for name, runs in groups.items()}
    matrices = {name: mean_matrix(runs) for name, runs in groups.items()}
    named = {r.get("score", "accuracy") for runs in groups.values() for _, r in runs}
    score = named.pop() if len(named) == 1 else "score"
    over_seeds = f"{scenarios}: mean and standard deviation over seeds"
    figures = {
        "accuracy.png": curves_figure(curves, over_seeds, score),
        "accuracy_matrix.png": matrices_figure(matrices, f"{scenarios}: mean over seeds", score),
    }
    if anytime := anytime_curves(groups):
        figures["anytime.png"] = anytime_figure(anytime, over_seeds, score)
    for name, figure in figures.items():
        figure.savefig(folder / name)
    return [folder / name for name in figures]


def tensorboard_link(port: int = 6006) -> str:
    """The metrics, one colour a configuration, with no smoothing to bend curves of five points."""
    view = {"smoothing": 0, "tagFilter": "metrics", "runColorGroup": "regex:^(.*)/seed"}
    query = urlencode(view, safe=":/*()")
    return f"http://localhost:{port}/?{query}#timeseries"


def print_table(runs: Runs) -> tuple[Console, dict[str, Runs], str]:
    """Print means and deviations over seeds.

    Returns where it was printed, the runs by configuration and the names of their scenarios.
    """
    groups = by_configuration(runs)
    scenarios = ", ".join(sorted({result["scenario"] for _, result in runs}))
    # Elsewhere than in a terminal a table takes the width that it needs.
    console = Console(width=None if sys.stdout.isatty() else 1000, highlight=False)
    console.print(table(groups, f"{scenarios}: mean ± standard deviation over seeds"))
    return console, groups, scenarios


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m clplat.report",
        description="Tables and figures of the finished runs below some folders.",
    )
    parser.add_argument("folders", nargs="*", type=Path, default=[Path("runs")])
    parser.add_argument("--out", type=Path, help="where figures go (default: the first folder)")
    parser.add_argument(
        "--experiences", action="store_true", help="also the final score on each experience"
    )
    options = parser.parse_args(arguments)
    runs = find_runs(options.folders)
    if not runs:
        looked = " ".join(map(str, options.folders))
        print(
            f"clplat: {looked}: no finished run (a folder with {RESULT}) below it; name the folder "
            "that your runs went to, or run some first: clplat -m strategy=finetune,replay",
            file=sys.stderr,
        )
        sys.exit(2)
    console, groups, scenarios = print_table(runs)
    if options.experiences:
        console.print(by_experience(groups, "score on each experience after the last one"))
    folder = options.out or options.folders[0]
    folder.mkdir(parents=True, exist_ok=True)
    if len({result["experiences"] for _, result in runs}) == 1:
        for file in write_figures(groups, scenarios, folder):
            console.print(f"figure: {file}", soft_wrap=True)
    else:
        console.print("no figures: the runs differ in their number of experiences")
    console.print(f"curves: tensorboard --logdir {options.folders[0]}", soft_wrap=True)
    console.print(f"        then open {tensorboard_link()}", soft_wrap=True, markup=False)


if __name__ == "__main__":
    main()
