"""The specification: a loop over time, one step a kind."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import leaky_relu, logsigmoid

Vectors = tuple[Tensor, ...]  # of the gates, or of the state, (B, H) each


def elman(
    phi: Callable[[Tensor], Tensor],
    x: Vectors,
    product: Vectors,
    state: Vectors,
    leak: Tensor | float,
) -> Vectors:
    return ((1 - leak) * state[0] + leak * phi(x[0] + product[0]),)


def lstm(x: Vectors, product: Vectors, state: Vectors) -> Vectors:
    i, f, g, o = (a + b for a, b in zip(x, product, strict=True))
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru(x: Vectors, product: Vectors, state: Vectors, bias: Tensor | float) -> Vectors:
    r, z = (x[0] + product[0]).sigmoid(), (x[1] + product[1]).sigmoid()
    n = (x[2] + r * (product[2] + bias)).tanh()
    return ((1 - z) * n + z * state[0],)


def slstm(x: Vectors, product: Vectors, state: Vectors) -> Vectors:
    """The stabiliser m carries no gradient: h does not depend on it."""
    i, f, z, o = (a + b for a, b in zip(x, product, strict=True))
    _, c, n, m_before = state
    log_f = logsigmoid(f)
    m = torch.maximum(log_f + m_before, i).detach()
    input_gate, forget_gate = (i - m).exp(), (log_f + m_before.detach() - m).exp()
    c = forget_gate * c + input_gate * z.tanh()
    n = forget_gate * n + input_gate
    return o.sigmoid() * c / n, c, n, m


def gated_rnn(
    kind: str,
    x: Tensor,
    weight: Tensor,
    initial: Tensor,
    *,
    bias: Tensor | float = 0.0,
    leak: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """h (B, T, H) and the last state (B, S, H) from pre-activations (B, T, G, H)."""
    step = {
        "tanh": partial(elman, torch.tanh, leak=leak),
        "relu": partial(elman, torch.relu, leak=leak),
        "leaky_relu": partial(elman, leaky_relu, leak=leak),
        "lstm": lstm,
        "gru": partial(gru, bias=bias),
        "slstm": slstm,
    }[kind]
    state, h = initial.unbind(1), []
    for x_t in x.unbind(1):
        by_head = state[0].unflatten(1, (len(weight), -1))  # (B, heads, P)
        product = torch.einsum("bai,agij->bgaj", by_head, weight).flatten(2)
        state = step(x_t.unbind(1), product.unbind(1), state)
        h.append(state[0])
    return torch.stack(h, 1), torch.stack(state, 1)
