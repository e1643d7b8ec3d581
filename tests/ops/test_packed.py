"""What the ops that take packed sequences make of cu_seqlens, whatever its layout."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clplat.ops.delta_rule import delta_rule
from clplat.ops.gated_scan import gated_scan
from clplat.ops.linear_scan import linear_scan
from clplat.ops.selective_scan import selective_scan
from clplat.ops.ssd import ssd

x, wide, gate = torch.rand(1, 6, 4), torch.rand(1, 6, 2, 4), torch.rand(1, 6, 2)
INPUTS: dict[str, tuple[Callable[..., tuple[Tensor, Tensor]], list[Tensor]]] = {
    "linear_scan": (linear_scan, [x, x]),
    "selective_scan": (selective_scan, [x, x, -x[0, :4], x, x]),
    "ssd": (ssd, [wide, wide, wide, -gate]),
    "delta_rule": (delta_rule, [wide, wide, wide, gate]),
    "gated_scan": (lambda *inputs, **packed: gated_scan("mingru", *inputs, **packed), [x, x]),
}


@pytest.mark.parametrize("op", INPUTS)
def test_boundaries_may_lie_apart_in_memory(op: str, device: str) -> None:
    function, inputs = INPUTS[op]
    apart = torch.tensor([0, 1, 2, 4, 6, 6], device=device)[::2]
    assert not apart.is_contiguous()
    found, expected = (
        function(*(tensor.to(device) for tensor in inputs), cu_seqlens=boundaries)
        for boundaries in (apart, apart.contiguous())
    )
    torch.testing.assert_close(found, expected)


def test_boundaries_on_another_device_are_told() -> None:
    with pytest.raises(TypeError, match="cu_seqlens is on meta, but the tokens are on cpu; move"):
        linear_scan(x, x, cu_seqlens=torch.tensor([0, 6], device="meta"))
