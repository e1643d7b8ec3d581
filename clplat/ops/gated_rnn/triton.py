"""Launches the kernels where a head's recurrent matrices fit on chip.

Wider heads are left to cpu.py, which runs on a GPU too, call by call.
"""

import warnings
from typing import Any

import torch
import triton
from torch import Tensor

from clplat.ops.device import OPTIONS, accumulator, float32_precision, operand
from clplat.ops.gated_rnn import cpu
from clplat.ops.gated_rnn.kernels import (
    elman_backward_kernel,
    elman_forward_kernel,
    gru_backward_kernel,
    gru_forward_kernel,
)
from clplat.ops.gated_rnn.kernels_lstm import (
    lstm_backward_kernel,
    lstm_forward_kernel,
    slstm_backward_kernel,
    slstm_forward_kernel,
)
from clplat.ops.gated_rnn.kinds import ELMAN, SLOPE, empty_trace
from clplat.ops.tier import state_dtype

ROWS = 16  # sequences a program: the least that a matrix instruction takes

told: set[str] = set()  # the kinds of which the user knows that a head was too wide

FORWARD = {
    **dict.fromkeys(ELMAN, elman_forward_kernel),
    "lstm": lstm_forward_kernel,
    "gru": gru_forward_kernel,
    "slstm": slstm_forward_kernel,
}
BACKWARD = {
    **dict.fromkeys(ELMAN, elman_backward_kernel),
    "lstm": lstm_backward_kernel,
    "gru": gru_backward_kernel,
    "slstm": slstm_backward_kernel,
}


