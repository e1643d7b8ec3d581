"""Tensors that a growing network replaced by larger ones: the old entries lead along each axis."""

from typing import Any

import torch
from torch import Tensor


def leading(values: Tensor, like: Tensor) -> Tensor:
    """A view of the entries that `values` had when it was of the shape of `like`."""
    return values if values.shape == like.shape else values[tuple(slice(n) for n in like.shape)]


def holds(new: Tensor, old: Tensor) -> bool:
    """Whether `new` has the shape of `old`, or one that `old` could have grown to."""
    return new.ndim == old.ndim and all(a >= b for a, b in zip(new.shape, old.shape, strict=True))


def extended(old: Tensor | None, new: Tensor) -> Tensor:
    """A copy of `new` whose leading entries are those of `old`."""
    copy = new.detach().clone()
    if old is not None:
        leading(copy, old).copy_(old)
    return copy


def extended_state(value: Any, old: Tensor, new: Tensor) -> Any:
    """A copy of an optimizer's state for `old`, in the shape of `new`: what is new has zeros."""
    if not isinstance(value, Tensor):
        return value
    if value.shape != old.shape:
        return value.clone()
    return extended(value, torch.zeros_like(new, dtype=value.dtype))
