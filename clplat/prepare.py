"""From samples as they are stored to what a model sees, a whole batch at a time on the device."""

from dataclasses import dataclass

import torch
from torch import Tensor


def as_float(x: Tensor) -> Tensor:
    """uint8 images as floats in 0..1; anything else unchanged."""
    return x.float().div_(255) if x.dtype == torch.uint8 else x


def random_crop(x: Tensor, padding: int) -> Tensor:
    """Zero-pad (B, C, H, W) on each side, then cut each image back at an offset of its own."""
    batch, _, height, width = x.shape
    padded = torch.nn.functional.pad(x, [padding] * 4)
    offsets = torch.randint(2 * padding + 1, (2, batch, 1), device=x.device)
    rows = offsets[0] + torch.arange(height, device=x.device)  # (B, H)
    columns = offsets[1] + torch.arange(width, device=x.device)  # (B, W)
    image = torch.arange(batch, device=x.device)[:, None, None]
    # Advanced indices on either side of the channel slice move the result to (B, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def random_flip(x: Tensor) -> Tensor:
    """Mirror each image of (B, C, H, W) left to right with probability one half."""
    mirrored = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
    return torch.where(mirrored, x.flip(-1), x)


@dataclass(frozen=True)
class Prepare:
    """Augment (training only), scale uint8 to 0..1, then normalise per channel.

    Floats are taken as already scaled and normalised: batches that another framework's loader
    built from our data pass through unchanged, apart from the augmentation.
    """

    mean: tuple[float, ...] | None = None  # per channel, on the 0..1 scale
    std: tuple[float, ...] | None = None
    crop: int = 0  # zero padding in pixels before a random crop back to size
    flip: bool = False

    def __call__(self, x: Tensor, training: bool = False) -> Tensor:
        if training and self.crop:
            x = random_crop(x, self.crop)
        if training and self.flip:
            x = random_flip(x)
        if x.dtype != torch.uint8:
            return x
        x = as_float(x)
        if self.mean is None or self.std is None:
            return x
        mean, std = (x.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std
