"""The ops' CPU forms against the loops that they replace, forward and backward, float32."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._higher_order_ops.associative_scan import associative_scan
from torch.profiler import ProfilerActivity, profile

from clplat.bench.timing import Figure, clock, in_turns, ratio
from clplat.layers.recurrent import GRU, LSTM, LeakyRNN
from clplat.ops.delta_rule import delta_rule
from clplat.ops.delta_rule.reference import delta_rule as delta_rule_loop
from clplat.ops.linear_scan import linear_scan
from clplat.ops.linear_scan.reference import linear_scan as linear_scan_loop
from clplat.ops.neural_memory import neural_memory
from clplat.ops.neural_memory.reference import neural_memory as neural_memory_loop
from clplat.ops.ssd import ssd
from clplat.ops.ssd.reference import ssd as ssd_loop

Step = Callable[[], object]


def leaves(*tensors: Tensor) -> list[Tensor]:
    return [tensor.requires_grad_() for tensor in tensors]


def step(function: Callable[..., Tensor], inputs: list[Tensor]) -> Step:
    """Forward, then the gradients of a random loss by all inputs."""
    weight = torch.randn_like(function(*inputs))

    def run() -> object:
        return torch.autograd.grad(function(*inputs), inputs, weight)

    return run


def compare(contenders: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each contender, in turns, after one call that warms it up."""
    for run in contenders.values():
        run()

    def timed(run: Step) -> Iterator[float]:
        began = clock()
        run()
        yield clock() - began

    return in_turns({name: partial(timed, run) for name, run in contenders.items()}, rounds)


def peak_bytes(run: Step) -> int:
    """The most that `run` holds at a time, of what it allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        held = run()
    changes = [
        (event.start_ns(), event.nbytes())  # type: ignore[attr-defined]
        for event in profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    ]
    del held
    return max(accumulate(change for _, change in sorted(changes)))


def scan() -> Iterator[Figure]:
    """linear_scan, B=16 T=1024 D=256, against torch's associative_scan, a loop, and memory."""
    shape = (16, 1024, 256)
    inputs = leaves(torch.rand(shape), torch.randn(shape))

    def combine(left: tuple, right: tuple) -> tuple:
        return right[0] * left[0], right[0] * left[1] + right[1]

    def associative(a: Tensor, x: Tensor) -> Tensor:
        return associative_scan(combine, (a, x), 1, combine_mode="generic")[1]

    def loop(a: Tensor, x: Tensor) -> Tensor:
        return linear_scan_loop(a, x, torch.zeros_like(x[:, 0]))

    def bandwidth() -> None:
        """Moves what forward and backward must: 2 and then 3 tensors read, 1 and then 2 written."""
        a, x = (tensor.detach() for tensor in inputs)
        torch.mul(a, x, out=written)
        torch.addcmul(a, x, written, out=written)
        torch.mul(a, 2.0, out=written)

    written = torch.empty(shape)
    seconds = compare(
        {
            "ours": step(lambda a, x: linear_scan(a, x)[0], inputs),
            "associative": step(associative, inputs),
            "loop": step(loop, inputs),
            "bandwidth": bandwidth,
        },
        rounds=9,
    )
    name = "linear_scan, B=16 T=1024 D=256"
    yield Figure(
        f"{name}: times associative_scan", ratio(seconds["associative"], seconds["ours"]), 4
    )
    yield Figure(f"{name}: times a loop", ratio(seconds["loop"], seconds["ours"]), 3)
    print(
        f"    ({ratio(seconds['bandwidth'], seconds['ours']):.2f} of the pace that memory allows)"
    )


def memory() -> Iterator[Figure]:
    """What linear_scan allocates at its peak beyond inputs, outputs and gradients."""
    a, x = leaves(torch.rand(16, 1024, 256), torch.randn(16, 1024, 256))
    weight = torch.randn(x.shape)

    def run() -> object:
        h, _ = linear_scan(a, x)
        return h, torch.autograd.grad(h, (a, x), weight)

    size = x.numel() * x.element_size()
    name = "linear_scan: peak memory in inputs' sizes, outputs and gradients not counted"
    yield Figure(name, peak_bytes(run) / size - 3, 5, "", at_most=True)


def recurrent() -> Iterator[Figure]:
    """Layers against torch's own of the same sizes, T=256 B=64 H=128, input product included."""
    x = leaves(torch.randn(64, 256, 128))
    pairs: list[tuple[str, nn.Module, nn.Module, float]] = [
        ("leaky RNN: times nn.RNN", LeakyRNN(128), nn.RNN(128, 128, batch_first=True), 1.0),
        ("LSTM: times nn.LSTM", LSTM(128), nn.LSTM(128, 128, batch_first=True), 1.0),
        ("GRU: times nn.GRU", GRU(128), nn.GRU(128, 128, batch_first=True), 1.1),
    ]
    for name, ours, theirs, target in pairs:
        contenders = {}
        for key, layer in (("ours", ours), ("theirs", theirs)):
            inputs = [*x, *layer.parameters()]
            contenders[key] = step(lambda *tensors, layer=layer: layer(tensors[0])[0], inputs)
        seconds = compare(contenders, rounds=9)
        yield Figure(f"{name}, T=256 B=64 H=128", ratio(seconds["theirs"], seconds["ours"]), target)


