"""The kernels of ssd compile for every target, and multiply by its matrix units."""

import pytest
import torch
from torch import Tensor

from clplat.ops.ssd import triton as tier
from tests.ops.ahead_of_time import TARGETS, assert_compiles

KERNELS = ("states_kernel", "output_kernel", "gradient_kernel")


def check(
    target: str, dtype: torch.dtype, k: int, v: int, registers: int, matrices: tuple[str, ...] = ()
) -> None:
    def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q, y = empty(8, 4096, 16, k), empty(8, 4096, 16, v)
    log_decay = empty(8, 4096, 16, dtype=torch.float32)
    state = empty(8, 16, k, v, dtype=torch.float32)
    calls = [
        lambda: tier.forward(q, q, y, log_decay, state, None),
        lambda: tier.backward(y, state, q, q, y, log_decay, state, None),
    ]
    assert_compiles(calls, tier, target, registers, matrices)


@pytest.mark.parametrize(("k", "v"), [(64, 64), (128, 64), (128, 128)])
@pytest.mark.parametrize("target", TARGETS)
def test_half_precision_compiles(target: str, k: int, v: int) -> None:
    check(target, torch.bfloat16, k, v, 192, KERNELS)


@pytest.mark.parametrize("target", TARGETS)
def test_float32_compiles(target: str) -> None:
    check(target, torch.float32, 128, 64, 255)


@pytest.mark.parametrize("target", TARGETS)
def test_packed_kernels_compile(target: str) -> None:
    x = torch.empty(1, 64, 2, 48, dtype=torch.bfloat16, device="meta")
    log_decay = torch.empty(1, 64, 2, dtype=torch.bfloat16, device="meta")
    state = torch.empty(2, 2, 48, 48, device="meta")
    cu_seqlens = torch.tensor([0, 5, 64])
    calls = [
        lambda: tier.forward(x, x, x, log_decay, state, cu_seqlens),
        lambda: tier.backward(x, state, x, x, x, log_decay, state, cu_seqlens),
    ]
    assert_compiles(calls, tier, target, 192, KERNELS)
