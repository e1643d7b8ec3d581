"""Which form of an op computes on a tensor, and in which precision."""

import importlib
import os
from typing import Any

import torch
from torch import Tensor

# Triton reads the variable when it decorates a kernel, so it is read once here too.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def runs_triton(x: Tensor) -> bool:
    """True for CUDA tensors; for any tensor where Triton's interpreter stands in for the GPU."""
    return x.is_cuda or INTERPRETED


def state_dtype(x: Tensor) -> torch.dtype:
    """What a state of inputs like `x` is held in: at least float32."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def widened(x: Tensor) -> Tensor:
    """x in the dtype of its states: gates near 1 would round to 1 in half precision."""
    return x.to(state_dtype(x))


def full_precision(x: Tensor) -> torch.autocast:
    """A context that computes in the tensors' own precision; autocast would lower float32 sums."""
    return torch.autocast(x.device.type, enabled=False)


def run_tier(package: str, function: str, x: Tensor, *arguments: Any) -> Any:
    """`function` ("forward" or "backward") of the op's tier for x, in full precision."""
    tier = importlib.import_module(f"{package}.{'triton' if runs_triton(x) else 'cpu'}")
    with torch.cuda.device_of(x), full_precision(x):  # Triton launches on the current device
        return getattr(tier, function)(*arguments)
