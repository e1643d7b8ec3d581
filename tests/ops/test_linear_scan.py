"""linear_scan against its loop over time, in every form; and what it says of bad input."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.linear_scan import _backward, _forward, linear_scan
from clplat.ops.linear_scan.reference import linear_scan as reference
from tests.ops.compare import assert_matches

LENGTHS = [1, 7, 63, 65]


def make(time: int, batch: int = 2, width: int = 5, kind: str = "real") -> dict[str, Any]:
    generator = torch.Generator().manual_seed(time)
    dtype = torch.complex128 if kind == "complex" else torch.float64
    draw = {"generator": generator, "dtype": dtype}
    decay = torch.randn(*((width,) if kind == "constant" else (batch, time, width)), **draw)
    return {
        "a": decay / (1 + decay.abs()),
        "x": torch.randn(batch, time, width, **draw),
        "initial": torch.randn(batch, width, **draw),
    }


def loop(a: Tensor, x: Tensor, initial: Tensor | None = None, reverse: bool = False) -> Any:
    initial = torch.zeros_like(x[:, 0]) if initial is None else initial
    h = reference(a.expand(x.shape), x, initial, reverse)
    return h, h[:, 0 if reverse else -1]


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("kind", ["real", "complex", "constant"])
@pytest.mark.parametrize("reverse", [False, True])
def test_values_and_gradients(time: int, kind: str, reverse: bool, device: str) -> None:
    inputs = {**make(time, kind=kind), "reverse": reverse}
    assert_matches(linear_scan, loop, inputs, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype, device: str) -> None:
    assert_matches(linear_scan, loop, make(65), dtype, device)


def test_without_an_initial_state(device: str) -> None:
    assert_matches(linear_scan, loop, {**make(7), "initial": None}, device=device)


def test_non_contiguous(device: str) -> None:
    inputs = make(9)
    for name in ("a", "x"):
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_matches(linear_scan, loop, inputs, device=device)


@pytest.mark.parametrize("reverse", [False, True])
def test_packed_sequences_are_scanned_apart(reverse: bool, device: str) -> None:
    starts = [0, 3, 4, 17]
    inputs = {**make(17, batch=1), "initial": make(1, batch=3)["initial"], "reverse": reverse}

    def packed(a: Tensor, x: Tensor, initial: Tensor, reverse: bool) -> Any:
        cu_seqlens = torch.tensor(starts, device=x.device)
        return linear_scan(a, x, initial, reverse=reverse, cu_seqlens=cu_seqlens)

    def apart(a: Tensor, x: Tensor, initial: Tensor, reverse: bool) -> Any:
        parts = [
            loop(a[:, i:j], x[:, i:j], initial[n : n + 1], reverse)
            for n, (i, j) in enumerate(pairwise(starts))
        ]
        return torch.cat([h for h, _ in parts], 1), torch.cat([final for _, final in parts])

    assert_matches(packed, apart, inputs, device=device)


def test_final_state_continues_the_scan(device: str) -> None:
    a, x, initial = (tensor.to(device) for tensor in make(11).values())
    whole, final = linear_scan(a, x, initial)
    first, state = linear_scan(a[:, :4], x[:, :4], initial)
    second, end = linear_scan(a[:, 4:], x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


def test_state_of_half_precision_is_float32(device: str) -> None:
    a, x, _ = (tensor.to(device, torch.bfloat16) for tensor in make(7).values())
    h, final = linear_scan(a, x)
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", ["real", "complex"])
def test_gradcheck(kind: str, device: str) -> None:
    tensors = [t.to(device).requires_grad_() for t in make(3, 1, 2, kind).values()]
    assert torch.autograd.gradcheck(linear_scan, tensors)


@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 2, 5])])
def test_opcheck(cu_seqlens: Tensor | None, device: str) -> None:
    cu_seqlens = cu_seqlens if cu_seqlens is None else cu_seqlens.to(device)
    rows = 2 if cu_seqlens is None else 1
    a, x, _ = (tensor.to(device) for tensor in make(5, rows).values())
    initial = make(5)["initial"].to(device)
    torch.library.opcheck(_backward, (x, initial, a, x, initial, False, cu_seqlens))
    leaves = [tensor.requires_grad_() for tensor in (a, x, initial)]
    torch.library.opcheck(_forward, (*leaves, True, cu_seqlens))


def test_compiles_without_a_break(device: str) -> None:
    inputs = make(9)
    compiled = torch.compile(linear_scan, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop, inputs, device=device)


def bad(**changes: Any) -> Any:
    inputs = {name: tensor.float() for name, tensor in make(4).items()}
    return linear_scan(**{**inputs, **changes})


def test_bad_shapes_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"a has shape \(2, 3, 5\); expected \(B, T, D\) = \(2, 4, 5\)"
    ):
        bad(a=torch.rand(2, 3, 5))
    with pytest.raises(
        ValueError, match=r"initial has shape \(2, 4\); expected \(B, D\) = \(2, 5\)"
    ):
        bad(initial=torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"x has shape \(4, 5\); expected \(B, T, D\)"):
        bad(x=torch.rand(4, 5))
    with pytest.raises(ValueError, match=r"x has shape \(2, 0, 5\); axis T must not be empty"):
        bad(x=torch.rand(2, 0, 5))


def test_mixed_dtypes_and_devices_are_told() -> None:
    with pytest.raises(TypeError, match=r"a is torch.float64; expected torch.float32, as x is"):
        bad(a=torch.rand(2, 4, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"x is torch.int64; expected a floating dtype"):
        bad(x=torch.ones(2, 4, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"a is on meta, but x is on cpu"):
        bad(a=torch.rand(2, 4, 5, device="meta"))


@pytest.mark.parametrize("starts", [[0, 2], [1, 4], [0, 3, 2, 4], [0, 2, 2, 4]])
def test_packing_that_does_not_cover_the_tokens_is_told(starts: list[int]) -> None:
    x = torch.rand(1, 4, 5)
    with pytest.raises(ValueError, match=r"do not cover the 4 tokens; expected 0 first, 4 last"):
        linear_scan(x, x, cu_seqlens=torch.tensor(starts))


def test_misuse_of_packing_is_told() -> None:
    x = torch.rand(1, 4, 5)
    with pytest.raises(ValueError, match="a batch of 1; got one of 2"):
        bad(initial=None, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="initial has 3 rows; cu_seqlens names 1 sequences"):
        linear_scan(x, x, torch.rand(3, 5), cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"expected \(N \+ 1,\) int64"):
        linear_scan(x, x, cu_seqlens=torch.tensor([0.0, 4.0]))
