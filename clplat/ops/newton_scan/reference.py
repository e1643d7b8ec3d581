"""The specification: a loop over time."""

import torch
from torch import Tensor


def newton_scan(kind: str, x: Tensor, recurrent: Tensor, initial: Tensor) -> Tensor:
    """All states (B, T, D) of the diagonal Elman network or GRU."""
    h, states = initial, []
    for now in x.unbind(1):
        if kind == "elman":
            h = torch.tanh(now + recurrent * h)
        else:
            (x_r, x_z, x_n), (r_r, r_z, r_n) = now.unbind(1), recurrent
            r, z = torch.sigmoid(x_r + r_r * h), torch.sigmoid(x_z + r_z * h)
            n = torch.tanh(x_n + r_n * (r * h))
            h = (1 - z) * n + z * h
        states.append(h)
    return torch.stack(states, 1)
