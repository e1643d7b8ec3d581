"""Classes by their mean features (Snell et al. 2017)."""

import torch
from torch import Tensor, nn

from clplat.backbones.heads import MASKED


def squared_distances(features: Tensor, means: Tensor) -> Tensor:
    """Euclidean, (B, D) and (C, D) -> (B, C), in float32 at least.

    Of differences, not of products: those lose what little lies between means far from the origin.
    """
    wide = torch.promote_types(features.dtype, torch.float32)
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(features.to(wide), means.to(wide), compute_mode=mode).square()


class Prototypes(nn.Module):
    """A head: minus the squared distance to each class's prototype, the mean of its features.

    It trains through a linear layer; once prototypes are there, evaluation uses them alone. The
    prototype of a class that comes again is the mean over all its samples, so the encoder should
    stay as it is (strategy=frozen). `NearestMeanFit` moves the prototypes after each experience.
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.register_buffer("sums", torch.zeros(classes, features))
        self.register_buffer("counts", torch.zeros(classes))

    @property
    def memory_bytes(self) -> int:
        """What is remembered of the experiences."""
        known = int((self.counts > 0).sum())
        return known * self.sums.shape[1] * self.sums.element_size()

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Take features (N, D) into the prototypes of their labels (N,)."""
        self.sums.index_add_(0, labels, features.to(self.sums))
        self.counts.index_add_(0, labels, torch.ones_like(labels, dtype=self.counts.dtype))

    def forward(self, features: Tensor) -> Tensor:
        if self.training or not self.counts.any():
            return self.linear(features)
        means = self.sums / self.counts.clamp(min=1)[:, None]
        return torch.where(self.counts > 0, -squared_distances(features, means), MASKED)
