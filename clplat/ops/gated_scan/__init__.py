"""Diagonal gated recurrences with their gates computed on the way: minGRU, minLSTM and HGRN."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.packed import check_packed
from clplat.ops.tier import run_tier, state_dtype

# The input that a kind has beside gate and value.
EXTRA = {"mingru": None, "minlstm": "input_gate", "hgrn": "lower_bound"}


def gated_scan(
    kind: str,
    gate: Tensor,
    value: Tensor,
    initial: Tensor | None = None,
    *,
    input_gate: Tensor | None = None,
    lower_bound: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All states of h_t = a_t h_{t-1} + (1 - a_t) g(value_t), and the last.

    - "mingru" (Feng et al. 2024): 1 - a = sigmoid(gate); g(v) = v + 1/2 if v >= 0, else sigmoid(v).
    - "minlstm" (the same paper): a = f / (f + i), f = sigmoid(gate), i = sigmoid(input_gate); g
      as above.
    - "hgrn" (Qin et al. 2023): a = lower_bound + (1 - lower_bound) sigmoid(gate); g = silu.

    gate, value, input_gate: (B, T, D), real, before any nonlinearity; lower_bound: (D,), of values
    in [0, 1); initial: (B, D). Returns h (B, T, D) in the dtype of value and the final state
    (B, D). Packed: see `clplat.ops`.

    Raises: ValueError for an unknown kind, for a gate that the kind lacks or does not have, and for
    shapes that do not fit; TypeError for complex inputs and for dtypes or devices that differ.
    """
    extra = _extra(kind, {"input_gate": input_gate, "lower_bound": lower_bound})
    states = "B D" if cu_seqlens is None else "N D"
    sizes = check_inputs(
        "gated_scan",
        ("gate", "input_gate", "lower_bound", "initial"),
        value=(value, "B T D"),
        gate=(gate, "B T D"),
        input_gate=(input_gate, "B T D"),
        lower_bound=(lower_bound, "D"),
        initial=(initial, states),
    )
    rows, cu_seqlens = check_packed("gated_scan", value, initial, cu_seqlens)
    if initial is None:
        initial = value.new_zeros(rows, sizes["D"], dtype=state_dtype(value))
    return _forward(kind, gate, value, extra, initial, cu_seqlens)


def _extra(kind: str, given: dict[str, Tensor | None]) -> Tensor | None:
    """The one of the given inputs that belongs to `kind`; no other may be there."""
    if kind not in EXTRA:
        raise ValueError(f"gated_scan: kind is {kind!r}; expected one of {', '.join(EXTRA)}")
    for name, tensor in given.items():
        if (tensor is None) == (name == EXTRA[kind]):
            state, mend = ("missing", "give it") if tensor is None else ("given", "leave it out")
            raise ValueError(f"gated_scan: {name} is {state} for kind {kind!r}; {mend}")
    return given.get(EXTRA[kind] or "")


@torch.library.custom_op("clplat::gated_scan", mutates_args=())
def _forward(
    kind: str,
    gate: Tensor,
    value: Tensor,
    extra: Tensor | None,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    arguments = (kind, gate, value, extra, initial, cu_seqlens)
    return run_tier(__name__, "forward", value, *arguments)


@torch.library.custom_op("clplat::gated_scan_backward", mutates_args=())
def _backward(
    grad_h: Tensor,
    grad_final: Tensor,
    kind: str,
    gate: Tensor,
    value: Tensor,
    extra: Tensor | None,
    h: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """Gradients of gate, value and initial, and of extra if there is one."""
    arguments = (grad_h, grad_final, kind, gate, value, extra, h, initial, cu_seqlens)
    return run_tier(__name__, "backward", value, *arguments)


@_forward.register_fake
def _(kind, gate, value, extra, initial, cu_seqlens):
    return value.new_empty(value.shape), value.new_empty(initial.shape, dtype=state_dtype(value))


@_backward.register_fake
def _(grad_h, grad_final, kind, gate, value, extra, h, initial, cu_seqlens):
    like = [gate, value, initial] if extra is None else [gate, value, initial, extra]
    return [tensor.new_empty(tensor.shape) for tensor in like]


def _save(ctx, inputs, output):
    ctx.kind, gate, value, extra, initial, cu_seqlens = inputs
    ctx.save_for_backward(gate, value, extra, output[0], initial, cu_seqlens)


def _differentiate(ctx, grad_h, grad_final):
    found = _backward(grad_h, grad_final, ctx.kind, *ctx.saved_tensors)
    grad_gate, grad_value, grad_initial, grad_extra = [*found, None][:4]
    return None, grad_gate, grad_value, grad_extra, grad_initial, None


_forward.register_autograd(_differentiate, setup_context=_save)
