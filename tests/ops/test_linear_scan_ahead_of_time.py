"""The kernels of linear_scan compile for every target."""

import pytest
import torch

from clplat.ops.linear_scan import triton as tier
from tests.ops.ahead_of_time import TARGETS, assert_compiles


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.complex64])
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile(target: str, dtype: torch.dtype) -> None:
    x = torch.empty(8, 4096, 2048, dtype=dtype, device="meta")
    state = torch.empty(8, 2048, dtype=dtype, device="meta")
    calls = [
        lambda: tier.forward(x, x, state, False, None),
        lambda: tier.backward(x, state, x, x, state, True, None),
    ]
    assert_compiles(calls, tier, target, registers=64)


@pytest.mark.parametrize("target", TARGETS)
def test_packed_kernels_compile(target: str) -> None:
    x = torch.empty(1, 64, 48, device="meta")
    state = torch.empty(2, 48, device="meta")
    cu_seqlens = torch.tensor([0, 5, 64])
    calls = [
        lambda: tier.forward(x, x, state, False, cu_seqlens),
        lambda: tier.backward(x, state, x, x, state, False, cu_seqlens),
    ]
    assert_compiles(calls, tier, target, registers=64)
