"""Rotary position embedding."""

import torch
from torch import Tensor


def positions(x: Tensor, taken: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of the tokens of x (B, T, ...), after `taken` (B,) others: (B, T), and the count then."""
    if taken is None:
        taken = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    if taken.shape != (len(x),):
        raise ValueError(
            f"the count of tokens has shape {tuple(taken.shape)}; expected ({len(x)},)"
        )
    steps = torch.arange(x.shape[1], device=x.device)
    return taken[:, None] + steps, taken + x.shape[1]


def rotate(x: Tensor, position: Tensor, base: float = 10000.0) -> Tensor:
    """Turn channel pairs of x (B, T, H, P) by angles that grow with position (Su et al. 2021).

    Products of a turned query and a turned key depend on the distance of the two alone. An odd
    last channel stays as it is.
    """
    pairs = x.shape[-1] // 2
    # In half precision the angles of far positions would be off by whole turns.
    exponent = torch.arange(pairs, device=x.device, dtype=torch.float64) / max(pairs, 1)
    angle = position[:, :, None, None] * base**-exponent
    first, second, rest = x[..., :pairs], x[..., pairs : 2 * pairs], x[..., 2 * pairs :]
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    return torch.cat([first * cos - second * sin, first * sin + second * cos, rest], -1)
