"""Evaluation in the midst of training, and networks that are not trained any more."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


def frozen_copy(model: nn.Module) -> nn.Module:
    """A copy that stays as the model is now, in evaluation mode and without gradients."""
    return copy.deepcopy(model).eval().requires_grad_(False)


@contextmanager
def in_evaluation(model: nn.Module) -> Iterator[None]:
    """In evaluation mode; then every module in its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
