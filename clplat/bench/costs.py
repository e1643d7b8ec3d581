"""`python -m clplat.bench.costs [PICTURE]`: what hypernetworks cost as the tasks grow in number.

Seconds of an iteration and bytes held, after 2 to 100 tasks: all earlier tasks or four of them,
targets stored or recomputed. Relative to two tasks, all in one run.
"""

import argparse
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from clplat.bench.hypernets import costs, trained_on
from clplat.figures import COLOURS, MARKERS
from clplat.footprint import memory_bytes

AGES = (2, 5, 10, 20, 50, 100)
KINDS: dict[str, dict[str, Any]] = {
    "all tasks, stored": {},
    "all tasks, recomputed": {"targets": "recomputed"},
    "subset of 4, stored": {"subset": 4},
    "subset of 4, recomputed": {"subset": 4, "targets": "recomputed"},
}


def held(age: int, **options: Any) -> int:
    learner, strategy = trained_on(age, **options)
    embeddings = sum(p.numel() * p.element_size() for p in learner.model.embeddings.values())
    return (memory_bytes(strategy, learner.model) or 0) + embeddings


def draw(seconds: dict[str, list[float]], kilobytes: dict[str, list[float]]) -> Figure:
    """Both, against the number of tasks."""
    figure = Figure(figsize=(8, 3.2), layout="constrained", dpi=120)
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for k, kind in enumerate(KINDS):
        style: dict[str, Any] = {"color": COLOURS[k], "marker": MARKERS[k], "label": kind}
        left.plot(AGES, [s / seconds[kind][0] for s in seconds[kind]], **style)
        right.plot(AGES, kilobytes[kind], **style)
    left.set_ylabel("cost of an iteration, 2 tasks = 1")
    right.set_ylabel("kB held for earlier tasks")
    for axes in (left, right):
        axes.set_xlabel("tasks learned")
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    left.legend(frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clplat.bench.costs", description=__doc__)
    parser.add_argument("picture", nargs="?", help="where to draw both curves, a .png or .svg")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'tasks learned':<40}" + "".join(f"{age:>9}" for age in AGES))
    seconds, kilobytes = {}, {}
    for kind, settings in KINDS.items():
        seconds[kind] = costs(AGES, **settings)
        kilobytes[kind] = [held(age, **settings) / 1000 for age in AGES]
        of_two = "".join(f"{s / seconds[kind][0]:9.2f}" for s in seconds[kind])
        print(f"{kind + ', cost of an iteration':<40}{of_two}", flush=True)
        print(f"{kind + ', kB':<40}" + "".join(f"{kb:9.0f}" for kb in kilobytes[kind]))
    if options.picture:
        draw(seconds, kilobytes).savefig(options.picture)


if __name__ == "__main__":
    main()
