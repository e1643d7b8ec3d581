"""delta_rule against its loop over time, in every form; and what it says of bad input."""

from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.delta_rule import _backward, _forward, delta_rule
from clplat.ops.delta_rule.reference import delta_rule as reference
from clplat.ops.tier import INTERPRETED, runs_triton
from tests.ops.compare import assert_matches

LENGTHS = [1, 7, 63, 65]


def make(
    time: int, batch: int = 2, n: int = 1, heads: int = 2, keys: int = 5, values: int = 3
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(time)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return {
        "q": draw(batch, time, heads, keys),
        "k": torch.nn.functional.normalize(draw(batch, time * n, heads, keys), dim=-1),
        "v": draw(batch, time * n, heads, values),
        "beta": 2 * torch.sigmoid(draw(batch, time * n, heads)),
        "log_decay": -draw(batch, time, heads).exp(),
        "initial": draw(batch, heads, keys, values),
    }


def loop(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial: Tensor | None = None,
    n_householder: int = 1,
) -> Any:
    if log_decay is None:
        log_decay = torch.zeros_like(q[..., 0])
    if initial is None:
        initial = q.new_zeros(*q[:, 0].shape, v.shape[-1])
    return reference(q, k, v, beta, log_decay, initial, n_householder)


@pytest.mark.parametrize("time", LENGTHS)
def test_values_and_gradients(time: int, device: str) -> None:
    assert_matches(delta_rule, loop, make(time), device=device)


@pytest.mark.parametrize("time", [1, 3, 17])
def test_several_householders_a_token(time: int, device: str) -> None:
    assert_matches(delta_rule, loop, {**make(time, n=2), "n_householder": 2}, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype, device: str) -> None:
    assert_matches(delta_rule, loop, make(65), dtype, device)


@pytest.mark.parametrize("left_out", [["log_decay"], ["initial"], ["log_decay", "initial"]])
def test_without_a_decay_or_an_initial_state(left_out: list[str], device: str) -> None:
    assert_matches(delta_rule, loop, {**make(7), **dict.fromkeys(left_out)}, device=device)


def test_wider_than_a_block_of_values(device: str) -> None:
    inputs = make(3, batch=1, heads=1, keys=17, values=70)
    assert_matches(delta_rule, loop, inputs, device=device)


def test_float32_gates_and_state_beside_half_precision(device: str) -> None:
    inputs = {name: tensor.to(device).float() for name, tensor in make(7).items()}
    for name in ("q", "k", "v"):
        inputs[name] = inputs[name].half()
    y, final = delta_rule(**inputs)
    assert (y.dtype, final.dtype) == (torch.float16, torch.float32)
    exact, last = loop(**{name: tensor.double() for name, tensor in inputs.items()})
    torch.testing.assert_close(y.double(), exact, atol=5e-3, rtol=5e-3)
    torch.testing.assert_close(final.double(), last, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_large_decay_forgets_and_spoils_nothing_near_it(dtype: torch.dtype, device: str) -> None:
    inputs = make(20)
    inputs["log_decay"][:, [4, 5, 13]] = -1e4
    assert_matches(delta_rule, loop, inputs, dtype, device)


def test_beta_of_two_reflects_the_state_at_the_key(device: str) -> None:
    inputs = make(1)
    inputs["beta"], inputs["v"] = torch.full_like(inputs["beta"], 2), 0 * inputs["v"]
    inputs["log_decay"] = None
    k, initial = inputs["k"][:, 0], inputs["initial"]
    _, final = delta_rule(**{n: x if x is None else x.to(device) for n, x in inputs.items()})
    before = torch.einsum("bhk,bhkv->bhv", k, initial)
    expected = initial - 2 * torch.einsum("bhk,bhv->bhkv", k, before)
    torch.testing.assert_close(final.cpu(), expected)


@pytest.mark.skipif(INTERPRETED, reason="long")
def test_reflections_stay_stable() -> None:
    """4096 of them, whose product has eigenvalues of length 1."""
    inputs = make(4096, batch=1, heads=1, keys=64)
    inputs["beta"], inputs["log_decay"] = torch.full_like(inputs["beta"], 2), None
    assert_matches(delta_rule, loop, inputs, torch.float32)


def test_the_same_key_again_and_again(device: str) -> None:
    """Here (I + A)^-1 has entries of size 4, but the powers of A that sum to it are vast."""
    inputs = make(40, batch=1, heads=1)
    inputs["k"], inputs["log_decay"] = inputs["k"][:, :1].expand(inputs["k"].shape), None
    inputs["beta"] = torch.full_like(inputs["beta"], 2)
    y, final = delta_rule(**{n: x if x is None else x.to(device) for n, x in inputs.items()})
    expected, last = loop(**inputs)
    torch.testing.assert_close(y.cpu(), expected)
    torch.testing.assert_close(final.cpu(), last)


def test_non_contiguous(device: str) -> None:
    inputs = make(9)
    for name in ("q", "k", "v", "beta", "log_decay", "initial"):
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_matches(delta_rule, loop, inputs, device=device)


@pytest.mark.parametrize("n", [1, 2])
def test_packed_sequences_are_run_apart(n: int, device: str) -> None:
    starts = [0, 3, 4, 41]
    inputs = {**make(41, batch=1, n=n), "initial": make(1, batch=3)["initial"]}

    def packed(**inputs: Tensor) -> Any:
        cu_seqlens = torch.tensor(starts, device=inputs["q"].device)
        return delta_rule(**inputs, n_householder=n, cu_seqlens=cu_seqlens)

    def apart(initial: Tensor, **inputs: Tensor) -> Any:
        parts = []
        for row, (begin, end) in enumerate(pairwise(starts)):
            part = {
                name: x[:, begin:end] if name in ("q", "log_decay") else x[:, n * begin : n * end]
                for name, x in inputs.items()
            }
            parts.append(loop(**part, initial=initial[row : row + 1], n_householder=n))
        return torch.cat([y for y, _ in parts], 1), torch.cat([final for _, final in parts])

    assert_matches(packed, apart, inputs, device=device)


def test_final_state_continues_the_sequence(device: str) -> None:
    inputs = {name: tensor.to(device) for name, tensor in make(40).items()}
    initial = inputs.pop("initial")
    whole, final = delta_rule(**inputs, initial=initial)
    first, state = delta_rule(**{n: x[:, :35] for n, x in inputs.items()}, initial=initial)
    second, end = delta_rule(**{n: x[:, 35:] for n, x in inputs.items()}, initial=state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


def test_gradcheck(device: str) -> None:
    inputs = make(3, batch=1, heads=1, keys=2, values=2)
    tensors = [tensor.to(device).requires_grad_() for tensor in inputs.values()]
    assert torch.autograd.gradcheck(delta_rule, tensors, fast_mode=True)


def test_wide_keys_run_without_a_kernel(device: str) -> None:
    """On every device; where others have a kernel, one warning says so."""
    told: AbstractContextManager = nullcontext()
    if runs_triton(torch.empty(0, device=device)):
        from clplat.ops.delta_rule import triton as tier

        tier._warn_of_width.cache_clear()
        told = pytest.warns(UserWarning, match="keys wider than 128 have no kernel; a slower form")
    with told:
        assert_matches(delta_rule, loop, make(3, keys=130), device=device)


@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 2, 5])])
def test_opcheck(cu_seqlens: Tensor | None, device: str) -> None:
    cu_seqlens = cu_seqlens if cu_seqlens is None else cu_seqlens.to(device)
    inputs = {**make(5, batch=2 if cu_seqlens is None else 1), "initial": make(5)["initial"]}
    tensors = [tensor.to(device) for tensor in inputs.values()]
    grads = [torch.ones_like(tensors[2]), torch.ones_like(tensors[-1])]
    torch.library.opcheck(_backward, (*grads, *tensors, cu_seqlens))
    torch.library.opcheck(_forward, (*(x.requires_grad_() for x in tensors), cu_seqlens))


