"""Which form of an op computes on a tensor."""

import os

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
