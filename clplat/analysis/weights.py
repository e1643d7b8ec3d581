"""The recurrent weights of a layer: which they are, their mean, and others in their place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from clplat.layers.recurrent import GRU, LSTM, LeakyRNN


def recurrent_weights(layer: nn.Module) -> nn.Parameter | None:
    """The weights (1, gates, width, width) from unit to unit, of layers whose output is their h.

    From the second last axis to the last; None for any layer but LeakyRNN, GRU and LSTM.
    """
    return layer.recurrent if isinstance(layer, LeakyRNN | GRU | LSTM) else None


def mean_recurrent_weight(weights: Tensor) -> float:
    """Mean of (..., width, width) without the diagonals; NaN for a single unit."""
    others = ~torch.eye(weights.shape[-1], dtype=torch.bool, device=weights.device)
    return float(weights[..., others].mean())


@contextmanager
def replaced(parameter: nn.Parameter, value: Tensor) -> Iterator[None]:
    """While in the context the parameter holds another value; then its own again, to the bit."""
    kept = parameter.detach().clone()
    try:
        with torch.no_grad():
            parameter.copy_(value)
        yield
    finally:
        with torch.no_grad():
            parameter.copy_(kept)
