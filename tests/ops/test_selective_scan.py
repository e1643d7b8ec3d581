"""selective_scan against its loop over time, in every form; and what it says of bad input."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.selective_scan import _backward, _forward, selective_scan
from clplat.ops.selective_scan.chunks import count_rows
from clplat.ops.selective_scan.reference import selective_scan as reference
from tests.ops.compare import assert_matches

LENGTHS = [1, 7, 63, 65]


def make(time: int, batch: int = 2, width: int = 5, size: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(time)
    draw = {"generator": generator, "dtype": torch.float64}
    return {
        "x": torch.randn(batch, time, width, **draw),
        "dt": torch.nn.functional.softplus(torch.randn(batch, time, width, **draw)),
        "A": -torch.rand(width, size, **draw) - 0.1,
        "B": torch.randn(batch, time, size, **draw),
        "C": torch.randn(batch, time, size, **draw),
        "D": torch.randn(width, **draw),
        "initial": torch.randn(batch, width, size, **draw),
    }


def loop(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial: Tensor | None = None,
    negative_eigenvalues: bool = False,
) -> Any:
    D = torch.zeros_like(x[0, 0]) if D is None else D
    initial = torch.zeros_like(x[:, 0, :, None] * A) if initial is None else initial
    return reference(x, dt, A, B, C, D, initial, negative_eigenvalues)


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("negative", [False, True])
def test_values_and_gradients(time: int, negative: bool, device: str) -> None:
    inputs = {**make(time), "negative_eigenvalues": negative}
    assert_matches(selective_scan, loop, inputs, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype, device: str) -> None:
    assert_matches(selective_scan, loop, make(65), dtype, device)


def test_more_channels_than_a_program_takes(device: str) -> None:
    assert_matches(selective_scan, loop, make(3, width=18), device=device)


@pytest.mark.parametrize("absent", ["initial", "D"])
def test_without(absent: str, device: str) -> None:
    assert_matches(selective_scan, loop, {**make(7), absent: None}, device=device)


def test_non_contiguous(device: str) -> None:
    inputs = make(9)
    for name in ("x", "dt", "A", "B", "C"):
        inputs[name] = inputs[name].mT.contiguous().mT
    assert_matches(selective_scan, loop, inputs, device=device)


@pytest.mark.parametrize("negative", [False, True])
@pytest.mark.parametrize("starts", [[0, 3, 4, 17], [0, 66, 70]])
def test_packed_sequences_are_scanned_apart(starts: list[int], negative: bool, device: str) -> None:
    initial = make(1, batch=len(starts) - 1)["initial"]
    inputs = {**make(starts[-1], batch=1), "initial": initial}

    def packed(**inputs: Tensor) -> Any:
        cu_seqlens = torch.tensor(starts, device=device if inputs["x"].is_cuda else "cpu")
        cu_seqlens = torch.tensor(starts, device=inputs["x"].device)
        return selective_scan(**inputs, negative_eigenvalues=negative, cu_seqlens=cu_seqlens)

    def apart(A: Tensor, D: Tensor, initial: Tensor, **inputs: Tensor) -> Any:
        parts = [
            loop(
                **{name: tensor[:, i:j] for name, tensor in inputs.items()},
                A=A,
                D=D,
                initial=initial[n : n + 1],
                negative_eigenvalues=negative,
            )
            for n, (i, j) in enumerate(pairwise(starts))
        ]
        return torch.cat([y for y, _ in parts], 1), torch.cat([final for _, final in parts])

    assert_matches(packed, apart, inputs, device=device)


def test_final_state_continues_the_scan(device: str) -> None:
    inputs = {name: tensor.to(device) for name, tensor in make(11).items()}
    over_time = {name: inputs.pop(name) for name in ("x", "dt", "B", "C")}
    whole, final = selective_scan(**over_time, **inputs)
    before = {name: tensor[:, :4] for name, tensor in over_time.items()}
    after = {name: tensor[:, 4:] for name, tensor in over_time.items()}
    first, state = selective_scan(**before, **inputs)
    second, end = selective_scan(**after, **{**inputs, "initial": state})
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


def test_gates_and_states_beside_half_precision_may_be_float32(device: str) -> None:
    wide = ("dt", "A", "D", "initial")
    inputs = {
        name: tensor.to(device, torch.float32 if name in wide else torch.bfloat16).requires_grad_()
        for name, tensor in make(7).items()
    }
    y, final = selective_scan(**inputs)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    exact, last = loop(**{name: tensor.detach().double() for name, tensor in inputs.items()})
    torch.testing.assert_close(y.double(), exact, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(final.double(), last, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(final.sum() + y.float().sum(), list(inputs.values()))
    assert [g.dtype for g in gradients] == [tensor.dtype for tensor in inputs.values()]


def test_autocast_does_not_lower_the_precision(device: str) -> None:
    inputs = {name: tensor.to(device, torch.float32) for name, tensor in make(9).items()}
    outputs = selective_scan(**inputs)
    with torch.autocast(device, torch.bfloat16):
        again = selective_scan(**inputs)
    torch.testing.assert_close(again, outputs, rtol=0, atol=0)


@pytest.mark.parametrize("negative", [False, True])
def test_gradcheck(negative: bool, device: str) -> None:
    tensors = [tensor.to(device).requires_grad_() for tensor in make(3, 1, 2, 2).values()]

    def op(*tensors: Tensor) -> Any:
        return selective_scan(*tensors, negative_eigenvalues=negative)

    assert torch.autograd.gradcheck(op, tensors)


def test_gradient_of_one_output_alone(device: str) -> None:
    inputs = {name: tensor.to(device).requires_grad_() for name, tensor in make(5).items()}
    for chosen in (0, 1):
        (ours,) = torch.autograd.grad(selective_scan(**inputs)[chosen].sum(), [inputs["dt"]])
        (exact,) = torch.autograd.grad(loop(**inputs)[chosen].sum(), [inputs["dt"]])
        torch.testing.assert_close(ours, exact)


@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 2, 5])])
def test_opcheck(cu_seqlens: Tensor | None, device: str) -> None:
    cu_seqlens = cu_seqlens if cu_seqlens is None else cu_seqlens.to(device)
    batch = 2 if cu_seqlens is None else 1
    x, dt, A, B, C, D, _ = (tensor.to(device) for tensor in make(5, batch).values())
    state = make(5)["initial"].to(device)
    starts = torch.ones(count_rows(5 * batch, 2), *A.shape, dtype=x.dtype, device=device)
    torch.library.opcheck(_backward, (x, state, x, dt, A, B, C, D, starts, False, cu_seqlens))
    leaves = [tensor.requires_grad_() for tensor in (x, dt, A, B, C, D, state)]
    torch.library.opcheck(_forward, (*leaves, True, cu_seqlens))


def test_compiles_without_a_break(device: str) -> None:
    compiled = torch.compile(selective_scan, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop, make(9), device=device)


def bad(**changes: Any) -> Any:
    inputs = {name: tensor.float() for name, tensor in make(4).items()}
    return selective_scan(**{**inputs, **changes})


def test_bad_shapes_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"dt has shape \(2, 3, 5\); expected \(B, T, E\) = \(2, 4, 5\)"
    ):
        bad(dt=torch.rand(2, 3, 5))
    with pytest.raises(ValueError, match=r"A has shape \(3, 5\); expected \(E, N\) = \(5, N\)"):
        bad(A=torch.rand(3, 5))
    with pytest.raises(
        ValueError, match=r"C has shape \(2, 4, 5\); expected \(B, T, N\) = \(2, 4, 3\)"
    ):
        bad(C=torch.rand(2, 4, 5))
    with pytest.raises(ValueError, match=r"D has shape \(3,\); expected \(E\) = \(5\)"):
        bad(D=torch.rand(3))
    with pytest.raises(
        ValueError, match=r"initial has shape \(2, 3, 5\); expected \(B, E, N\) = \(2, 5, 3\)"
    ):
        bad(initial=torch.rand(2, 3, 5))
    with pytest.raises(ValueError, match=r"x has shape \(2, 0, 5\); axis T must not be empty"):
        bad(x=torch.rand(2, 0, 5))


def test_mixed_dtypes_and_devices_are_told() -> None:
    with pytest.raises(TypeError, match=r"A is torch.float64; expected torch.float32, as x is"):
        bad(A=torch.rand(5, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"B is torch.bfloat16; expected torch.float32, as x is"):
        bad(B=torch.rand(2, 4, 3, dtype=torch.bfloat16))
    with pytest.raises(TypeError, match=r"x is torch.int64; expected a floating dtype"):
        bad(x=torch.ones(2, 4, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"dt is on meta, but x is on cpu"):
        bad(dt=torch.rand(2, 4, 5, device="meta"))


def bad_packing(cu_seqlens: Tensor, **changes: Any) -> Any:
    inputs = {name: tensor.float() for name, tensor in make(4, batch=1).items()}
    return selective_scan(**{**inputs, "initial": None, **changes}, cu_seqlens=cu_seqlens)


@pytest.mark.parametrize("starts", [[0, 2], [1, 4], [0, 3, 2, 4], [0, 2, 2, 4]])
def test_packing_that_does_not_cover_the_tokens_is_told(starts: list[int]) -> None:
    with pytest.raises(ValueError, match=r"do not cover the 4 tokens; expected 0 first, 4 last"):
        bad_packing(torch.tensor(starts))


def test_misuse_of_packing_is_told() -> None:
    with pytest.raises(ValueError, match="a batch of 1; got one of 2"):
        bad(initial=None, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="initial has 3 rows; cu_seqlens names 1 sequences"):
        bad_packing(torch.tensor([0, 4]), initial=torch.rand(3, 5, 3))
    with pytest.raises(ValueError, match=r"expected \(N \+ 1,\) int64"):
        bad_packing(torch.tensor([0.0, 4.0]))
