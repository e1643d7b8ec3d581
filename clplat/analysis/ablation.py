"""What is left of the accuracy when units fall silent (Khajehabdollahi et al. 2024)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from clplat.analysis.weights import recurrent_weights, replaced
from clplat.backbones.recurrent import Recurrent


@contextmanager
def silenced(encoder: Recurrent, units: Tensor) -> Iterator[None]:
    """While in the context, the activity of `units` (n,) is 0 at every step for all who read it.

    Their outgoing recurrent weights are 0, and so are their features, which is the same: what
    goes on inside a unit is heard by nobody else. ValueError for a layer without such weights.
    """
    weights = recurrent_weights(encoder.layer)
    if weights is None:
        raise ValueError(
            f"{type(encoder.layer).__name__} has no recurrent weights from unit to unit; expected "
            "LeakyRNN, GRU or LSTM"
        )
    units = units.to(weights.device)
    hook = encoder.register_forward_hook(lambda _, __, features: features.index_fill(1, units, 0))
    try:
        with replaced(weights, weights.detach().index_fill(2, units, 0)):
            yield
    finally:
        hook.remove()


def ablation_curve(
    encoder: Recurrent, accuracy: Callable[[], float], order: Tensor, shares: Sequence[float]
) -> Tensor:
    """(shares, 2): a share of all units, and the accuracy once the first in `order` are silent.

    `order` (width,) has every unit; `accuracy` measures the model that the encoder is part of.
    """
    rows = []
    for share in shares:
        with silenced(encoder, order[: round(share * encoder.width)]):
            rows.append((share, accuracy()))
    return torch.tensor(rows)
