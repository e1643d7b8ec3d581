"""Losses that hold a model's last hidden states to those it had (Zhang et al. 2025, GeRe).

Of a dimension's mean and standard deviation over all tokens, low = mean - std and
high = mean + std. For a state h that was and the state p that is, the threshold margin is

    relu(p - low) where h <= low,  relu(high - p) where h >= high,
    relu(p - high) + relu(low - p) elsewhere,

summed and divided by the count of entries that are not 0: of padding none is. The losses it is
compared with are means over tokens. All are 0 where p = h.
"""

import torch
from torch import Tensor

from clplat.data import Columns


def thresholds(states: Tensor, mask: Tensor | None = None) -> Columns:
    """Mean - std and mean + std of each dimension of (N, T, D), each (D,).

    Over all tokens, or those of `mask` (N, T); std is the root of the mean squared deviation.
    """
    tokens = states.flatten(0, 1) if mask is None else states[mask]
    std, mean = torch.std_mean(tokens, 0, correction=0)
    return [mean - std, mean + std]


def threshold_margin(
    states: Tensor, stored: Tensor, low: Tensor, high: Tensor, mask: Tensor | None = None
) -> Tensor:
    """Mean of what is not 0 of how far each state has left the range that its stored one was in.

    Of states (B, T, D), thresholds (D,) and the mask (B, T) of what is no padding.
    """
    below = stored <= low
    above = (stored >= high) & ~below
    least = torch.where(above, high, low).masked_fill(below, -torch.inf)
    most = torch.where(below, low, high).masked_fill(above, torch.inf)
    margins = (states - states.clamp(least, most)).abs()
    if mask is not None:
        margins = margins.masked_fill(~mask.unsqueeze(-1), 0)
    return margins.sum() / margins.count_nonzero().clamp(min=1)


def token_mean(values: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean of (B, T), or over the tokens of the mask; 0 where it has none."""
    if mask is None:
        return values.mean()
    return values.masked_fill(~mask, 0).sum() / mask.sum().clamp(min=1)


def l1(states: Tensor, stored: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean absolute difference of (B, T, D), over tokens and dimensions."""
    return token_mean((states - stored).abs().mean(-1), mask)


def l2(states: Tensor, stored: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mean squared difference of (B, T, D), over tokens and dimensions."""
    return token_mean((states - stored).square().mean(-1), mask)


def divergence(
    logits: Tensor, stored: Tensor, mask: Tensor | None = None, temperature: float = 2.0
) -> Tensor:
    """KL(stored || present) of softmax at a temperature, mean over tokens, of logits (B, T, V)."""
    new, old = ((z / temperature).log_softmax(-1) for z in (logits, stored))
    return token_mean((old.exp() * (old - new)).sum(-1), mask)
