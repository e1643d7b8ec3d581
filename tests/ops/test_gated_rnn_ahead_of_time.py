"""The kernels of gated_rnn compile for every target, at the widest heads they are launched for."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from clplat.ops.gated_rnn import triton as tier
from clplat.ops.gated_rnn.kinds import ELMAN, KINDS, empty_trace
from tests.ops.ahead_of_time import SHARED_LIMIT, TARGETS, assert_compiles, built_for, kernels

# A thread's registers: AMD's cards keep the matrices there too, in a file twice as large.
REGISTERS = {"sm_80": 240, "sm_90": 240, "sm_100": 240, "gfx942": 384}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> Iterator[str]:
    """What the kernels hold is asked of a build of PyTorch for the target."""
    with built_for(request.param):
        yield request.param


def widest(gates: int, dtype: torch.dtype) -> int:
    """The widest head whose matrices the kernels hold."""
    held = [
        width
        for width in (16, 32, 64, 128, 256, 512)
        if tier.resident_bytes(torch.empty(1, gates, width, width, dtype=dtype, device="meta"))
        <= tier.resident_limit(tier.shared_memory(torch.device("meta")))
    ]
    return held[-1]


def calls(
    kind: str, dtype: torch.dtype, heads: int, width: int, per_unit: bool = True
) -> list[Callable[[], object]]:
    sizes, batch, time = KINDS[kind], 64, 512

    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    x = empty(batch, time, sizes.gates, heads * width)
    weight = empty(heads, sizes.gates, width, width)
    initial = empty(batch, sizes.states, heads * width, dtype=torch.float32)
    more = empty(heads * width) if per_unit and kind in (*ELMAN, "gru") else None
    h = empty(time, batch, heads * width).transpose(0, 1)
    trace = empty_trace(kind, h, weight, more)
    return [
        lambda: tier.forward(kind, x, weight, initial, more),
        lambda: tier.backward(kind, h, initial, h, *trace, weight, initial, more),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_widest_heads_compile(target: str, dtype: torch.dtype) -> None:
    launched = [
        call
        for kind in ("tanh", "lstm", "gru", "slstm")
        for call in calls(kind, dtype, 1, widest(KINDS[kind].gates, dtype))
    ]
    assert_compiles(launched, tier, target, REGISTERS[target], tuple(kernels(tier)))


def test_heads_that_fit_a_smaller_shared_memory_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is asked of the device: 99 KiB on cards other than those for data centres."""
    monkeypatch.setattr(tier, "shared_memory", lambda device: SHARED_LIMIT["sm_89"])
    assert [widest(gates, torch.bfloat16) for gates in (1, 3, 4)] == [128, 64, 64]
    launched = [
        call
        for kind in ("tanh", "lstm", "gru", "slstm")
        for dtype in (torch.bfloat16, torch.float32)
        for call in calls(kind, dtype, 1, widest(KINDS[kind].gates, dtype))
    ]
    assert_compiles(launched, tier, "sm_89", 255, tuple(kernels(tier)))


def test_padded_heads_compile(target: str) -> None:
    """Other than a power of two; odd widths compile too, but some spill a few bytes a thread."""
    launched = [
        call
        for kind in ("relu", "leaky_relu", "lstm", "gru", "slstm")
        for call in calls(kind, torch.bfloat16, 3, 48, per_unit=False)
    ]
    assert_compiles(launched, tier, target, REGISTERS[target], tuple(kernels(tier)))


def test_what_the_kernels_hold(target: str) -> None:
    half, single = torch.bfloat16, torch.float32
    amd = target == "gfx942"
    assert [widest(gates, half) for gates in (1, 3, 4)] == (
        [128, 64, 64] if amd else [256, 128, 128]
    )
    assert [widest(gates, single) for gates in (1, 3, 4)] == (
        [64, 32, 32] if amd else [128, 64, 64]
    )
