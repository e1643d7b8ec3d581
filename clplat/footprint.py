"""What a run takes: bytes held between experiences, the most memory so far, what parts report."""

import resource
import sys
from typing import Any

import torch

from clplat.several import parts_of


def memory_bytes(strategy: Any, model: Any) -> int | None:
    """What a strategy holds between experiences, and the head beside its weights.

    None where the strategy does not say.
    """
    total = getattr(getattr(model, "head", None), "memory_bytes", 0)
    for part in parts_of(strategy):
        if hasattr(part, "memory_bytes"):
            total += int(part.memory_bytes)
        elif hasattr(part, "state_dict"):
            total += sum(t.numel() * t.element_size() for t in _tensors(part.state_dict()))
        else:
            return None
    return total


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [t for v in value for t in _tensors(v)] if isinstance(value, list | tuple) else []


def measured(strategy: Any, model: Any) -> dict[str, float]:
    """What model and strategy have to report of themselves, by name."""
    return {**getattr(model, "measured", {}), **getattr(strategy, "measured", {})}


def peak_memory(device: torch.device) -> int:
    """Most bytes taken so far: of the device's memory on CUDA, of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
