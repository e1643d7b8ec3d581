"""What is left of the accuracy when the weights are not quite what was trained."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from clplat.analysis.weights import replaced


def perturbation_curve(
    weights: nn.Parameter,
    accuracy: Callable[[], float],
    sizes: Sequence[float],
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """(sizes, 2): the deviation of Gaussian noise on `weights`, relative to theirs; the accuracy.

    Khajehabdollahi et al. 2024. The accuracy is the mean over so many draws of the noise, each of
    which is scaled to all sizes in turn; the weights are the trained ones again afterwards.
    """
    deviation, curves = weights.detach().std(correction=0), []
    for _ in range(draws):
        noise = deviation * torch.randn(weights.shape, generator=generator).to(weights)
        curve = []
        for size in sizes:
            with replaced(weights, weights.detach() + size * noise):
                curve.append(accuracy())
        curves.append(curve)
    return torch.stack([torch.tensor(sizes), torch.tensor(curves).mean(0)], 1)
