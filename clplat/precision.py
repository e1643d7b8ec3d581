"""What mixed precision does to the gradients that a strategy sees."""

from typing import Any


def loss_scale(strategy: Any) -> float:
    """What gradients are multiplied by until the update."""
    scaler = getattr(strategy, "scaler", None)
    return scaler.get_scale() if scaler else 1.0
