"""The specification: a loop over time."""

import torch
from torch import Tensor


def linear_scan(a: Tensor, x: Tensor, initial: Tensor, reverse: bool = False) -> Tensor:
    """All states (B, T, D) of h_t = a_t h_{t-1} + x_t; in reverse, h_t = a_t h_{t+1} + x_t."""
    h, states = initial, []
    steps = list(zip(a.unbind(1), x.unbind(1), strict=True))
    for decay, value in reversed(steps) if reverse else steps:
        h = decay * h + value
        states.append(h)
    return torch.stack(states[::-1] if reverse else states, 1)