def chunked() -> Iterator[Figure]:
    """The ops that work in chunks against their loops over time, B=2 T=1024 H=4 d=64.

    The loops take the steps from `unbind`; where they index the time axis, `x[:, t]`, autograd
    makes a gradient of the whole sequence for each step: how much that costs is printed too.
    """
    q, k, v = (torch.randn(2, 1024, 4, 64) for _ in range(3))
    k = nn.functional.normalize(k, dim=-1)
    beta, momentum, decay = (torch.rand(2, 1024, 4) for _ in range(3))
    log_decay, weights = -torch.rand(2, 1024, 4), torch.randn(4, 64, 64) / 8
    state, rows = torch.zeros(2, 4, 64, 64), weights.expand(2, -1, -1, -1)

    def remember(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        rate, momentum, decay = gates
        gated = partial(neural_memory, momentum=momentum, decay=decay, chunk=64)
        return gated(q, k, v, rate, (weights,))[0]

    def remember_in_turn(q: Tensor, k: Tensor, v: Tensor, *gates: Tensor) -> Tensor:
        rate, momentum, decay = gates
        start = (rows,), (state,), (rows,), 0
        settings = ("l2", 1.0, "decay", 4.0, 64)
        return neural_memory_loop(q, k, v, rate, start, momentum, decay, *settings)[0]

    def delta(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
        return delta_rule(q, k, v, beta, log_decay)[0]

    def delta_in_turn(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, log_decay: Tensor) -> Tensor:
        return delta_rule_loop(q, k, v, beta, log_decay, state)[0]

    def dual(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        return ssd(q, k, v, log_decay)[0]

    def dual_in_turn(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor) -> Tensor:
        return ssd_loop(q, k, v, log_decay, state)[0]

    memory_name = "neural_memory, linear, momentum and decay"
    for name, ours, loop, inputs, target in (
        ("delta_rule with decay", delta, delta_in_turn, [q, k, v, beta, log_decay], 25),
        ("ssd", dual, dual_in_turn, [q, k, v, log_decay], 15),
        (memory_name, remember, remember_in_turn, [q, k, v, beta / 64, momentum, decay], 15),
    ):
        inputs = leaves(*(x.clone() for x in inputs))
        contenders = {"ours": step(ours, inputs), "loop": step(loop, inputs)}
        seconds = compare(contenders, rounds=5)
        yield Figure(f"{name}: times its loop", ratio(seconds["loop"], seconds["ours"]), target)
        with mock.patch.object(Tensor, "unbind", by_index):
            began = clock()
            contenders["loop"]()
            print(f"    ({(clock() - began) / min(seconds['ours']):.0f} times the loop by index)")


def by_index(x: Tensor, dim: int) -> list[Tensor]:
    return [x.select(dim, t) for t in range(x.shape[dim])]


def neural_memory_peak() -> Iterator[Figure]:
    """What neural_memory allocates at its peak, in its states: with one a token, 64 a chunk.

    An input, an output or a gradient counts as one: a chunk of 64 tokens is as large as a state.
    """
    states = []
    for time in (1024, 2048):
        weights, rate = torch.randn(4, 64, 64), torch.rand(1, time, 4) / 64
        inputs = leaves(*(torch.randn(1, time, 4, 64) for _ in range(3)), weights)
        memory = partial(neural_memory, decay=torch.ones(1, time, 4), chunk=64)
        run = step(lambda *x, memory=memory, rate=rate: memory(*x[:3], rate, x[3:])[0], inputs)

        states.append(peak_bytes(run) / (weights.numel() * weights.element_size()) / (time / 64))
    name = "neural_memory: peak memory in states, for a chunk of 64 tokens"
    yield Figure(name, states[1], 32, "", at_most=True)
    name = "neural_memory: the same at T=2048, by that at T=1024"
    yield Figure(name, states[1] / states[0], 1.1, "", at_most=True)


def layers() -> dict[str, Callable[[int], nn.Module]]:
    """What makes each layer that has a config file of its own, but for attention on all tokens."""
    found = {}
    for file in sorted(Path(str(files("clplat.conf"))).glob("backbone/*.yaml")):
        with initialize_config_module("clplat.conf", version_base="1.3"):
            node = compose("config", overrides=[f"backbone={file.stem}"]).backbone
        single = "[sequence" in file.read_text() and isinstance(node.layer, DictConfig)
        if single and file.stem != "attention":
            found[file.stem] = instantiate(node.layer, _convert_="all")
    return found


def length() -> Iterator[Figure]:
    """How each layer's cost grows with T from 256 to 16384: the exponent of a fitted power."""
    times = [256, 1024, 4096, 16384]
    for name, make in layers().items():
        layer, costs = make(32), []
        for time in times:
            x = leaves(torch.randn(1, time, 32))
            inputs = [*x, *layer.parameters()]
            run = step(lambda *tensors, layer=layer: layer(tensors[0])[0], inputs)
            costs.append(min(compare({"ours": run}, rounds=3)["ours"]))
        exponent = float(np.polyfit(np.log(times), np.log(costs), 1)[0])
        yield Figure(f"{name}: exponent of cost in T", exponent, 1.1, "", at_most=True)
