"""`make bench`: figures of the loop, replay, start-up, scenarios, hypernetworks and ops."""

import argparse
import subprocess
import sys
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from avalanche.training.plugins import ReplayPlugin
from avalanche.training.storage_policy import ClassBalancedBuffer
from hydra.utils import get_class

from clplat.bench import hypernets, ops, scenarios
from clplat.bench.data import split_floats
from clplat.bench.loops import avalanche, bare, mlp, ours, stream
from clplat.bench.podnet import distillation
from clplat.bench.report import report
from clplat.bench.runs import checkpoints
from clplat.bench.strategies import Stopwatch, accuracies, strategies
from clplat.bench.timing import Figure, clock, in_turns, ratio
from clplat.learner import Learner
from clplat.quiet import hush_avalanche

LOOPS = [((784, 400, 400, 10), 128, 0.95, 2.0), ((784, 64, 64, 10), 32, 0.85, 3.0)]


def loop() -> Iterator[Figure]:
    """Our loop against a bare one and against stock Avalanche, one epoch on five experiences.

    How many times Avalanche's pace the bare loop reaches is printed too: no loop can do better.
    """
    pairs = split_floats()
    train = stream(pairs)
    for widths, batch_size, of_bare, of_avalanche in LOOPS:
        contenders = {
            "bare": partial(bare, pairs, widths, batch_size),
            "ours": partial(ours, train, widths, batch_size),
            "avalanche": partial(avalanche, train, widths, batch_size),
        }
        seconds = in_turns(contenders, rounds=4)
        name = f"loop, MLP {'-'.join(map(str, widths))}, batch {batch_size}"
        yield Figure(f"{name}: of a bare loop", ratio(seconds["bare"], seconds["ours"]), of_bare)
        speed = ratio(seconds["avalanche"], seconds["ours"])
        yield Figure(f"{name}: times Avalanche", speed, of_avalanche)
        print(f"    (the bare loop: {ratio(seconds['avalanche'], seconds['bare']):.2f} times)")


def online_replay() -> Iterator[Figure]:
    """Experiences of 10 samples, memory 500 class-balanced, linear model, batch 10."""
    small = [(x[:400].split(10), y[:400].split(10)) for x, y in split_floats()]
    chunks = [pair for xs, ys in small for pair in zip(xs, ys, strict=True)]
    train = stream(chunks)

    def stock() -> Iterator[float]:
        policy = ClassBalancedBuffer(500)
        return avalanche(train, (784, 10), 10, [ReplayPlugin(500, storage_policy=policy)])

    def replay() -> Iterator[float]:
        plugin = get_class("strategies.replay.Replay")(500, "class_balanced")
        return ours(train, (784, 10), 10, [plugin])

    seconds = in_turns({"avalanche": stock, "ours": replay}, rounds=3)
    name = f"online replay, mean of {len(chunks)} experiences of 10: times Avalanche"
    yield Figure(name, sum(seconds["avalanche"]) / sum(seconds["ours"]), 10.0)


def growth() -> Iterator[Figure]:
    """Does an iteration cost more after 100 experiences than after a few?

    Learners that have seen 2, 34, 67 and 100 experiences are timed in turns on further ones; the
    figure is the slope of a line through their medians, over 100 experiences, as a share of the
    mean.
    """
    size, batch_size = 640, 16
    pairs = split_floats()
    chunks = [(x[k : k + size], y[k : k + size]) for x, y in pairs for k in range(0, 12000, size)]
    train = stream((chunks * 2)[:100])
    strategies = {
        "finetune": ("strategies.finetune.FineTune", {}),
        "replay": ("strategies.replay.Replay", {"capacity": 500}),
        "ewc": ("strategies.ewc.EWC", {"strength": 1.0, "fisher": "batch"}),
        "lwf": ("strategies.lwf.LwF", {}),
        "derpp": ("strategies.der.DER", {"capacity": 500}),
    }
    ages = (2, 34, 67, 100)
    for name, (target, arguments) in strategies.items():
        costs: dict[int, list[float]] = {age: [] for age in ages}
        learners = {}
        for age in ages:
            sgd, watch = partial(torch.optim.SGD, lr=0.01), Stopwatch()
            plugins = [get_class(target)(**arguments), watch]
            learners[age] = Learner(mlp(784, 64, 10), sgd, batch_size=batch_size, plugins=plugins)
            learners[age].train(train[:age])
        for experience in train[:12]:
            for age, learner in learners.items():
                learner.train(experience)
                costs[age].append(learner.plugins[1].costs[-1])
        medians = [float(np.median(costs[age])) for age in ages]
        slope = np.polyfit(ages, medians, 1)[0] * 100 / np.mean(medians) * 100
        label = f"growth, {name}: cost of an iteration over 100 experiences"
        yield Figure(label, float(slope), 10.0, "%", at_most=True)


def startup() -> Iterator[Figure]:
    """The time to the first word, and what the top-level import pulls in."""

    def seconds(*command: str) -> float:
        began = clock()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        return clock() - began

    best = min(seconds("-m", "clplat", "--help") for _ in range(7))
    yield Figure("clplat --help", best, 0.8, "s", at_most=True)
    heavy = "import clplat, sys; sys.exit(len({'torch', 'avalanche'} & set(sys.modules)))"
    pulled = subprocess.run([sys.executable, "-c", heavy], check=False).returncode
    yield Figure("import clplat: of torch and avalanche imported", pulled, 0, "", at_most=True)


OF_LOOPS = (
    loop,
    online_replay,
    growth,
    strategies,
    accuracies,
    distillation,
    checkpoints,
    startup,
    report,
)
OF_OPS = (ops.scan, ops.memory, ops.recurrent, ops.chunked, ops.neural_memory_peak, ops.length)
OF_SCENARIOS = (scenarios.small_steps, scenarios.n_parity, scenarios.few_shot)
OF_HYPERNETS = (hypernets.regulariser, hypernets.subset, hypernets.mixed)
PARTS = {part.__name__: part for part in (*OF_LOOPS, *OF_SCENARIOS, *OF_HYPERNETS, *OF_OPS)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clplat.bench", description=__doc__)
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(PARTS)} (default: all)")
    threads_help = "of torch (default: 1 for the loop, as clplat; every core for the ops)"
    parser.add_argument("--threads", type=int, help=threads_help)
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"no part {', '.join(sorted(unknown))}; choose from {', '.join(PARTS)}")
    hush_avalanche()
    warnings.filterwarnings("ignore", "No loggers specified")  # and none wanted
    cores = torch.get_num_threads()
    missed = 0
    for name in options.parts or PARTS:
        torch.set_num_threads(options.threads or (cores if PARTS[name] in OF_OPS else 1))
        for figure in PARTS[name]():
            print(figure, flush=True)
            missed += not figure.met
    print(f"{missed} figures missed" if missed else "all figures met")


if __name__ == "__main__":
    main()