@pytest.mark.parametrize("n", [1, 2])
def test_compiles_without_a_break(n: int, device: str) -> None:
    compiled = torch.compile(delta_rule, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop, {**make(9, n=n), "n_householder": n}, device=device)


def bad(**changes: Any) -> Any:
    inputs = {name: tensor.float() for name, tensor in make(4).items()}
    return delta_rule(**{**inputs, **changes})


def test_bad_shapes_are_told() -> None:
    with pytest.raises(
        ValueError,
        match=r"k has shape \(2, 4, 2, 6\); expected \(B, T, H, K\) = \(2, 4, 2, 5\)",
    ):
        bad(k=torch.rand(2, 4, 2, 6))
    with pytest.raises(ValueError, match=r"beta has shape \(2, 4\); expected \(B, T, H\)"):
        bad(beta=torch.rand(2, 4))
    with pytest.raises(
        ValueError,
        match=r"initial has shape \(2, 2, 3, 5\); expected \(B, H, K, V\) = \(2, 2, 5, 3\)",
    ):
        bad(initial=torch.rand(2, 2, 3, 5))
    with pytest.raises(ValueError, match=r"q has shape \(2, 0, 2, 5\); axis T must not be empty"):
        bad(q=torch.rand(2, 0, 2, 5))


def test_a_count_of_corrections_that_does_not_fit_is_told() -> None:
    with pytest.raises(ValueError, match=r"n_householder is 0; expected 1 or more"):
        bad(n_householder=0)
    with pytest.raises(
        ValueError,
        match=r"k has 4 steps for the 4 of q; expected 12, since n_householder is 3",
    ):
        bad(n_householder=3)


def test_mixed_dtypes_and_devices_are_told() -> None:
    with pytest.raises(TypeError, match=r"v is torch.float64; expected torch.float32, as q is"):
        bad(v=torch.rand(2, 4, 2, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"q is torch.int64; expected a floating dtype"):
        bad(q=torch.ones(2, 4, 2, 5, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"beta is on meta, but q is on cpu"):
        bad(beta=torch.rand(2, 4, 2, device="meta"))


@pytest.mark.parametrize("n", [1, 2])
def test_packing_that_does_not_cover_the_tokens_is_told(n: int) -> None:
    inputs = {**make(4, batch=1, n=n), "initial": None}
    with pytest.raises(ValueError, match=r"do not cover the \d tokens; expected 0 first"):
        delta_rule(**inputs, n_householder=n, cu_seqlens=torch.tensor([0, 2]))


def test_misuse_of_packing_is_told() -> None:
    with pytest.raises(ValueError, match="a batch of 1; got one of 2"):
        bad(initial=None, cu_seqlens=torch.tensor([0, 4]))
    inputs = {**make(4, batch=1), "initial": make(4, batch=3)["initial"]}
    with pytest.raises(ValueError, match="initial has 3 rows; cu_seqlens names 1 sequences"):
        delta_rule(**inputs, cu_seqlens=torch.tensor([0, 4]))
