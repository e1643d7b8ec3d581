"""One program a sequence and block of channels; a loop over time carries the state in registers.

Both passes compute the gates where they need them. Layout (B, T, D); offsets are 64 bits wide.
"""

import triton
import triton.language as tl
from torch import Tensor

from clplat.ops.device import OPTIONS, accumulator, sequence
from clplat.ops.packed import lengths
from clplat.ops.tier import state_dtype

BLOCK = 64  # channels a program; two warps, so that small widths fill a card too


@triton.jit
def log_sigmoid(x):
    """No overflow at either end."""
    return tl.minimum(x, 0.0) - tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def load_extra(extra, at, d, mask, KIND: tl.constexpr, STATE: tl.constexpr):
    """The kind's third input at this step: minLSTM's input gate or HGRN's lower bound."""
    if KIND == "minlstm":
        found = tl.load(extra + at, mask, 0.0).to(STATE)
    elif KIND == "hgrn":
        found = tl.load(extra + d, mask, 0.0).to(STATE)
    else:
        found = tl.zeros(d.shape, STATE)
    return found


@triton.jit
def weigh(gate, extra, KIND: tl.constexpr):
    """w, the weight of the new value: h_t = (1 - w_t) h_{t-1} + w_t g_t."""
    if KIND == "minlstm":
        w = tl.sigmoid(log_sigmoid(extra) - log_sigmoid(gate))
    elif KIND == "hgrn":
        w = (1 - extra) * tl.sigmoid(-gate)
    else:
        w = tl.sigmoid(gate)
    return w


@triton.jit
def propose(value, KIND: tl.constexpr):
    """g, the value that the gate lets in, and its slope."""
    s = tl.sigmoid(value)
    if KIND == "hgrn":
        new = value * s
        slope = s * (1 + value * (1 - s))
    else:
        new = tl.maximum(value + 0.5, s)
        slope = tl.where(value >= 0, 1.0, s * (1 - s))
    return new, slope


@triton.jit(do_not_specialize=["T"])
def forward_kernel(
    gate, value, extra, initial, h, final, cu_seqlens, T, D,
    KIND: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    begin, length = sequence(cu_seqlens, T, n)
    at_state = n.to(tl.int64) * D + d

    state = tl.load(initial + at_state, mask, 0.0).to(STATE)
    for t in range(length):
        at = (begin + t) * D + d
        gate_t = tl.load(gate + at, mask, 0.0).to(STATE)
        new, _ = propose(tl.load(value + at, mask, 0.0).to(STATE), KIND)
        w = weigh(gate_t, load_extra(extra, at, d, mask, KIND, STATE), KIND)
        state = (1 - w) * state + w * new
        tl.store(h + at, state, mask)
    tl.store(final + at_state, state, mask)


@triton.jit(do_not_specialize=["T"])
def backward_kernel(
    grad_h, grad_final, gate, value, extra, h, initial,
    grad_gate, grad_value, grad_initial, grad_extra, cu_seqlens, T, D,
    KIND: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Carries dL/dh_t. The lower bound's gradient is summed over the sequence's steps here, and
    over the sequences by the caller.
    """
    n = tl.program_id(0)
    d = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = d < D
    begin, length = sequence(cu_seqlens, T, n)
    at_state = n.to(tl.int64) * D + d

    grad = tl.load(grad_final + at_state, mask, 0.0).to(STATE)
    grad_bound = tl.zeros([BLOCK], STATE)
    for i in range(length):
        t = length - 1 - i
        at = (begin + t) * D + d
        if t > 0:
            before = tl.load(h + at - D, mask, 0.0).to(STATE)
        else:
            before = tl.load(initial + at_state, mask, 0.0).to(STATE)
        gate_t = tl.load(gate + at, mask, 0.0).to(STATE)
        extra_t = load_extra(extra, at, d, mask, KIND, STATE)
        new, slope = propose(tl.load(value + at, mask, 0.0).to(STATE), KIND)
        w = weigh(gate_t, extra_t, KIND)
        grad += tl.load(grad_h + at, mask, 0.0).to(STATE)
        grad_w = grad * (new - before)
        if KIND == "minlstm":
            grad_logit = grad_w * w * (1 - w)
            tl.store(grad_gate + at, -grad_logit * tl.sigmoid(-gate_t), mask)
            tl.store(grad_extra + at, grad_logit * tl.sigmoid(-extra_t), mask)
        elif KIND == "hgrn":
            tl.store(grad_gate + at, -grad_w * w * tl.sigmoid(gate_t), mask)
            grad_bound -= grad_w * tl.sigmoid(-gate_t)
        else:
            tl.store(grad_gate + at, grad_w * w * (1 - w), mask)
        tl.store(grad_value + at, grad * w * slope, mask)
        grad *= 1 - w
    tl.store(grad_initial + at_state, grad, mask)
    if KIND == "hgrn":
        tl.store(grad_extra + at_state, grad_bound, mask)


def _launch(kernel, tensors: list[Tensor | None], kind: str, value: Tensor, cu_seqlens) -> None:
    batch, time, width = value.shape
    if cu_seqlens is not None:
        lengths(cu_seqlens, time)
        batch = len(cu_seqlens) - 1
    kernel[batch, triton.cdiv(width, BLOCK)](
        *tensors, cu_seqlens, time, width,
        KIND=kind, STATE=accumulator(value), BLOCK=BLOCK, num_warps=2, **OPTIONS,
    )  # fmt: skip


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


def forward(
    kind: str,
    gate: Tensor,
    value: Tensor,
    extra: Tensor | None,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    h = value.new_empty(value.shape)
    final = value.new_empty(initial.shape, dtype=state_dtype(value))
    tensors = [*_contiguous(gate, value, extra, initial), h, final]
    _launch(forward_kernel, tensors, kind, value, cu_seqlens)
    return h, final


def backward(
    grad_h: Tensor,
    grad_final: Tensor,
    kind: str,
    gate: Tensor,
    value: Tensor,
    extra: Tensor | None,
    h: Tensor,
    initial: Tensor,
    cu_seqlens: Tensor | None,
) -> list[Tensor]:
    """Gradients of gate, value and initial, and of extra if there is one."""
    grads = [tensor.new_empty(tensor.shape) for tensor in (gate, value, initial)]
    grad_extra = None
    if kind == "hgrn":  # of each sequence apart
        grad_extra = value.new_empty(initial.shape, dtype=state_dtype(value))
    elif extra is not None:
        grad_extra = extra.new_empty(extra.shape)
    given = _contiguous(grad_h, grad_final, gate, value, extra, h, initial)
    _launch(backward_kernel, [*given, *grads, grad_extra], kind, value, cu_seqlens)
    if extra is None or grad_extra is None:
        return grads
    return [*grads, grad_extra.sum(0).to(extra.dtype) if kind == "hgrn" else grad_extra]
