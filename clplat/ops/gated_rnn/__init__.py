"""Recurrent networks: Elman's and leaky ones, LSTM, GRU and sLSTM, from the gates' inputs on."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.gated_rnn.kinds import ELMAN, KINDS, empty_trace
from clplat.ops.tier import run_tier, state_dtype


def gated_rnn(
    kind: str,
    x: Tensor,
    weight: Tensor,
    initial: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    leak: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All h of a recurrent network, and its last state.

    x: (B, T, G, H), what the G gates receive from outside, biases included; weight:
    (heads, G, P, P), H = heads P: gate g of unit j of a head receives sum_i h_i weight[g, i, j]
    from the units of that head; initial: (B, S, H), h first. Returns h (B, T, H), laid out with
    time first, and the final state (B, S, H). An x laid out with time first is read fastest.

    - "tanh", "relu", "leaky_relu" (slope .01), G = 1, S = 1: h = (1 - leak) h + leak phi(x + R h);
      leak: (H,), a unit's 1/tau in (0, 1] (Jaeger et al. 2007), or None for 1 (Elman 1990).
    - "lstm", gates i, f, g, o, states h, c: as torch.nn.LSTM (Hochreiter and Schmidhuber 1997).
    - "gru", gates r, z, n, S = 1: as torch.nn.GRU (Cho et al. 2014); bias: (H,), its b_hn, or None:
      n = tanh(x_n + r (R_n h + bias)).
    - "slstm", gates i, f, z, o, states h, c, n, m (Beck et al. 2024): the input gate is
      exponential, the forget gate sigmoid. The stabiliser m carries no gradient.

    Raises: ValueError for an unknown kind, for shapes that do not fit, and for leak or bias where
    the kind has none; TypeError for dtypes or devices that differ.
    """
    if kind not in KINDS:
        raise ValueError(f"gated_rnn: kind is {kind!r}; expected one of {', '.join(KINDS)}")
    if leak is not None and kind not in ELMAN:
        raise ValueError(
            f"gated_rnn: leak is for {', '.join(ELMAN)}; {kind} has none, so leave it out"
        )
    if bias is not None and kind != "gru":
        raise ValueError(f"gated_rnn: bias is for gru; with {kind}, add it to x")
    gates, states = KINDS[kind].gates, KINDS[kind].states
    sizes = check_inputs(
        "gated_rnn",
        ("initial", "bias", "leak"),
        x=(x, f"B T {gates} H"),
        weight=(weight, f"heads {gates} P P"),
        initial=(initial, f"B {states} H"),
        bias=(bias, "H"),
        leak=(leak, "H"),
    )
    if weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"gated_rnn: weight has shape {tuple(weight.shape)}; expected square matrices, "
            f"(heads, {gates}, P, P)"
        )
    if sizes["H"] != sizes["heads"] * sizes["P"]:
        raise ValueError(
            f"gated_rnn: x has {sizes['H']} units, but weight has {sizes['heads']} heads of "
            f"{sizes['P']}; expected H = heads * P"
        )
    if initial is None:
        initial = x.new_zeros(sizes["B"], states, sizes["H"], dtype=state_dtype(x))
        if kind == "slstm":
            initial[:, 3] = -1e30  # so that the first step takes m = i, n = 1
    h, final, _, _ = _forward(kind, x, weight, initial, bias if leak is None else leak)
    return h, final


@torch.library.custom_op("clplat::gated_rnn", mutates_args=())
def _forward(
    kind: str, x: Tensor, weight: Tensor, initial: Tensor, per_unit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """h, the final state, and two tensors for the backward pass; per_unit is the leak or bias."""
    return run_tier(__name__, "forward", x, kind, x, weight, initial, per_unit)


@torch.library.custom_op("clplat::gated_rnn_backward", mutates_args=())
def _backward(
    kind: str,
    grad_h: Tensor,
    grad_final: Tensor,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    weight: Tensor,
    initial: Tensor,
    per_unit: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, initial and per_unit; of None it is empty."""
    tensors = (grad_h, grad_final, h, gates, cells, weight, initial, per_unit)
    return run_tier(__name__, "backward", h, kind, *tensors)


@_forward.register_fake
def _(kind, x, weight, initial, per_unit):
    batch, time, _, width = x.shape
    h = x.new_empty(time, batch, width).transpose(0, 1)
    final = x.new_empty(initial.shape, dtype=state_dtype(x))
    return h, final, *empty_trace(kind, h, weight, per_unit)


@_backward.register_fake
def _(kind, grad_h, grad_final, h, gates, cells, weight, initial, per_unit):
    batch, time, width = h.shape
    return (
        h.new_empty(time, batch, weight.shape[1], width).transpose(0, 1),
        weight.new_empty(weight.shape),
        initial.new_empty(initial.shape),
        h.new_empty(0) if per_unit is None else per_unit.new_empty(width),
    )


def _save(ctx, inputs, output):
    ctx.kind, _, weight, initial, per_unit = inputs
    h, _, gates, cells = output
    ctx.mark_non_differentiable(gates, cells)
    ctx.set_materialize_grads(False)  # or zeros as large as the gates would be made
    ctx.save_for_backward(h, gates, cells, weight, initial, per_unit)


def _differentiate(ctx, grad_h, grad_final, *_):
    h, *_, initial, per_unit = ctx.saved_tensors
    grad_h = torch.zeros_like(h) if grad_h is None else grad_h
    if grad_final is None:
        grad_final = torch.zeros_like(initial, dtype=state_dtype(h))
    grads = _backward(ctx.kind, grad_h, grad_final, *ctx.saved_tensors)
    return None, *grads[:3], None if per_unit is None else grads[3]


_forward.register_autograd(_differentiate, setup_context=_save)
