"""The selective state space of Mamba (S6): decay, input and output chosen by the input."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.packed import check_packed
from clplat.ops.selective_scan.chunks import count_rows
from clplat.ops.tier import run_tier, state_dtype


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    initial: Tensor | None = None,
    *,
    negative_eigenvalues: bool = False,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = h_t C_t + D x_t with h_t = exp(dt_t A) * h_{t-1} + dt_t x_t B_t (Gu and Dao 2023).

    x, dt: (B, T, E), dt positive; A: (E, N), negative; B, C: (B, T, N); D: (E,), None for no skip;
    initial: (B, E, N). Returns y (B, T, E) in the dtype of x and the final state (B, E, N).
    `negative_eigenvalues` decays by 2 exp(dt_t A) - 1 instead (Grazzi et al. 2025). Beside x in
    half precision dt, A, D and `initial` may be float32. Packed: see `clplat.ops`.

    Raises: ValueError for shapes that do not fit, TypeError for dtypes or devices that differ.
    """
    states = "B E N" if cu_seqlens is None else "sequences E N"
    sizes = check_inputs(
        "selective_scan",
        ("dt", "A", "D", "initial"),
        x=(x, "B T E"),
        dt=(dt, "B T E"),
        A=(A, "E N"),
        B=(B, "B T N"),
        C=(C, "B T N"),
        D=(D, "E"),
        initial=(initial, states),
    )
    rows, cu_seqlens = check_packed("selective_scan", x, initial, cu_seqlens)
    if D is None:
        D = A.new_zeros(sizes["E"])
    if initial is None:
        initial = x.new_zeros(rows, sizes["E"], sizes["N"], dtype=state_dtype(x))
    y, final, _ = _forward(x, dt, A, B, C, D, initial, negative_eigenvalues, cu_seqlens)
    return y, final


@torch.library.custom_op("clplat::selective_scan", mutates_args=())
def _forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor,
    negative_eigenvalues: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state and the states at the chunks' starts, laid out as in `chunks.py`."""
    inputs = (x, dt, A, B, C, D, initial)
    return run_tier(__name__, "forward", x, *inputs, negative_eigenvalues, cu_seqlens)


@torch.library.custom_op("clplat::selective_scan_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_final: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    starts: Tensor,
    negative_eigenvalues: bool,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D and initial."""
    inputs = (grad_y, grad_final, x, dt, A, B, C, D, starts)
    return run_tier(__name__, "backward", x, *inputs, negative_eigenvalues, cu_seqlens)


@_forward.register_fake
def _(x, dt, A, B, C, D, initial, negative_eigenvalues, cu_seqlens):
    kept = count_rows(x.shape[0] * x.shape[1], initial.shape[0])
    state = {"dtype": state_dtype(x)}
    starts = x.new_empty(kept, *A.shape, **state)
    return x.new_empty(x.shape), x.new_empty(initial.shape, **state), starts


@_backward.register_fake
def _(grad_y, grad_final, x, dt, A, B, C, D, starts, negative_eigenvalues, cu_seqlens):
    inputs = (tensor.new_empty(tensor.shape) for tensor in (x, dt, A, B, C, D))
    return *inputs, grad_final.new_empty(grad_final.shape)


def _save(ctx, inputs, output):
    x, dt, A, B, C, D, initial, ctx.negative_eigenvalues, cu_seqlens = inputs
    _, _, starts = output
    ctx.save_for_backward(x, dt, A, B, C, D, initial, starts, cu_seqlens)
    ctx.mark_non_differentiable(starts)
    ctx.set_materialize_grads(False)  # else zeros would be made as the gradient of `starts`


def _differentiate(ctx, grad_y, grad_final, _):
    x, dt, A, B, C, D, initial, starts, cu_seqlens = ctx.saved_tensors
    if grad_y is None:
        grad_y = torch.zeros_like(x)
    if grad_final is None:
        grad_final = torch.zeros_like(initial, dtype=state_dtype(x))
    *grads, grad_initial = _backward(
        grad_y, grad_final, x, dt, A, B, C, D, starts, ctx.negative_eigenvalues, cu_seqlens
    )
    return *grads, grad_initial.to(initial.dtype), None, None


_forward.register_autograd(_differentiate, setup_context=_save)
