"""The kernels of delta_rule compile for every target, and multiply by its matrix units."""

import pytest
import torch
from torch import Tensor

from clplat.ops.delta_rule import triton as tier
from tests.ops.ahead_of_time import TARGETS, assert_compiles, kernels


def check(target: str, dtype: torch.dtype, width: int, packed: bool = False) -> None:
    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    x = empty(1 if packed else 8, 4096, 16, width)
    gate = empty(*x.shape[:3], dtype=torch.float32)
    state = empty(2 if packed else 8, 16, width, width, dtype=torch.float32)
    cu_seqlens = torch.tensor([0, 5, 4096]) if packed else None
    calls = [
        lambda: tier.forward(x, x, x, gate, gate, state, cu_seqlens),
        lambda: tier.backward(x, state, x, x, x, gate, gate, state, cu_seqlens),
    ]
    assert_compiles(calls, tier, target, matrices=tuple(kernels(tier)))


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_compiles(target: str, width: int) -> None:
    check(target, torch.bfloat16, width)


@pytest.mark.parametrize("target", TARGETS)
def test_float32_compiles(target: str) -> None:
    check(target, torch.float32, 64)


@pytest.mark.parametrize("target", TARGETS)
def test_packed_kernels_compile(target: str) -> None:
    check(target, torch.bfloat16, 48, packed=True)
