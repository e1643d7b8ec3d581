"""The linear recurrence h_t = a_t h_{t-1} + x_t, the heart of LRU, S4D, HGRN and GateLoop."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.packed import check_packed
from clplat.ops.tier import run_tier, state_dtype


def linear_scan(
    a: Tensor,
    x: Tensor,
    initial: Tensor | None = None,
    *,
    reverse: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All states of h_t = a_t h_{t-1} + x_t, and the last (Martin and Cundy 2018).

    a: (B, T, D), or (D,) for a constant; x: (B, T, D); initial: (B, D); real or complex. Returns
    h (B, T, D) in the dtype of x and the final state (B, D). `reverse` runs from the last step to
    the first: h_t = a_t h_{t+1} + x_t, and the final state is h_0. Packed: see `clplat.ops`.

    Raises: ValueError for shapes that do not fit, TypeError for dtypes or devices that differ.
    """
    states = "B D" if cu_seqlens is None else "N D"
    axes = "D" if a.ndim == 1 else "B T D"
    sizes = check_inputs(
        "linear_scan",
        ("a", "initial"),
        True,
        x=(x, "B T D"),
        a=(a, axes),
        initial=(initial, states),
    )
    rows, cu_seqlens = check_packed("linear_scan", x, initial, cu_seqlens)
    if initial is None:
        initial = x.new_zeros(rows, sizes["D"], dtype=state_dtype(x))
    return _forward(a.expand(x.shape), x, initial, reverse, cu_seqlens)


@torch.library.custom_op("clplat::linear_scan", mutates_args=())
def _forward(
    a: Tensor, x: Tensor, initial: Tensor, reverse: bool, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    return run_tier(__name__, "forward", x, a, x, initial, reverse, cu_seqlens)


@torch.library.custom_op("clplat::linear_scan_backward", mutates_args=())
def _backward(
    grad_h: Tensor,
    grad_final: Tensor,
    a: Tensor,
    h: Tensor,
    initial: Tensor,
    reverse: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = (grad_h, grad_final, a, h, initial, reverse, cu_seqlens)
    return run_tier(__name__, "backward", h, *arguments)


@_forward.register_fake
def _(a, x, initial, reverse, cu_seqlens):
    return x.new_empty(x.shape), x.new_empty(initial.shape, dtype=state_dtype(x))


@_backward.register_fake
def _(grad_h, grad_final, a, h, initial, reverse, cu_seqlens):
    return a.new_empty(a.shape), h.new_empty(h.shape), initial.new_empty(initial.shape)


def _save(ctx, inputs, output):
    a, _, initial, ctx.reverse, cu_seqlens = inputs
    ctx.save_for_backward(a, output[0], initial, cu_seqlens)


def _differentiate(ctx, grad_h, grad_final):
    a, h, initial, cu_seqlens = ctx.saved_tensors
    return *_backward(grad_h, grad_final, a, h, initial, ctx.reverse, cu_seqlens), None, None


_forward.register_autograd(_differentiate, setup_context=_save)
