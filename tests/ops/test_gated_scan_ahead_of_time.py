"""The kernels of gated_scan compile for every target."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.gated_scan import EXTRA
from clplat.ops.gated_scan import triton as tier
from tests.ops.ahead_of_time import TARGETS, assert_compiles


def calls(kind: str, x: Tensor, rows: int, cu_seqlens: Tensor | None) -> list[Callable[[], Any]]:
    state = x.new_empty(rows, x.shape[2], dtype=torch.float32)
    extra = {"mingru": None, "minlstm": x, "hgrn": x.new_empty(x.shape[2])}[kind]
    return [
        lambda: tier.forward(kind, x, x, extra, state, cu_seqlens),
        lambda: tier.backward(x, state, kind, x, x, extra, x, state, cu_seqlens),
    ]


@pytest.mark.parametrize("kind", EXTRA)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile(target: str, dtype: torch.dtype, kind: str) -> None:
    x = torch.empty(8, 4096, 2048, dtype=dtype, device="meta")
    assert_compiles(calls(kind, x, 8, None), tier, target, registers=64)


@pytest.mark.parametrize("target", TARGETS)
def test_packed_kernels_compile(target: str) -> None:
    x = torch.empty(1, 64, 48, device="meta")
    cu_seqlens = torch.tensor([0, 5, 64])
    assert_compiles(calls("minlstm", x, 2, cu_seqlens), tier, target, registers=64)
