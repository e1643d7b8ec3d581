"""The matrix memory of xLSTM, whose gates are exponentials, as `ssd` over stabilised gates."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from clplat.ops.checks import check_inputs
from clplat.ops.linear_scan import linear_scan
from clplat.ops.tier import state_dtype

NOTHING = -1e30  # log of the scale of an empty state: as good as -inf, and no difference is NaN


def mlstm(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    input_gate: Tensor,
    forget_gate: Tensor,
    initial: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """The matrix memory of xLSTM with an exponential input gate (Beck et al. 2024).

    With log f_t = logsigmoid(forget_gate_t) and m_t = max(log f_t + m_{t-1}, input_gate_t):

        C_t = exp(log f_t + m_{t-1} - m_t) C_{t-1} + exp(input_gate_t - m_t) k_t v_t^T
        n_t = exp(log f_t + m_{t-1} - m_t) n_{t-1} + exp(input_gate_t - m_t) k_t
        y_t = C_t^T q_t / max(|n_t . q_t|, exp(-m_t))

    q, k: (B, T, H, K); v: (B, T, H, V); input_gate, forget_gate: (B, T, H), before their
    exponential and sigmoid. Returns y (B, T, H, V) and the final state C (B, H, K, V), n (B, H, K),
    m (B, H), which `initial` takes. m keeps the exponentials finite; y does not depend on it, so it
    carries no gradient. Nothing is scaled. Gates and states may be float32 beside half precision.

    Raises: ValueError for shapes that do not fit, TypeError for dtypes or devices that differ.
    """
    C, n, m = initial or (None, None, None)
    sizes = check_inputs(
        "mlstm",
        ("input_gate", "forget_gate", "C", "n", "m"),
        q=(q, "B T H K"),
        k=(k, "B T H K"),
        v=(v, "B T H V"),
        input_gate=(input_gate, "B T H"),
        forget_gate=(forget_gate, "B T H"),
        C=(C, "B H K V"),
        n=(n, "B H K"),
        m=(m, "B H"),
    )
    from clplat.ops.ssd import ssd  # not above: that module exports this function

    dtype = state_dtype(q)
    if initial is None:
        rows = sizes["B"], sizes["H"]
        C = q.new_zeros(*rows, sizes["K"], sizes["V"])
        initial = C, C[..., 0], q.new_full(rows, NOTHING, dtype=dtype)
    C, n, m = (x.to(dtype) for x in initial)
    m = m.detach()
    input_gate, log_forget = input_gate.to(dtype), logsigmoid(forget_gate.to(dtype))
    after = _stabilisers(input_gate.detach(), log_forget.detach(), m)
    before = torch.cat([m[:, None], after[:, :-1]], 1)

    # A column of ones beside v makes n the last column of C.
    y, state = ssd(
        q,
        (k * (input_gate - after).exp()[..., None]).to(k.dtype),
        torch.cat([v, torch.ones_like(v[..., :1])], -1),
        log_forget + (before - after),
        torch.cat([C, n[..., None]], -1),
    )
    scale = torch.maximum(y[..., -1:].abs(), (-after)[..., None].exp())
    y = (y[..., :-1] / scale).to(q.dtype)
    return y, (state[..., :-1], state[..., -1], after[:, -1])


def _stabilisers(input_gate: Tensor, log_forget: Tensor, m: Tensor) -> Tensor:
    """m (B, T, H): the largest exponent of anything in the state, step by step.

    In float64, since the sum over all the sequence comes off again; by a scan, since CUDA's cumsum
    is not deterministic.
    """
    total, _ = linear_scan(log_forget.new_ones(m.shape[-1]).double(), log_forget.double())
    highest = (input_gate - total).cummax(1).values
    return (total + highest.maximum(m[:, None])).to(m.dtype)
