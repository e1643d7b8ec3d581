"""Linear attention whose state decays by a scalar a head: Mamba-2, RetNet, simple GLA, mLSTM."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.packed import check_packed
from clplat.ops.ssd.mlstm import mlstm
from clplat.ops.tier import run_tier, state_dtype

__all__ = ["mlstm", "ssd"]


def ssd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor | None = None,
    *,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T and y_t = S_t^T q_t (Dao and Gu 2024).

    q, k: (B, T, H, K); v: (B, T, H, V); log_decay: (B, T, H), at most 0, down to -inf; initial:
    (B, H, K, V). Returns y (B, T, H, V) in the dtype of q and the final state (B, H, K, V). Nothing
    is scaled. log_decay and initial may be float32 beside half precision. Packed: see `clplat.ops`.

    Raises: ValueError for shapes that do not fit, TypeError for dtypes or devices that differ.
    """
    sizes = check_inputs(
        "ssd",
        ("log_decay", "initial"),
        q=(q, "B T H K"),
        k=(k, "B T H K"),
        v=(v, "B T H V"),
        log_decay=(log_decay, "B T H"),
        initial=(initial, "B H K V" if cu_seqlens is None else "N H K V"),
    )
    rows, cu_seqlens = check_packed("ssd", q, initial, cu_seqlens)
    if initial is None:
        shape = rows, sizes["H"], sizes["K"], sizes["V"]
        initial = q.new_zeros(shape, dtype=state_dtype(q))
    return _forward(q, k, v, log_decay, initial, cu_seqlens)


@torch.library.custom_op("clplat::ssd", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor, cu_seqlens: Tensor | None
) -> tuple[Tensor, Tensor]:
    return run_tier(__name__, "forward", q, q, k, v, log_decay, initial, cu_seqlens)


@torch.library.custom_op("clplat::ssd_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    arguments = (grad_y, grad_final, q, k, v, log_decay, initial, cu_seqlens)
    return run_tier(__name__, "backward", q, *arguments)


@_forward.register_fake
def _(q, k, v, log_decay, initial, cu_seqlens):
    return v.new_empty(v.shape), initial.new_empty(initial.shape, dtype=state_dtype(q))


@_backward.register_fake
def _(grad_y, grad_final, q, k, v, log_decay, initial, cu_seqlens):
    q, k, v, log_decay, initial = (x.new_empty(x.shape) for x in (q, k, v, log_decay, initial))
    return q, k, v, log_decay, initial


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_y, grad_final):
    return *_backward(grad_y, grad_final, *ctx.saved_tensors), None


_forward.register_autograd(_differentiate, setup_context=_save)
