"""Mixed precision, as strategies see it: of the passes, and of the gradients."""

from typing import Any

import torch

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(strategy: Any) -> torch.autocast:
    """The precision that the loop's own passes have; Avalanche's loop has none but fp32."""
    dtype = DTYPES[getattr(strategy, "precision", "fp32")]
    return torch.autocast(torch.device(strategy.device).type, dtype, enabled=dtype is not None)


def loss_scale(strategy: Any) -> float:
    """What gradients are multiplied by until the update."""
    scaler = getattr(strategy, "scaler", None)
    return scaler.get_scale() if scaler else 1.0
