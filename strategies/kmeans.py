"""k-means (Lloyd 1982) on whichever device the points are on."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot


def spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """(K, D): `count` of the points (N, D), drawn far from each other (k-means++, Arthur and
    Vassilvitskii 2007).

    Once all points are taken, some are taken again.
    """
    draws = torch.rand(count, generator=generator).to(points)
    chosen = [(draws[0] * len(points)).long()]
    nearest = torch.full_like(points[:, 0], float("inf"))
    for draw in draws[1:]:
        nearest = nearest.minimum((points - points[chosen[-1]]).square().sum(1))
        total = nearest.cumsum(0)
        place = torch.searchsorted(total, draw * total[-1], right=True)
        chosen.append(place.clamp_max(len(points) - 1))
    return points[torch.stack(chosen)]


def k_means(points: Tensor, centres: Tensor, iterations: int = 100) -> Tensor:
    """Centres (K, D) of points (N, D), from the ones given until no point changes its own.

    A centre that is nearest to no point stays where it is.
    """
    members = None
    for _ in range(iterations):
        nearest = torch.cdist(points, centres).argmin(1)
        if members is not None and torch.equal(nearest, members):
            break
        members = nearest
        taken = one_hot(members, len(centres)).to(points)
        counts = taken.sum(0)[:, None]
        centres = torch.where(counts > 0, taken.T @ points / counts.clamp_min(1), centres)
    return centres
