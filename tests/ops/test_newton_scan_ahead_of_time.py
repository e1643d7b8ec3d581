"""The kernels of newton_scan compile for every target."""

import pytest
import torch

from clplat.ops.newton_scan import triton as tier
from tests.ops.ahead_of_time import TARGETS, assert_compiles


@pytest.mark.parametrize("kind", ["elman", "gru"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("target", TARGETS)
def test_kernels_compile(target: str, dtype: torch.dtype, kind: str) -> None:
    gates = (3,) if kind == "gru" else ()
    x = torch.empty(8, 4096, *gates, 2048, dtype=dtype, device="meta")
    recurrent, h = x.new_empty(*gates, 2048), x.new_empty(8, 4096, 2048)
    state = x.new_empty(8, 2048, dtype=torch.float32)
    calls = [
        lambda: tier.forward(kind, x, recurrent, state, 16, 1e-5),
        lambda: tier.backward(h, state, kind, x, recurrent, h, state),
    ]
    assert_compiles(calls, tier, target, registers=144)
