"""newton_scan against its loop over time, where Newton's method converges and where it does not;
and what it says of bad input.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.newton_scan import _backward, _forward, newton_scan
from clplat.ops.newton_scan.reference import newton_scan as reference
from clplat.ops.tier import run_tier
from tests.ops.compare import assert_matches

KINDS = ["elman", "gru"]
LENGTHS = [1, 7, 63, 65]


def make(kind: str, time: int, batch: int = 2, width: int = 5) -> dict[str, Any]:
    draw = {"generator": torch.Generator().manual_seed(time), "dtype": torch.float64}
    gates = (3,) if kind == "gru" else ()
    return {
        "kind": kind,
        "x": torch.randn(batch, time, *gates, width, **draw),
        "recurrent": torch.rand(*gates, width, **draw) * 2 - 1,
        "initial": torch.randn(batch, width, **draw),
    }


def loop(kind: str, x: Tensor, recurrent: Tensor, initial: Tensor | None = None, **_: Any) -> Any:
    if initial is None:
        initial = x.new_zeros(len(x), x.shape[-1])
    h = reference(kind, x, recurrent, initial)
    return h, h[:, -1]


def to(inputs: dict[str, Any], *place: Any) -> dict[str, Any]:
    return {n: v.to(*place) if isinstance(v, Tensor) else v for n, v in inputs.items()}


def iterations_taken(inputs: dict[str, Any], device: str, iterations: int = 16) -> Tensor:
    """By each part that is solved on its own; -1 where it went step by step."""
    kind, x, recurrent, initial = to(inputs, device).values()
    arguments = (kind, x, recurrent, initial, iterations, 1e-12)
    return run_tier("clplat.ops.newton_scan", "solve", x, *arguments)[2]


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, time: int, device: str) -> None:
    assert_matches(newton_scan, loop, make(kind, time), device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(kind: str, dtype: torch.dtype, device: str) -> None:
    assert_matches(newton_scan, loop, make(kind, 65), dtype, device)


@pytest.mark.parametrize("kind", KINDS)
def test_converges_in_few_iterations_where_the_network_contracts(kind: str, device: str) -> None:
    counts = iterations_taken(make(kind, 65), device)
    assert counts.min() >= 1
    assert counts.max() <= 8


def expanding(kind: str, time: int = 36) -> dict[str, Any]:
    inputs = make(kind, time)
    inputs["recurrent"] = torch.full_like(inputs["recurrent"], 3)
    return inputs


@pytest.mark.parametrize("kind", KINDS)
def test_what_does_not_converge_is_computed_step_by_step(kind: str, device: str) -> None:
    inputs = expanding(kind)
    assert iterations_taken(inputs, device, 4).min() == -1
    assert_matches(newton_scan, loop, {**inputs, "iterations": 4}, device=device)
    assert_matches(newton_scan, loop, {**make(kind, 7), "iterations": 0}, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_expanding_networks_converge_given_the_iterations(kind: str, device: str) -> None:
    """After k iterations the first k steps are exact, whatever the slopes."""
    inputs = expanding(kind, 20)
    assert iterations_taken(inputs, device, 21).min() >= 1
    assert_matches(newton_scan, loop, {**inputs, "iterations": 21}, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_a_loose_tolerance_spares_iterations(kind: str, device: str) -> None:
    inputs = to(make(kind, 33), device)
    exact, _ = newton_scan(**inputs)
    loose, _ = newton_scan(**inputs, tolerance=1e-2)
    assert 0 < (loose - exact).abs().max() < 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_many_channels(kind: str, device: str) -> None:
    assert_matches(newton_scan, loop, make(kind, 5, 2, 37), device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_numbers_stay_in_their_channel(kind: str, device: str) -> None:
    inputs = to(make(kind, 7), device)
    exact, _ = newton_scan(**inputs)
    inputs["x"][0, 3, ..., 1] = torch.nan
    h, final = newton_scan(**inputs)
    bad = h.isnan()
    assert bad[0, 3:, 1].all()
    assert bad.sum() == 4
    assert final.isnan().sum() == 1
    torch.testing.assert_close(h[~bad], exact[~bad])


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_initial_state(kind: str, device: str) -> None:
    assert_matches(newton_scan, loop, {**make(kind, 7), "initial": None}, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_non_contiguous(kind: str, device: str) -> None:
    inputs = make(kind, 9)
    inputs["x"] = inputs["x"].transpose(1, -1).contiguous().transpose(1, -1)
    if kind == "gru":
        inputs["recurrent"] = inputs["recurrent"].T.contiguous().T
    assert_matches(newton_scan, loop, inputs, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_final_state_continues_the_scan(kind: str, device: str) -> None:
    _, x, recurrent, initial = to(make(kind, 11), device).values()
    whole, final = newton_scan(kind, x, recurrent, initial)
    first, state = newton_scan(kind, x[:, :4], recurrent, initial)
    second, end = newton_scan(kind, x[:, 4:], recurrent, state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_half_precision_is_float32(kind: str, device: str) -> None:
    inputs = to(make(kind, 7), device, torch.bfloat16)
    h, final = newton_scan(**{**inputs, "recurrent": inputs["recurrent"].float()})
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, device: str) -> None:
    _, *tensors = to(make(kind, 2, 1, 2), device).values()
    leaves = [tensor.requires_grad_() for tensor in tensors]
    assert torch.autograd.gradcheck(lambda *inputs: newton_scan(kind, *inputs), leaves)


@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, device: str) -> None:
    _, x, recurrent, initial = to(make(kind, 5), device).values()
    h = torch.rand(2, 5, 5, dtype=torch.float64, device=device)
    torch.library.opcheck(_backward, (h, initial, kind, x, recurrent, h, initial))
    leaves = [tensor.requires_grad_() for tensor in (x, recurrent, initial)]
    torch.library.opcheck(_forward, (kind, *leaves, 16, 1e-12))


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_break(kind: str, device: str) -> None:
    compiled = torch.compile(newton_scan, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop, make(kind, 9), device=device)


def bad(kind: str = "elman", **changes: Any) -> Any:
    inputs = to(make(kind if kind in KINDS else "elman", 4), torch.float32)
    return newton_scan(**{**inputs, "kind": kind, **changes})


def test_bad_options_are_told() -> None:
    with pytest.raises(ValueError, match="kind is 'lstm'; expected one of elman, gru"):
        bad("lstm")
    with pytest.raises(ValueError, match="iterations is -1; expected 0 or more"):
        bad(iterations=-1)


def test_bad_shapes_are_told() -> None:
    with pytest.raises(ValueError, match=r"x has shape \(2, 4, 5\); expected \(B, T, 3, D\)"):
        bad("gru", x=torch.rand(2, 4, 5))
    with pytest.raises(
        ValueError, match=r"recurrent has shape \(5,\); expected \(3, D\) = \(3, 5\)"
    ):
        bad("gru", recurrent=torch.rand(5))
    with pytest.raises(ValueError, match=r"recurrent has shape \(4,\); expected \(D\) = \(5\)"):
        bad(recurrent=torch.rand(4))
    with pytest.raises(
        ValueError, match=r"initial has shape \(3, 5\); expected \(B, D\) = \(2, 5\)"
    ):
        bad(initial=torch.rand(3, 5))
    with pytest.raises(ValueError, match=r"x has shape \(2, 0, 5\); axis T must not be empty"):
        bad(x=torch.rand(2, 0, 5))


def test_mixed_and_complex_dtypes_and_devices_are_told() -> None:
    with pytest.raises(
        TypeError, match=r"recurrent is torch.float64; expected torch.float32, as x"
    ):
        bad(recurrent=torch.rand(5, dtype=torch.float64))
    x, w = torch.rand(2, 4, 5, dtype=torch.complex64), torch.rand(5, dtype=torch.complex64)
    with pytest.raises(TypeError, match=r"x is torch.complex64; expected a real floating dtype"):
        bad(x=x, recurrent=w, initial=None)
    with pytest.raises(TypeError, match=r"recurrent is on meta, but x is on cpu"):
        bad(recurrent=torch.rand(5, device="meta"))
