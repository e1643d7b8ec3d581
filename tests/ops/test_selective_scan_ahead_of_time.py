"""The kernels of selective_scan compile for every target."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.selective_scan import triton as tier
from clplat.ops.selective_scan.chunks import count_rows
from tests.ops.ahead_of_time import TARGETS, assert_compiles


def calls(
    batch: int,
    time: int,
    width: int,
    size: int,
    dtype: torch.dtype,
    negative: bool = False,
    cu_seqlens: Tensor | None = None,
) -> list[Callable[[], Any]]:
    """Gates and states in float32, whatever the dtype of the rest."""

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    x, B = empty(batch, time, width, dtype=dtype), empty(batch, time, size, dtype=dtype)
    dt, A, D = empty(batch, time, width), empty(width, size), empty(width)
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    state = empty(sequences, width, size)
    starts = empty(count_rows(batch * time, sequences), width, size)
    inputs = (x, dt, A, B, B, D)
    return [
        lambda: tier.forward(*inputs, state, negative, cu_seqlens),
        lambda: tier.backward(x, state, *inputs, starts, negative, cu_seqlens),
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile(target: str, dtype: torch.dtype) -> None:
    """The backward kernel may take all 255 registers, for a warp a program is enough."""
    assert_compiles(calls(8, 4096, 2048, 16, dtype), tier, target)


@pytest.mark.parametrize("target", TARGETS)
def test_wide_states_compile(target: str) -> None:
    assert_compiles(calls(8, 4096, 2048, 128, torch.bfloat16, negative=True), tier, target)


@pytest.mark.parametrize("target", TARGETS)
def test_packed_kernels_compile(target: str) -> None:
    packed = calls(1, 64, 48, 3, torch.float32, cu_seqlens=torch.tensor([0, 5, 64]))
    assert_compiles(packed, tier, target)
