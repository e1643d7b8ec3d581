"""`python -m clplat.bench.gpu`: every op on a CUDA device, against what the card could do.

One line an op and direction: time, bytes and operations a second, and the share of the bound, the
longer of the times that the least traffic and the arithmetic would take at the card's best pace.
Ops of flash-linear-attention and mamba-ssm are timed beside ours where they are installed.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from clplat.ops.delta_rule import delta_rule
from clplat.ops.gated_rnn import gated_rnn
from clplat.ops.gated_scan import gated_scan
from clplat.ops.linear_scan import linear_scan
from clplat.ops.neural_memory import neural_memory
from clplat.ops.newton_scan import newton_scan
from clplat.ops.selective_scan import selective_scan
from clplat.ops.ssd import ssd

BYTES_PER_SECOND, OPERATIONS_PER_SECOND = 4.3e12, 790e12  # measured on an H200: copy, bf16 product
HEAD, STATE, CHUNK = 64, 16, 64


@dataclass(frozen=True)
class Case:
    """An op, its inputs, and the operations that one forward pass needs."""

    name: str
    run: Callable[..., Tensor]
    inputs: list[Tensor]
    operations: float
    rival: str = ""  # package, module and function of another library
    call: Callable[..., Tensor] | None = None  # how that function is called


def cases(batch: int, time: int, width: int, device: str, dtype: torch.dtype) -> Iterator[Case]:
    """The ops at one size; heads of HEAD channels where an op has heads."""
    heads, tokens = width // HEAD, batch * time

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    a, x = draw(batch, time, width).sigmoid(), draw(batch, time, width)
    q, k, v = (draw(batch, time, heads, HEAD) for _ in range(3))
    k = normalize(k, dim=-1)
    gates = [draw(batch, time, heads).sigmoid() for _ in range(3)]
    log_decay = gates[0].log()
    products = tokens * heads * 2 * HEAD * (2 * CHUNK + 2 * HEAD)  # in a chunk, with the state

    yield Case(
        "linear_scan",
        lambda a, x: linear_scan(a, x)[0],
        [a, x],
        2 * x.numel(),
        "fla.ops.hgrn.fused_recurrent_hgrn",
        lambda rival, a, x: rival(x, a.log())[0],
    )
    yield Case(
        "gated_scan, minGRU",
        lambda gate, value: gated_scan("mingru", gate, value)[0],
        [draw(batch, time, width), x],
        12 * x.numel(),
    )
    rows = -torch.rand(width, STATE, device=device)
    dt, skip = a.clone(), torch.ones(width, device=device)
    yield Case(
        "selective_scan, N=16",
        lambda *inputs: selective_scan(*inputs)[0],
        [x, dt, rows, draw(batch, time, STATE), draw(batch, time, STATE), skip],
        7 * x.numel() * STATE,
        "mamba_ssm.ops.selective_scan_interface.selective_scan_fn",
        lambda rival, x, dt, A, B, C, D: rival(x.mT, dt.mT, A, B.mT, C.mT, D).mT,
    )
    yield Case(
        "ssd",
        lambda *inputs: ssd(*inputs)[0],
        [q, k, v, log_decay],
        products,
        "fla.ops.simple_gla.chunk_simple_gla",
        lambda rival, q, k, v, g: rival(q, k, v, g)[0],
    )
    yield Case(
        "delta_rule with decay",
        lambda *inputs: delta_rule(*inputs)[0],
        [q, k, v, gates[1], log_decay],
        2 * products,
        "fla.ops.gated_delta_rule.chunk_gated_delta_rule",
        lambda rival, q, k, v, beta, g: rival(q, k, v, g, beta)[0],
    )
    yield Case(
        "neural_memory, linear",
        lambda q, k, v, rate, weights, momentum, decay: neural_memory(
            q, k, v, rate / CHUNK, (weights,), momentum=momentum, decay=decay, chunk=CHUNK
        )[0],
        [q, k, v, gates[0], draw(heads, HEAD, HEAD) / 8, gates[1], gates[2]],
        2 * products,
    )
    blocks = width // (2 * HEAD)
    yield Case(
        "gated_rnn, leaky tanh, heads of 128",
        lambda x, weight: gated_rnn("tanh", x, weight)[0],
        [x.unsqueeze(2), draw(blocks, 1, 2 * HEAD, 2 * HEAD) / 16],
        2 * x.numel() * 2 * HEAD,
    )
    yield Case(
        "newton_scan, diagonal RNN",
        lambda x, recurrent: newton_scan("elman", x, recurrent)[0],
        [x, draw(width).tanh()],
        6 * x.numel(),
    )


def milliseconds(run: Callable[[], object]) -> float:
    """Median of repeated calls, by the device's own clock."""
    from triton.testing import do_bench

    return float(do_bench(run, return_mode="median"))  # type: ignore[arg-type]


def traffic(tensors: list[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(case: Case, time: Callable[[Callable[[], object]], float]) -> Iterator[tuple]:
    """(what, milliseconds, bytes/s, operations/s, share of the bound) of each direction."""
    inputs = [tensor.detach().requires_grad_() for tensor in case.inputs]
    y = case.run(*inputs)
    weight = torch.randn_like(y)
    forward = traffic([*inputs, y])
    both = forward + traffic([*inputs, *inputs, y])
    rows = [(case.name, case.run, "")]
    if rival := installed(case):
        rows.append((case.rival, lambda *tensors: case.call(rival, *tensors), "  "))  # type: ignore[misc]

    for name, run, indent in rows:

        def step(run: Callable[..., Tensor] = run) -> object:
            return torch.autograd.grad(run(*inputs), inputs, weight)

        def infer(run: Callable[..., Tensor] = run) -> object:
            with torch.no_grad():
                return run(*inputs)

        for direction, call, moved, factor in (
            ("forward", infer, forward, 1),
            ("and backward", step, both, 3),
        ):
            taken = time(call)
            operations = factor * case.operations
            bound = max(moved / BYTES_PER_SECOND, operations / OPERATIONS_PER_SECOND) * 1e3
            per_second = (moved / taken * 1e3, operations / taken * 1e3)
            yield f"{indent}{name}, {direction}", taken, *per_second, bound / taken


def installed(case: Case) -> Callable[..., Tensor] | None:
    """The other library's function, if the library is there."""
    if not case.rival:
        return None
    module, _, function = case.rival.rpartition(".")
    try:
        return getattr(importlib.import_module(module), function)
    except ImportError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clplat.bench.gpu", description=__doc__)
    for name, default in (("batch", 8), ("time", 4096), ("width", 2048)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"default: {default}")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("python -m clplat.bench.gpu: no CUDA device on this machine; nothing measured")
        sys.exit(2)
    sizes = (options.batch, options.time, options.width)
    print(f"{torch.cuda.get_device_name()}, B={sizes[0]} T={sizes[1]} D={sizes[2]}, bfloat16\n")
    print("| op | ms | GB/s | TFLOP/s | of the bound |\n|---|---|---|---|---|")
    for case in cases(*sizes, "cuda", torch.bfloat16):
        for name, taken, moved, operations, share in measure(case, milliseconds):
            figures = f"{taken:.3f} | {moved / 1e9:.0f} | {operations / 1e12:.2f} | {share:.0%}"
            print(f"| {name} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
