"""What the Triton kernels share: functions that run on the device, and how kernels are launched."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from clplat.ops.tier import INTERPRETED, state_dtype

# Said for every launch, since the default differs between backends.
OPTIONS = {"enable_fp_fusion": True}


def accumulator(x: Tensor) -> tl.dtype:
    """The dtype that a kernel computes in for inputs like `x`."""
    return tl.float64 if state_dtype(x) in (torch.float64, torch.complex128) else tl.float32


def operand(x: Tensor) -> tl.dtype:
    """The dtype in which a kernel multiplies matrices for inputs like `x`: theirs.

    The interpreter would take the bits of bfloat16 for integers, so there it is the accumulator's.
    """
    return accumulator(x) if INTERPRETED else getattr(tl, str(x.dtype).removeprefix("torch."))


def float32_precision() -> str:
    """How a kernel multiplies float32 matrices: three products of tf32 make one, where the matrix
    units do not take float32 whole, as AMD's do.
    """
    return "ieee" if torch.version.hip else "tf32x3"


@triton.jit
def sequence(cu_seqlens, T, n):
    """First token and length of sequence n: a row of the batch, or a packed sequence."""
    if cu_seqlens is None:
        begin = n.to(tl.int64) * T
        length = T
    else:
        begin = tl.load(cu_seqlens + n)
        length = (tl.load(cu_seqlens + n + 1) - begin).to(tl.int32)
    return begin, length


@triton.jit
def tanh(x):
    """By the exponential, which the interpreter has too; beyond 20 it is 1 in every dtype."""
    bounded = tl.minimum(x, 20, propagate_nan=tl.PropagateNan.ALL)
    return 1 - 2 / (tl.exp(2 * bounded) + 1)
