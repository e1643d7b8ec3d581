"""Nonlinear diagonal networks, solved for all steps at once by Newton's method."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.tier import run_tier, state_dtype

AXES = {"elman": ("B T D", "D"), "gru": ("B T 3 D", "3 D")}


def newton_scan(
    kind: str,
    x: Tensor,
    recurrent: Tensor,
    initial: Tensor | None = None,
    *,
    iterations: int = 16,
    tolerance: float | None = None,
) -> tuple[Tensor, Tensor]:
    """All states of h_t = f(h_{t-1}, x_t), and the last (ParaRNN, Danieli et al. 2025).

    - "elman": h_t = tanh(x_t + recurrent h_{t-1}); x: (B, T, D), recurrent: (D,).
    - "gru": x: (B, T, 3, D) and recurrent: (3, D), those of r, z and n in this order;
      r, z = sigmoid(x + recurrent h_{t-1}), n = tanh(x + recurrent r h_{t-1}),
      h_t = (1 - z) n + z h_{t-1}.

    initial: (B, D). Returns h (B, T, D) in the dtype of x and the final state (B, D). Newton's
    method makes its last correction where every |h_t - f(h_{t-1}, x_t)| is at most `tolerance`, by
    default 64 roundings, and then errs by about the square; what does not come so far within
    `iterations` is computed step by step.

    Raises: ValueError for an unknown kind, a negative count of iterations, and shapes that do not
    fit; TypeError for complex inputs and for dtypes or devices that differ.
    """
    if kind not in AXES:
        raise ValueError(f"newton_scan: kind is {kind!r}; expected one of {', '.join(AXES)}")
    if iterations < 0:
        raise ValueError(f"newton_scan: iterations is {iterations}; expected 0 or more")
    of_x, of_recurrent = AXES[kind]
    sizes = check_inputs(
        "newton_scan",
        ("recurrent", "initial"),
        x=(x, of_x),
        recurrent=(recurrent, of_recurrent),
        initial=(initial, "B D"),
    )
    if initial is None:
        initial = x.new_zeros(sizes["B"], sizes["D"], dtype=state_dtype(x))
    if tolerance is None:
        tolerance = 64 * torch.finfo(state_dtype(x)).eps
    return _forward(kind, x, recurrent, initial, iterations, tolerance)


@torch.library.custom_op("clplat::newton_scan", mutates_args=())
def _forward(
    kind: str, x: Tensor, recurrent: Tensor, initial: Tensor, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    arguments = (kind, x, recurrent, initial, iterations, tolerance)
    return run_tier(__name__, "forward", x, *arguments)


@torch.library.custom_op("clplat::newton_scan_backward", mutates_args=())
def _backward(
    grad_h: Tensor,
    grad_final: Tensor,
    kind: str,
    x: Tensor,
    recurrent: Tensor,
    h: Tensor,
    initial: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, recurrent and initial."""
    arguments = (grad_h, grad_final, kind, x, recurrent, h, initial)
    return run_tier(__name__, "backward", x, *arguments)


@_forward.register_fake
def _(kind, x, recurrent, initial, iterations, tolerance):
    batch, width = initial.shape
    h = x.new_empty(batch, x.shape[1], width)
    return h, x.new_empty(initial.shape, dtype=state_dtype(x))


@_backward.register_fake
def _(grad_h, grad_final, kind, x, recurrent, h, initial):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, recurrent, initial))


def _save(ctx, inputs, output):
    ctx.kind, x, recurrent, initial, _, _ = inputs
    ctx.save_for_backward(x, recurrent, output[0], initial)


def _differentiate(ctx, grad_h, grad_final):
    return None, *_backward(grad_h, grad_final, ctx.kind, *ctx.saved_tensors), None, None


_forward.register_autograd(_differentiate, setup_context=_save)
