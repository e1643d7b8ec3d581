"""The specification: a loop over time."""

import torch
from torch import Tensor


def gated_scan(
    kind: str,
    gate: Tensor,
    value: Tensor,
    initial: Tensor,
    input_gate: Tensor | None = None,
    lower_bound: Tensor | None = None,
) -> Tensor:
    """All states (B, T, D) of h_t = a_t h_{t-1} + b_t with the gates of `kind`."""
    if kind == "mingru":
        z = gate.sigmoid()
        a, b = 1 - z, z * _positive(value)
    elif kind == "minlstm":
        assert input_gate is not None
        f, i = gate.sigmoid(), input_gate.sigmoid()
        a, b = f / (f + i), i / (f + i) * _positive(value)
    else:
        assert lower_bound is not None
        a = lower_bound + (1 - lower_bound) * gate.sigmoid()
        b = (1 - a) * torch.nn.functional.silu(value)
    h, states = initial, []
    for decay, new in zip(a.unbind(1), b.unbind(1), strict=True):
        h = decay * h + new
        states.append(h)
    return torch.stack(states, 1)


def _positive(value: Tensor) -> Tensor:
    return torch.where(value >= 0, value + 0.5, value.sigmoid())