def tile(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def resident_bytes(weight: Tensor) -> int:
    """What a head's matrices take on chip, in tiles of powers of two."""
    _, gates, _, width = weight.shape
    # A float32 matrix is multiplied as the sum of two of 19 bits each, which are both kept.
    copies = 2 if weight.dtype == torch.float32 and not torch.version.hip else 1
    return gates * tile(width) ** 2 * weight.element_size() * copies


def resident_limit(shared: int) -> int:
    """What they may take: most of a block's shared memory or, on AMD's cards, of the registers."""
    return 32 << 10 if torch.version.hip else min(128 << 10, shared - (32 << 10))


def shared_memory(device: torch.device) -> int:
    """What a block may have of the device's shared memory, in bytes."""
    if device.type != "cuda" or torch.version.hip:
        return 160 << 10
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def fits(kind: str, weight: Tensor) -> bool:
    """Whether the kernels hold the matrices; if not, the user is told, once a kind."""
    needed, limit = resident_bytes(weight), resident_limit(shared_memory(weight.device))
    if needed > limit and kind not in told:
        told.add(kind)
        warnings.warn(
            f"gated_rnn: the matrices of a head of {weight.shape[3]} units in {weight.dtype} take "
            f"{needed >> 10} KiB, and the kernel for {kind} holds {limit >> 10}; a slower form "
            "runs. Use more heads or half precision.",
            stacklevel=2,
        )
    return needed <= limit


def _readable(x: Tensor) -> Tensor:
    """x, or a copy with time first, so that a unit's neighbours and a program's rows are near."""
    near = x.stride(-1) == 1 and x.stride(0) < 2**31 // ROWS
    return x if near else x.transpose(0, 1).contiguous().transpose(0, 1)


def _launch(kernel: Any, kind: str, h: Tensor, weight: Tensor, **named: Any) -> None:
    """Each kernel takes those of the arguments that it names; `h` is (T, B, H)."""
    (time, batch, _), (heads, _, width, _) = h.shape, weight.shape
    size = tile(width)
    warps = min(8, size // (16 if torch.version.hip else 4))
    padded = torch.nn.functional.pad(weight, (0, size - width) * 2).contiguous()
    named |= {"h": h, "weight": padded, "T": time, "B": batch, "heads": heads, "P": width}
    named |= {
        "TANH": kind == "tanh",
        "SLOPE": SLOPE if kind == "leaky_relu" else 0.0,
        "STATE": accumulator(h),
        "OPERAND": operand(h),
        "PRECISION": float32_precision() if h.dtype == torch.float32 else "ieee",
        # Loading a step ahead takes shared memory too.
        "STAGES": 2 if resident_bytes(weight) < resident_limit(shared_memory(weight.device)) else 1,
        "SIZE": size,
        "ROWS": ROWS,
    }
    arguments = {name: named[name] for name in kernel.arg_names}
    grid = triton.cdiv(batch, ROWS), heads
    kernel[grid](**arguments, num_warps=warps, **OPTIONS)


def forward(
    kind: str, x: Tensor, weight: Tensor, initial: Tensor, per_unit: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if not fits(kind, weight):
        return cpu.forward(kind, x, weight, initial, per_unit)
    x = _readable(x)
    per_unit = None if per_unit is None else per_unit.contiguous()
    batch, time, _, width = x.shape
    h = x.new_empty(time, batch, width).transpose(0, 1)
    gates, cells = empty_trace(kind, h, weight, per_unit)
    final = initial.new_empty(initial.shape, dtype=state_dtype(x))
    _launch(
        FORWARD[kind],
        kind,
        h.transpose(0, 1),
        weight,
        x=x,
        initial=initial.contiguous(),
        leak=per_unit,
        bias=per_unit,
        gates=gates,
        cells=cells,
        final=final,
        stride_xb=x.stride(0),
        stride_xt=x.stride(1),
        stride_xg=x.stride(2),
    )
    return h, final, gates, cells


def backward(
    kind: str,
    grad_h: Tensor,
    grad_final: Tensor,
    h: Tensor,
    gates: Tensor,
    cells: Tensor,
    weight: Tensor,
    initial: Tensor,
    per_unit: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, weight, initial and per_unit; of None it is empty."""
    if not fits(kind, weight):
        tensors = (grad_h, grad_final, h, gates, cells, weight, initial, per_unit)
        return cpu.backward(kind, *tensors)
    grad_h = _readable(grad_h)
    h = h.transpose(0, 1).contiguous()
    (time, batch, width), (heads, count, size, _) = h.shape, weight.shape
    grad_x = h.new_empty(time, batch, count, width)
    grad_initial = initial.new_empty(initial.shape)  # contiguous, whatever initial is
    grad_leak = gates.new_empty(triton.cdiv(batch, ROWS), width, dtype=state_dtype(h))
    _launch(
        BACKWARD[kind],
        kind,
        h,
        weight,
        grad_h=grad_h,
        grad_final=grad_final.contiguous(),
        gates=gates.contiguous(),
        cells=cells.contiguous(),
        initial=initial.contiguous(),
        leak=None if per_unit is None else per_unit.contiguous(),
        grad_x=grad_x,
        grad_initial=grad_initial,
        grad_leak=grad_leak,
        stride_b=grad_h.stride(0),
        stride_t=grad_h.stride(1),
    )
    # What reaches the products with the recurrent matrices: grad_x, but for the GRU's q.
    d = grad_x.unflatten(3, (heads, size))
    if kind == "gru":
        d_q = (d[:, :, 2] * gates[:, :, :, 0].transpose(1, 2)).to(d)  # that of x_n, times r
        d = torch.cat([d[:, :, :2], d_q[:, :, None]], 2)
    before = torch.cat([initial[None, :, 0].to(h.dtype), h[:-1]]).unflatten(2, (heads, size))
    grad_weight = torch.einsum("tbai,tbgaj->agij", before, d)
    if per_unit is None:
        grad_unit = h.new_empty(0)
    else:
        grad_unit = d_q.flatten(2).sum((0, 1)) if kind == "gru" else grad_leak.sum(0)
        grad_unit = grad_unit.to(per_unit.dtype)
    return grad_x.transpose(0, 1), grad_weight.contiguous(), grad_initial, grad_unit
