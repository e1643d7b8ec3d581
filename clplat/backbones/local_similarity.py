"""The local similarity classifier of PODNet (Douillard et al. 2020): several proxies a class."""

from typing import Any

import torch
from avalanche.models.dynamic_modules import DynamicModule
from torch import Tensor, nn
from torch.nn.functional import normalize

from clplat.backbones.heads import MASKED
from clplat.errors import at_least


def local_similarity(features: Tensor, proxies: Tensor) -> Tensor:
    """Features (B, D) and K proxies of each class (C, K, D) to similarities (B, C).

    s_k = -||f - w_k||^2 of unit vectors, averaged over k with the weights softmax(s)_k.
    """
    cosines = normalize(features, dim=1) @ normalize(proxies.flatten(0, 1), dim=1).T
    similarities = (2 * cosines - 2).unflatten(1, proxies.shape[:2])
    return (similarities.softmax(2) * similarities).sum(2)


class LocalSimilarity(DynamicModule):
    """Local similarity times a learned scale; a class gains its proxies when first trained on.

    `proxies` are as many for each class. Those of the classes that came together are one parameter,
    `groups[i]` (C, K, D), so that they can be frozen together.
    """

    columns: Tensor

    def __init__(self, features: int, classes: int, proxies: int = 10, scale: float = 1.0):
        super().__init__()
        at_least("head", 1, proxies=proxies)
        self.in_features, self.classes, self.proxies = features, classes, proxies
        self.scale = nn.Parameter(torch.tensor(float(scale)))
        self.groups = nn.ParameterList()
        self.register_buffer("columns", torch.empty(0, dtype=torch.long))  # of the classes, in turn

    def adaptation(self, experience: Any) -> None:
        known = self.columns.tolist()
        new = sorted(set(experience.classes_in_this_experience) - set(known))
        if new and (self.training or not len(self.groups)):
            device = self.columns.device
            self.columns = torch.tensor(known + new, device=device)
            shape = len(new), self.proxies, self.in_features
            drawn = torch.randn(shape, device=device) / self.in_features**0.5
            self.groups.append(nn.Parameter(drawn))

    def forward(self, features: Tensor) -> Tensor:
        if not len(self.groups):
            raise RuntimeError("a local similarity head has no classes before its first experience")
        logits = self.scale * local_similarity(features, torch.cat([*self.groups]))
        output = logits.new_full((len(logits), self.classes), MASKED)
        return output.index_copy(1, self.columns, logits)
