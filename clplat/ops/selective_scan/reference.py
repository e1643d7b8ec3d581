"""The specification: a loop over time."""

import torch
from torch import Tensor


def selective_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    initial: Tensor,
    negative_eigenvalues: bool = False,
) -> tuple[Tensor, Tensor]:
    """y_t = h_t C_t + D x_t, where h_t = decay_t * h_{t-1} + dt_t x_t B_t; and the last h."""
    h, outputs = initial, []
    for x_t, dt_t, B_t, C_t in zip(
        x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True
    ):
        decay = torch.exp(dt_t[:, :, None] * A)  # (B, E, N)
        decay = 2 * decay - 1 if negative_eigenvalues else decay
        h = decay * h + (dt_t * x_t)[:, :, None] * B_t[:, None, :]
        outputs.append((h * C_t[:, None, :]).sum(-1) + D * x_t)
    return torch.stack(outputs, 1), h
