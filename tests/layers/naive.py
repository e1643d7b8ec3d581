"""Parts that several naive layers share, written as loops over time in plain operations."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Weights = tuple[Tensor, ...]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def gelu(x: Tensor) -> Tensor:
    """In its tanh form."""
    return 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))


def rms_norm(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    """x / its root mean square over the last axis, times the weight."""
    return norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    y = x @ layer.weight.T
    return y if layer.bias is None else y + layer.bias


def heads(x: Tensor, count: int) -> Tensor:
    """(..., width) -> (..., count, width / count)"""
    return x.reshape(*x.shape[:-1], count, x.shape[-1] // count)


def convolution(layer, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """SiLU(bias + sum_j w_j x_{t-j}); the newest input has the last of the stored weights."""
    size, width = layer.size, x.shape[-1]
    past = list(torch.zeros(size - 1, len(x), width).to(x)) if state is None else [*state.unbind(1)]
    outputs = []
    for x_t in x.unbind(1):
        past.append(x_t)
        total = layer.bias
        for j in range(size):
            total = total + layer.weight[:, 0, size - 1 - j] * past[-1 - j]
        outputs.append(silu(total))
    empty = x.new_zeros(len(x), 0, width)
    return torch.stack(outputs, 1), torch.stack(past[1 - size :], 1) if size > 1 else empty


def rotated(x: Tensor, position: int) -> Tensor:
    """One token (..., P) turned: channel i with channel i + P // 2, as complex numbers."""
    pairs = x.shape[-1] // 2
    turned = x.clone()
    for i in range(pairs):
        angle = torch.tensor(position * 10000.0 ** (-i / pairs), dtype=torch.float64)
        number = torch.complex(x[..., i], x[..., i + pairs])
        number = number * torch.complex(angle.cos(), angle.sin()).to(number)
        turned[..., i], turned[..., i + pairs] = number.real, number.imag
    return turned


# --- memories that learn while they are read -----------------------------------------------------


def answer(weights: Weights, x: Tensor) -> Tensor:
    """f of x (B, heads, P): a linear map, or a perceptron with one hidden layer."""
    x = (x[..., None, :] @ weights[0])[..., 0, :]
    return x if len(weights) == 1 else (gelu(x)[..., None, :] @ weights[1])[..., 0, :]


def squared(e: Tensor) -> Tensor:
    return e.square().sum() / 2


def as_it_is(weights: Tensor) -> Tensor:
    return weights


def learn(
    tokens: tuple[Tensor, Tensor, Tensor],
    gates: tuple[Tensor, Tensor | None, Tensor | None],
    state: tuple[Weights, Weights, Weights, int],
    chunk: int,
    loss: Callable[[Tensor], Tensor] = squared,
    retain: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, tuple[Weights, Weights, Weights, int]]:
    """One token: q, k, v (B, heads, P); rate, momentum and decay (B, heads); what q reads.

    The gradient is torch's own, of the inner loss as it is written, at the chunk's first weights.
    """
    q, k, v = tokens
    rate, momentum, decay = (None if g is None else g[..., None, None] for g in gates)
    A, S, anchor, position = state
    met = tuple(w.clone() for w in anchor)  # so that no other path to them is differentiated
    gradients = torch.autograd.grad(loss(answer(met, k) - v), met, create_graph=True)
    steps = tuple(-rate * gradient for gradient in gradients)
    if momentum is not None:
        steps = S = tuple(momentum * s + step for s, step in zip(S, steps, strict=True))
    A = A if decay is None else tuple(decay * a for a in A)
    A = tuple(a + step for a, step in zip(A, steps, strict=True))
    position += 1
    if position == chunk:
        anchor, position = tuple((retain or as_it_is)(a) for a in A), 0
    return answer(A if retain is None else anchor, q), (A, S, anchor, position)


def untaught(
    layer, rows: int, retain: Callable[[Tensor], Tensor] | None = None
) -> tuple[Weights, Weights, Weights, int]:
    """The state before the first token."""
    A = tuple(w.expand(rows, *w.shape) for w in layer.weights)
    return A, tuple(0 * a for a in A), tuple((retain or as_it_is)(a) for a in A), 0


def inner_gates(layer, x_t: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """A chunk's steps sum to 2 at most; momentum takes its share of each."""
    maps = layer.gates.rate, layer.gates.momentum, layer.gates.decay
    rate, eta, alpha = (None if gate is None else sigmoid(linear(gate, x_t)) for gate in maps)
    chunk = layer.segment if hasattr(layer, "segment") else layer.memory.keywords["chunk"]
    return 2 / chunk * rate * (1 if eta is None else 1 - eta), eta, alpha


def memory(
    layer,
    x: Tensor,
    state,
    loss: Callable[[Tensor], Tensor] = squared,
    retain: Callable[[Tensor], Tensor] | None = None,
):
    """A layer of `clplat.layers.memory`."""
    convolved, learned = (None, untaught(layer, len(x), retain)) if state is None else state
    inner, convolved = convolution(layer.convolution, linear(layer.input, x), convolved)
    outputs = []
    for x_t, inner_t in zip(x.unbind(1), inner.unbind(1), strict=True):
        q, k, v = (heads(part, layer.heads) for part in inner_t.chunk(3, 1))
        tokens, gates = (unit(q), unit(k), v), inner_gates(layer, x_t)
        y, learned = learn(tokens, gates, learned, layer.memory.keywords["chunk"], loss, retain)
        y = rms_norm(layer.norm, y).flatten(1) * silu(linear(layer.gate, x_t))
        outputs.append(linear(layer.output, y))
    return torch.stack(outputs, 1), (convolved, learned)


# --- attention -----------------------------------------------------------------------------------


def attended(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """The values (B, heads, P) weighted by the softmax of q . k / sqrt(P)."""
    weights = [torch.exp((q * k).sum(-1) / q.shape[-1] ** 0.5) for k in keys]
    pairs = zip(weights, values, strict=True)
    return sum(w[..., None] * v for w, v in pairs) / sum(weights)[..., None]


def window(layer, x: Tensor, state):
    """SlidingWindowAttention, a sequence at a time: its count says what of a state is real."""
    before, per = layer.window - 1, layer.width // layer.heads
    if state is None:
        empty = x.new_zeros(len(x), before, layer.heads, per)
        state = empty, empty, torch.zeros(len(x), dtype=torch.int64)
    outputs, finals = [], []
    for row in range(len(x)):
        keys, values = (list(part[row, :, None].unbind(0)) for part in state[:2])
        persistent = [], []
        if layer.persistent is not None:
            _, k, v = linear(layer.input, layer.persistent).chunk(3, 1)
            persistent = [[heads(p, layer.heads)[None] for p in part] for part in (k, v)]
        y, taken = [], int(state[2][row])
        for x_t in x[row]:
            q, k, v = (heads(p, layer.heads)[None] for p in linear(layer.input, x_t).chunk(3))
            keys.append(rotated(k, taken))
            values.append(v)
            taken += 1
            seen = min(taken, layer.window)
            near = [
                list(always) + part[-seen:]
                for always, part in zip(persistent, (keys, values), strict=True)
            ]
            y.append(attended(rotated(q, taken - 1), *near)[0])
        outputs.append(linear(layer.output, torch.stack(y).flatten(1)))
        none = x.new_zeros(0, layer.heads, per)
        last = [torch.cat([none, *part[len(part) - before :]]) for part in (keys, values)]
        finals.append((*last, torch.tensor(taken)))
    return torch.stack(outputs), tuple(torch.stack(part) for part in zip(*finals, strict=True))
