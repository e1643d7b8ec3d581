"""gated_scan against its loop over time, in every form; and what it says of bad input."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.ops.gated_scan import EXTRA, _backward, _forward, gated_scan
from clplat.ops.gated_scan.reference import gated_scan as reference
from tests.ops.compare import assert_matches

KINDS = list(EXTRA)
LENGTHS = [1, 7, 63, 65]


def make(kind: str, time: int, batch: int = 2, width: int = 5) -> dict[str, Any]:
    draw = {"generator": torch.Generator().manual_seed(time), "dtype": torch.float64}
    inputs = {
        "kind": kind,
        "gate": torch.randn(batch, time, width, **draw),
        "value": torch.randn(batch, time, width, **draw),
        "initial": torch.randn(batch, width, **draw),
    }
    if kind == "minlstm":
        inputs["input_gate"] = torch.randn(batch, time, width, **draw)
    if kind == "hgrn":
        inputs["lower_bound"] = torch.rand(width, **draw)
    return inputs


def loop(initial: Tensor | None = None, **inputs: Any) -> Any:
    initial = torch.zeros_like(inputs["value"][:, 0]) if initial is None else initial
    h = reference(initial=initial, **inputs)
    return h, h[:, -1]


def part(inputs: dict[str, Any], begin: int, end: int) -> dict[str, Any]:
    """The inputs between two steps; those without an axis of time, whole."""
    return {
        name: value[:, begin:end] if isinstance(value, Tensor) and value.ndim == 3 else value
        for name, value in inputs.items()
    }


def to(inputs: dict[str, Any], *place: Any) -> dict[str, Any]:
    return {n: v.to(*place) if isinstance(v, Tensor) else v for n, v in inputs.items()}


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, time: int, device: str) -> None:
    assert_matches(gated_scan, loop, make(kind, time), device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(kind: str, dtype: torch.dtype, device: str) -> None:
    assert_matches(gated_scan, loop, make(kind, 65), dtype, device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [30.0, -30.0])
def test_saturated_gates(kind: str, size: float, device: str) -> None:
    inputs = make(kind, 7)
    inputs["gate"] = inputs["gate"].abs() * size
    if kind == "minlstm":
        inputs["input_gate"] = inputs["input_gate"] * size
    assert_matches(gated_scan, loop, inputs, torch.float32, device)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # exp is then inf, as meant
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_gates_give_no_nan(kind: str, device: str) -> None:
    inputs = to(make(kind, 7), device, torch.float32)
    gates = [value for name, value in inputs.items() if name in ("gate", "input_gate")]
    for gate in gates:
        gate.mul_(1e4).requires_grad_()
    h, _ = gated_scan(**inputs)
    gradients = torch.autograd.grad(h.square().sum(), gates)
    assert all(tensor.isfinite().all() for tensor in (h, *gradients))


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_initial_state(kind: str, device: str) -> None:
    assert_matches(gated_scan, loop, {**make(kind, 7), "initial": None}, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_non_contiguous(kind: str, device: str) -> None:
    inputs = make(kind, 9)
    for name in {"gate", "value", "input_gate"} & inputs.keys():
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    assert_matches(gated_scan, loop, inputs, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_packed_sequences_are_scanned_apart(kind: str, device: str) -> None:
    starts = [0, 3, 4, 17]
    inputs = {**make(kind, 17, batch=1), "initial": make(kind, 1, batch=3)["initial"]}

    def packed(**inputs: Any) -> Any:
        cu_seqlens = torch.tensor(starts, device=inputs["value"].device)
        return gated_scan(**inputs, cu_seqlens=cu_seqlens)

    def apart(initial: Tensor, **inputs: Any) -> Any:
        parts = [
            loop(initial[n : n + 1], **part(inputs, *ends))
            for n, ends in enumerate(pairwise(starts))
        ]
        return torch.cat([h for h, _ in parts], 1), torch.cat([final for _, final in parts])

    assert_matches(packed, apart, inputs, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_final_state_continues_the_scan(kind: str, device: str) -> None:
    inputs = to(make(kind, 11), device)
    whole, final = gated_scan(**inputs)
    first, state = gated_scan(**part(inputs, 0, 4))
    second, end = gated_scan(**{**part(inputs, 4, 11), "initial": state})
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_half_precision_is_float32(kind: str, device: str) -> None:
    inputs = to(make(kind, 7), device, torch.bfloat16)
    h, final = gated_scan(**inputs)
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_gates_of_half_precision_may_be_float32(kind: str, device: str) -> None:
    inputs = to(make(kind, 7), device, torch.float32)
    inputs["value"] = inputs["value"].bfloat16()
    leaves = {n: v.requires_grad_() for n, v in inputs.items() if isinstance(v, Tensor)}
    h, _ = gated_scan(**inputs)
    gradients = torch.autograd.grad(h.sum(), list(leaves.values()))
    assert h.dtype == torch.bfloat16
    assert [g.dtype for g in gradients] == [leaf.dtype for leaf in leaves.values()]


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, device: str) -> None:
    inputs = to(make(kind, 3, 1, 2), device)
    leaves = {n: v.requires_grad_() for n, v in inputs.items() if isinstance(v, Tensor)}

    def scan(*tensors: Tensor) -> Any:
        return gated_scan(kind, **dict(zip(leaves, tensors, strict=True)))

    assert torch.autograd.gradcheck(scan, list(leaves.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cu_seqlens", [None, torch.tensor([0, 2, 5])])
def test_opcheck(kind: str, cu_seqlens: Tensor | None, device: str) -> None:
    cu_seqlens = cu_seqlens if cu_seqlens is None else cu_seqlens.to(device)
    inputs = to(make(kind, 5, 2 if cu_seqlens is None else 1), device)
    gate, value, extra = inputs["gate"], inputs["value"], inputs.get(EXTRA[kind])
    initial = make(kind, 5)["initial"].to(device)
    torch.library.opcheck(
        _backward, (value, initial, kind, gate, value, extra, value, initial, cu_seqlens)
    )
    for leaf in inputs.values():
        if isinstance(leaf, Tensor):
            leaf.requires_grad_()
    initial.requires_grad_()
    torch.library.opcheck(_forward, (kind, gate, value, extra, initial, cu_seqlens))


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_break(kind: str, device: str) -> None:
    compiled = torch.compile(gated_scan, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop, make(kind, 9), device=device)


def bad(kind: str = "mingru", **changes: Any) -> Any:
    inputs = to(make(kind if kind in KINDS else "mingru", 4), torch.float32)
    return gated_scan(**{**inputs, "kind": kind, **changes})


def test_an_unknown_kind_is_told() -> None:
    with pytest.raises(ValueError, match="kind is 'gru'; expected one of mingru, minlstm, hgrn"):
        bad("gru")


def test_gates_that_a_kind_lacks_or_does_not_have_are_told() -> None:
    with pytest.raises(ValueError, match="input_gate is missing for kind 'minlstm'; give it"):
        bad("minlstm", input_gate=None)
    with pytest.raises(ValueError, match="lower_bound is missing for kind 'hgrn'; give it"):
        bad("hgrn", lower_bound=None)
    with pytest.raises(ValueError, match="input_gate is given for kind 'hgrn'; leave it out"):
        bad("hgrn", input_gate=torch.rand(2, 4, 5))
    with pytest.raises(ValueError, match="lower_bound is given for kind 'mingru'; leave it out"):
        bad("mingru", lower_bound=torch.rand(5))


def test_bad_shapes_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"gate has shape \(2, 3, 5\); expected \(B, T, D\) = \(2, 4, 5\)"
    ):
        bad(gate=torch.rand(2, 3, 5))
    with pytest.raises(ValueError, match=r"input_gate has shape \(2, 4\); expected \(B, T, D\)"):
        bad("minlstm", input_gate=torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"lower_bound has shape \(4,\); expected \(D\) = \(5\)"):
        bad("hgrn", lower_bound=torch.rand(4))
    with pytest.raises(
        ValueError, match=r"initial has shape \(2, 4\); expected \(B, D\) = \(2, 5\)"
    ):
        bad(initial=torch.rand(2, 4))
    with pytest.raises(ValueError, match=r"value has shape \(2, 0, 5\); axis T must not be empty"):
        bad(value=torch.rand(2, 0, 5))


def test_mixed_and_complex_dtypes_and_devices_are_told() -> None:
    with pytest.raises(TypeError, match=r"gate is torch.float64; expected torch.float32, as value"):
        bad(gate=torch.rand(2, 4, 5, dtype=torch.float64))
    x = torch.rand(2, 4, 5, dtype=torch.complex64)
    with pytest.raises(
        TypeError, match=r"value is torch.complex64; expected a real floating dtype"
    ):
        bad(gate=x, value=x, initial=None)
    with pytest.raises(TypeError, match=r"gate is on meta, but value is on cpu"):
        bad(gate=torch.rand(2, 4, 5, device="meta"))


def test_misuse_of_packing_is_told() -> None:
    row = {"gate": torch.rand(1, 4, 5), "value": torch.rand(1, 4, 5), "initial": None}
    with pytest.raises(ValueError, match="do not cover the 4 tokens; expected 0 first, 4 last"):
        bad(**row, cu_seqlens=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="a batch of 1; got one of 2"):
        bad(initial=None, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match="initial has 3 rows; cu_seqlens names 1 sequences"):
        bad(**{**row, "initial": torch.rand(3, 5)}, cu_seqlens=torch.tensor([0, 4]))
    with pytest.raises(ValueError, match=r"expected \(N \+ 1,\) int64"):
        bad(**row, cu_seqlens=torch.tensor([0.0, 4.0]))
