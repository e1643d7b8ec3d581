"""The specification: a loop over time."""

import torch
from torch import Tensor


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    log_decay: Tensor,
    initial: Tensor,
    n_householder: int = 1,
) -> tuple[Tensor, Tensor]:
    """y (B, T, H, V) and the final state: each token decays S, then corrects it at its keys."""
    S, outputs = initial, []
    writes = zip(k.unbind(1), v.unbind(1), beta.unbind(1), strict=True)
    for query, decay in zip(q.unbind(1), log_decay.exp().unbind(1), strict=True):
        S = decay[..., None, None] * S  # (B, H, K, V)
        for _ in range(n_householder):
            key, value, rate = next(writes)
            error = value - (key[..., None, :] @ S).squeeze(-2)
            S = S + key[..., :, None] * (rate[..., None] * error)[..., None, :]
        outputs.append((query[..., None, :] @ S).squeeze(-2))
    return torch.stack(outputs, 1), S
