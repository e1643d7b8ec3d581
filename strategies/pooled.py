"""Distillation of pooled outputs, POD (Douillard et al. 2020): sums of activations are held."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import cosine_similarity, normalize


def pooled(output: Tensor) -> Tensor:
    """Sums of squares along either of the last two axes, side by side, of unit length.

    Of a map (B, C, H, W), (B, C (H + W)); of a sequence (B, T, D), (B, T + D). float32 at least.
    """
    squares = output.to(torch.promote_types(output.dtype, torch.float32)).square()
    return normalize(torch.cat([squares.sum(-1).flatten(1), squares.sum(-2).flatten(1)], 1), dim=1)


def pod_spatial(new: Sequence[Tensor], old: Sequence[Tensor]) -> Tensor:
    """Distance of pooled outputs, mean over samples and over stages.

    A stage's output is a map (B, C, H, W) or a sequence (B, T, D).
    """
    pairs = zip(new, old, strict=True)
    return torch.stack([vector_norm(pooled(a) - pooled(b), dim=1) for a, b in pairs]).mean()


def pod_flat(new: Tensor, old: Tensor) -> Tensor:
    """1 - cosine of features (B, D), mean over samples."""
    wide = torch.promote_types(new.dtype, torch.float32)
    return (1 - cosine_similarity(new.to(wide), old.to(wide))).mean()
