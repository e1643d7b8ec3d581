"""The specification: loops over time."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def ssd(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, initial: Tensor):
    """S_t = exp(log_decay_t) S_{t-1} + k_t v_t^T; y_t = S_t^T q_t. All y, and the last S."""
    state, outputs = initial, []
    steps = (x.unbind(1) for x in (q, k, v, log_decay))
    for q_t, k_t, v_t, log_decay_t in zip(*steps, strict=True):
        state = log_decay_t.exp()[..., None, None] * state + k_t[..., None] * v_t[..., None, :]
        outputs.append((state * q_t[..., None]).sum(-2))
    return torch.stack(outputs, 1), state


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    forget_gate: Tensor,
    initial: tuple[Tensor, Tensor, Tensor],
):
    """As the public function; m carries no gradient, since y is the same whatever it is."""
    C, n, m = initial
    outputs = []
    steps = (x.unbind(1) for x in (q, k, v, input_gate, forget_gate))
    for q_t, k_t, v_t, input_t, forget_t in zip(*steps, strict=True):
        kept = logsigmoid(forget_t) + m.detach()
        m = torch.maximum(kept, input_t).detach()
        keep, write = (kept - m).exp()[..., None], (input_t - m).exp()[..., None]
        n = keep * n + write * k_t
        C = keep[..., None] * C + (write * k_t)[..., None] * v_t[..., None, :]
        scale = torch.maximum((n * q_t).sum(-1).abs(), (-m).exp())
        outputs.append((C * q_t[..., None]).sum(-2) / scale[..., None])
    return torch.stack(outputs, 1), (C, n, m)
