"""Fashion-MNIST as floats, split by class, or random images of its shape where it is absent."""

from functools import cache

import torch
from hydra.utils import get_method
from torch import Tensor

from clplat.errors import InputError

Pairs = list[tuple[Tensor, Tensor]]


@cache
def split_floats(experiences: int = 5, train: bool = True) -> Pairs:
    """(x (N, 784) in 0..1, y (N,)) of each experience, two classes in each of five."""
    try:
        source = get_method("scenarios.sources.fashion_mnist")()
        x, y = source.train if train else source.test
    except InputError as absent:
        print(f"random images instead of Fashion-MNIST: {absent}")
        x, y = torch.randint(256, (60000, 1, 28, 28)), torch.arange(60000) % 10
    x, y = x.flatten(1).float() / 255, y.long()
    groups = torch.arange(10).chunk(experiences)
    return [(x[mine], y[mine]) for mine in (torch.isin(y, group) for group in groups)]
