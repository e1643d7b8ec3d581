"""The delta rule: a matrix state that is corrected at one key after another; of DeltaNet's kin."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.packed import check_packed
from clplat.ops.tier import run_tier, state_dtype


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
    initial: Tensor | None = None,
    *,
    n_householder: int = 1,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """y_t = S_t' q_t of S_t = exp(log_decay_t) (I - beta_t k_t k_t') S_{t-1} + beta_t k_t v_t'.

    DeltaNet (Schlag et al. 2021; Yang et al. 2024), with a decay Gated DeltaNet (Yang et al. 2025),
    with beta up to 2 negative eigenvalues (Grazzi et al. 2025), with n = `n_householder` > 1
    corrections a token DeltaProduct (Siems et al. 2025).

    q: (B, T, H, K); k: (B, T n, H, K), of unit length for a state that stays bounded; v:
    (B, T n, H, V); beta: (B, T n, H) in [0, 2]; log_decay: (B, T, H), at most 0, none if None;
    initial: (B, H, K, V). A token's n corrections stand one after another; it decays the state
    before the first and reads it after the last. Returns y (B, T, H, V) in the dtype of q and the
    final state (B, H, K, V). Packed: see `clplat.ops`; `cu_seqlens` counts tokens.

    Raises: ValueError for shapes that do not fit, TypeError for dtypes or devices that differ.
    """
    steps = "T" if n_householder == 1 else "Tn"
    sizes = check_inputs(
        "delta_rule",
        ("beta", "log_decay", "initial"),
        q=(q, "B T H K"),
        k=(k, f"B {steps} H K"),
        v=(v, f"B {steps} H V"),
        beta=(beta, f"B {steps} H"),
        log_decay=(log_decay, "B T H"),
        initial=(initial, "B H K V" if cu_seqlens is None else "N H K V"),
    )
    _check_corrections(n_householder, sizes["T"], sizes[steps])
    rows, cu_seqlens = check_packed("delta_rule", q, initial, cu_seqlens)
    if log_decay is None:
        log_decay = torch.zeros_like(q[..., 0])
    if initial is None:
        initial = q.new_zeros(rows, sizes["H"], sizes["K"], sizes["V"], dtype=state_dtype(q))
    if n_householder == 1:
        return _forward(q, k, v, beta, log_decay, initial, cu_seqlens)
    q = _spread(q, n_householder, at=-1)
    log_decay = _spread(log_decay, n_householder, at=0)
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens * n_householder
    y, final = _forward(q, k, v, beta, log_decay, initial, cu_seqlens)
    return y[:, n_householder - 1 :: n_householder], final


def _check_corrections(count: int, tokens: int, steps: int) -> None:
    if count < 1:
        raise ValueError(f"delta_rule: n_householder is {count}; expected 1 or more")
    if steps != count * tokens:
        raise ValueError(
            f"delta_rule: k has {steps} steps for the {tokens} of q; expected {count * tokens}, "
            f"since n_householder is {count}"
        )


def _spread(x: Tensor, count: int, at: int) -> Tensor:
    """(B, T, ...) -> (B, T * count, ...): zeros but for one place of every `count`."""
    places = [torch.zeros_like(x)] * count
    places[at] = x
    return torch.stack(places, 2).flatten(1, 2)


@torch.library.custom_op("clplat::delta_rule", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    inputs = (q, k, v, beta, log_decay, initial)
    return run_tier(__name__, "forward", q, *inputs, cu_seqlens)


@torch.library.custom_op("clplat::delta_rule_backward", mutates_args=())
def _backward(
    grad_y: Tensor,
    grad_final: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (q, k, v, beta, log_decay, initial)
    return run_tier(__name__, "backward", q, grad_y, grad_final, *inputs, cu_seqlens)


@_forward.register_fake
def _(q, k, v, beta, log_decay, initial, cu_seqlens):
    return q.new_empty(v.shape), q.new_empty(initial.shape, dtype=state_dtype(q))


@_backward.register_fake
def _(grad_y, grad_final, q, k, v, beta, log_decay, initial, cu_seqlens):
    return tuple(x.new_empty(x.shape) for x in (q, k, v, beta, log_decay, initial))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _differentiate(ctx, grad_y, grad_final):
    return *_backward(grad_y, grad_final, *ctx.saved_tensors), None


_forward.register_autograd(_differentiate, setup_context=_save)
