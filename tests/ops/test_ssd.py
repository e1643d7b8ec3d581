"""ssd and mlstm against their loops over time, in every form; and what they say of bad input."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.ssd import _backward, _forward, mlstm, ssd
from clplat.ops.ssd.reference import mlstm as mlstm_reference
from clplat.ops.ssd.reference import ssd as reference
from tests.ops.compare import assert_matches, results

LENGTHS = [1, 7, 63, 65]


def make(time: int, batch: int = 2, heads: int = 2, k: int = 5, v: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(time)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        "q": draw(batch, time, heads, k),
        "k": draw(batch, time, heads, k),
        "v": draw(batch, time, heads, v),
        "log_decay": -draw(batch, time, heads).abs(),
        "initial": draw(batch, heads, k, v),
    }


def loop(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor | None = None) -> Any:
    if initial is None:
        initial = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1])
    return reference(q, k, v, log_decay, initial)


@pytest.mark.parametrize("time", LENGTHS)
def test_values_and_gradients(time: int, device: str) -> None:
    assert_matches(ssd, loop, make(time), device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype, device: str) -> None:
    assert_matches(ssd, loop, make(65), dtype, device)


@pytest.mark.parametrize(("k", "v"), [(20, 70), (70, 1)])
def test_widths_of_several_blocks(k: int, v: int, device: str) -> None:
    assert_matches(ssd, loop, make(65, 1, 1, k, v), device=device)


def test_without_an_initial_state(device: str) -> None:
    assert_matches(ssd, loop, {**make(7), "initial": None}, device=device)


def test_non_contiguous(device: str) -> None:
    inputs = make(9)
    for name in ("q", "k", "v", "log_decay", "initial"):
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_matches(ssd, loop, inputs, device=device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("reset", [-1e4, -1e30])
def test_resets_forget_all_and_disturb_nothing(
    dtype: torch.dtype, reset: float, device: str
) -> None:
    inputs = make(70)
    inputs["log_decay"][0, [0, 5, 6, 64]] = reset
    inputs["log_decay"][1] = reset
    assert_matches(ssd, loop, inputs, dtype, device)


def test_a_decay_of_zero(device: str) -> None:
    q, k, v, log_decay, initial = (tensor.to(device) for tensor in make(9).values())
    inputs = [x.requires_grad_() for x in (q, k, v, log_decay, initial)]
    log_decay.data[:, 4] = -torch.inf
    y, final = ssd(*inputs)
    y_after, final_after = ssd(*(x[:, 4:] for x in inputs[:4]), torch.zeros_like(initial))
    torch.testing.assert_close(y[:, 4:], y_after)
    torch.testing.assert_close(final, final_after)
    gradients = torch.autograd.grad(y.sum() + final.sum(), inputs)
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[3][:, 4].any()


@pytest.mark.parametrize("starts", [[0, 3, 4, 17], [0, 65, 66, 70]])
def test_packed_sequences_are_apart(starts: list[int], device: str) -> None:
    inputs = {**make(starts[-1], batch=1), "initial": make(1, batch=3)["initial"]}

    def packed(**inputs: Tensor) -> Any:
        return ssd(**inputs, cu_seqlens=torch.tensor(starts, device=inputs["q"].device))

    def apart(initial: Tensor, **inputs: Tensor) -> Any:
        parts = [
            loop(**{name: x[:, i:j] for name, x in inputs.items()}, initial=initial[n : n + 1])
            for n, (i, j) in enumerate(pairwise(starts))
        ]
        return torch.cat([y for y, _ in parts], 1), torch.cat([final for _, final in parts])

    assert_matches(packed, apart, inputs, device=device)


def test_final_state_continues(device: str) -> None:
    *inputs, initial = (tensor.to(device) for tensor in make(70).values())
    whole, final = ssd(*inputs, initial)
    first, state = ssd(*(x[:, :66] for x in inputs), initial)
    second, end = ssd(*(x[:, 66:] for x in inputs), state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


def test_decays_and_states_of_half_precision_may_be_float32(device: str) -> None:
    inputs = {name: tensor.to(device) for name, tensor in make(7).items()}
    half = {
        name: x.to(torch.float32 if name in ("log_decay", "initial") else torch.bfloat16)
        for name, x in inputs.items()
    }
    leaves = [x.requires_grad_() for x in half.values()]
    y, final = ssd(**half)
    assert (y.dtype, final.dtype) == (torch.bfloat16, torch.float32)
    gradients = torch.autograd.grad(y.float().sum() + final.sum(), leaves)
    assert [g.dtype for g in gradients] == [x.dtype for x in leaves]
    exact, _ = loop(*(x.detach().double() for x in leaves))
    torch.testing.assert_close(y.double(), exact, atol=0.05, rtol=0.05)


def test_gradcheck(device: str) -> None:
    tensors = [t.to(device).requires_grad_() for t in make(3, 1, 1, 2, 1).values()]
    assert torch.autograd.gradcheck(ssd, tensors)


def test_float16_does_not_overflow_in_the_state(device: str) -> None:
    """Sums of products grow past 65,504, the largest of float16, which q may scale down again."""
    key = torch.full((1, 1100, 1, 1), 8.0, dtype=torch.float16, device=device)
    query = torch.full_like(key, 1e-3)
    y, final = ssd(query, key, key, torch.zeros_like(key[..., 0]))
    expected = 1e-3 * 64 * torch.arange(1, 1101, device=device)
    torch.testing.assert_close(y[0, :, 0, 0].float(), expected, rtol=2e-3, atol=0)
    assert final.item() == 64 * 1100


@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 2, 5])])
def test_opcheck(cu_seqlens: Tensor | None, device: str) -> None:
    cu_seqlens = cu_seqlens if cu_seqlens is None else cu_seqlens.to(device)
    inputs = [x.to(device) for x in make(5, 2 if cu_seqlens is None else 1, 1, 2, 1).values()]
    inputs[-1] = make(5, 2, 1, 2, 1)["initial"].to(device)
    torch.library.opcheck(_backward, (inputs[2], inputs[-1], *inputs, cu_seqlens))
    leaves = [tensor.requires_grad_() for tensor in inputs]
    torch.library.opcheck(_forward, (*leaves, cu_seqlens))


def test_compiles_without_a_break(device: str) -> None:
    compiled = torch.compile(ssd, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop, make(9), device=device)


def bad(**changes: Any) -> Any:
    inputs = {name: tensor.float() for name, tensor in make(4).items()}
    return ssd(**{**inputs, **changes})


def test_bad_shapes_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"k has shape \(2, 4, 2, 6\); expected \(B, T, H, K\) = \(2, 4, 2, 5\)"
    ):
        bad(k=torch.rand(2, 4, 2, 6))
    with pytest.raises(
        ValueError, match=r"log_decay has shape \(2, 4\); expected \(B, T, H\) = \(2, 4, 2\)"
    ):
        bad(log_decay=torch.zeros(2, 4))
    with pytest.raises(
        ValueError, match=r"initial has shape \(2, 5, 3\); expected \(B, H, K, V\) = \(2, 2, 5, 3\)"
    ):
        bad(initial=torch.rand(2, 5, 3))
    with pytest.raises(ValueError, match=r"v has shape \(2, 4, 2, 0\); axis V must not be empty"):
        bad(v=torch.rand(2, 4, 2, 0))


def test_mixed_dtypes_and_devices_are_told() -> None:
    with pytest.raises(TypeError, match=r"k is torch.float64; expected torch.float32, as q is"):
        bad(k=torch.rand(2, 4, 2, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"q is torch.complex64; expected a real floating dtype"):
        ssd(*(x.to(torch.complex64) for x in make(4).values()))
    with pytest.raises(TypeError, match=r"v is on meta, but q is on cpu"):
        bad(v=torch.rand(2, 4, 2, 3, device="meta"))


def test_misuse_of_packing_is_told() -> None:
    inputs = {**{name: x.float() for name, x in make(4, batch=1).items()}, "initial": None}
    with pytest.raises(ValueError, match="a batch of 1; got one of 2"):
        bad(initial=None, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="initial has 3 rows; cu_seqlens names 1 sequences"):
        ssd(**{**inputs, "initial": torch.rand(3, 2, 5, 3)}, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"expected \(N \+ 1,\) int64"):
        ssd(**inputs, cu_seqlens=torch.tensor([0.0, 4.0]))
    for starts in ([0, 2], [1, 4], [0, 3, 2, 4], [0, 2, 2, 4]):
        with pytest.raises(ValueError, match="do not cover the 4 tokens"):
            ssd(**inputs, cu_seqlens=torch.tensor(starts))


def make_mlstm(time: int, batch: int = 2, heads: int = 2, k: int = 5, v: int = 3) -> dict[str, Any]:
    inputs = make(time, batch, heads, k, v)
    generator = torch.Generator().manual_seed(time)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    return {
        **{name: inputs[name] for name in ("q", "k", "v")},
        "input_gate": draw(batch, time, heads),
        "forget_gate": draw(batch, time, heads) + 2,
        "C": inputs["initial"],
        "n": draw(batch, heads, k),
        "m": draw(batch, heads),
    }


def mlstm_from(C: Tensor, n: Tensor, m: Tensor, **inputs: Tensor) -> Any:
    return mlstm(**inputs, initial=(C, n, m))


def mlstm_loop(C: Tensor, n: Tensor, m: Tensor, **inputs: Tensor) -> Any:
    return mlstm_reference(**inputs, initial=(C, n, m))


@pytest.mark.parametrize("time", LENGTHS)
def test_mlstm_values_and_gradients(time: int, device: str) -> None:
    assert_matches(mlstm_from, mlstm_loop, make_mlstm(time), device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mlstm_lower_precision(dtype: torch.dtype, device: str) -> None:
    inputs = make_mlstm(65)
    for name in ("q", "k", "n"):  # no n . q near 0, which would multiply any rounding
        inputs[name] = inputs[name].abs()
    assert_matches(mlstm_from, mlstm_loop, inputs, dtype, device)


def test_mlstm_without_an_initial_state(device: str) -> None:
    def loop(**inputs: Tensor) -> Any:
        q, v = inputs["q"], inputs["v"]
        n = torch.zeros_like(q[:, 0])
        C = n[..., None] * v[:, 0, :, None]
        return mlstm_reference(**inputs, initial=(C, n, torch.full_like(n[..., 0], -torch.inf)))

    inputs = {name: x for name, x in make_mlstm(7).items() if name not in "Cnm"}
    assert_matches(mlstm, loop, inputs, device=device)


def far_out(time: int) -> dict[str, Any]:
    inputs = make_mlstm(time)
    for name in ("input_gate", "forget_gate"):
        inputs[name] = torch.where(inputs[name] < 1, -50.0, 50.0).double()
    return inputs


def test_mlstm_gates_far_out(device: str) -> None:
    assert_matches(mlstm_from, mlstm_loop, far_out(70), device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_mlstm_gates_far_out_stay_finite(dtype: torch.dtype, device: str) -> None:
    found = results(mlstm_from, far_out(70), dtype, device)
    assert all(value.isfinite().all() for value in found.values())


def test_mlstm_does_not_depend_on_its_stabiliser(device: str) -> None:
    inputs = {name: x.to(device) for name, x in make_mlstm(9).items()}
    y, _ = mlstm_from(**inputs)
    scaled = {
        "C": inputs["C"] * 8,
        "n": inputs["n"] * 8,
        "m": inputs["m"] - torch.tensor(8.0).log(),
    }
    torch.testing.assert_close(mlstm_from(**{**inputs, **scaled})[0], y)


def test_mlstm_final_state_continues(device: str) -> None:
    inputs = {name: x.to(device) for name, x in make_mlstm(11).items() if name not in "Cnm"}
    whole, final = mlstm(**inputs)
    first, state = mlstm(**{name: x[:, :4] for name, x in inputs.items()})
    second, end = mlstm(**{name: x[:, 4:] for name, x in inputs.items()}, initial=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


def test_mlstm_of_half_precision_holds_states_in_float32(device: str) -> None:
    inputs = {
        name: x.to(device, torch.float32 if "gate" in name else torch.bfloat16)
        for name, x in make_mlstm(7).items()
        if name not in "Cnm"
    }
    y, state = mlstm(**inputs)
    assert y.dtype == torch.bfloat16
    assert {x.dtype for x in state} == {torch.float32}


def test_mlstm_compiles_without_a_break(device: str) -> None:
    compiled = torch.compile(mlstm_from, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, mlstm_loop, make_mlstm(9), device=device)


def test_mlstm_tells_bad_input() -> None:
    inputs = {name: x.float() for name, x in make_mlstm(4).items()}
    with pytest.raises(
        ValueError, match=r"mlstm: forget_gate has shape \(2, 4\); expected \(B, T, H\)"
    ):
        mlstm_from(**{**inputs, "forget_gate": torch.rand(2, 4)})
    with pytest.raises(ValueError, match=r"mlstm: n has shape \(2, 2, 6\); expected \(B, H, K\)"):
        mlstm_from(**{**inputs, "n": torch.rand(2, 2, 6)})
    with pytest.raises(TypeError, match=r"mlstm: m is torch.float64; expected torch.float32"):
        mlstm_from(**{**inputs, "m": torch.rand(2, 2, dtype=torch.float64)})
