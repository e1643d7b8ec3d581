"""The specification: a loop over time that holds the weights after every token."""

import torch
from torch import Tensor
from torch.nn.functional import gelu

# The accumulated weights A, their momentum S and the anchor: (B, H, ., .) a matrix of the memory.
Weights = tuple[Tensor, ...]


def slope(e: Tensor, loss: str, parameter: float) -> Tensor:
    """The derivative of the inner loss by the error e, element by element."""
    if loss == "huber":
        return e.clamp(-parameter, parameter)
    if loss == "lp":  # its factor p is left to the rate; the floor keeps derivatives finite at 0
        return e.sign() * e.abs().clamp(min=torch.finfo(e.dtype).tiny) ** (parameter - 1)
    return e


def retain(weights: Tensor, retention: str, parameter: float) -> Tensor:
    """The matrices that tokens meet, from the accumulated ones."""
    if retention == "lq":
        power = (weights.abs() ** parameter).sum((-2, -1), keepdim=True)
        return weights * torch.where(power == 0, 1.0, power) ** (2 / parameter - 1)
    return weights.softmax(-2) if retention == "softmax" else weights


def apply(weights: Weights, x: Tensor) -> Tensor:
    """The memory's answer to x (B, H, D): x W, or gelu(x W1) W2."""
    for index, matrix in enumerate(weights):
        x = gelu(x, approximate="tanh") if index else x
        x = torch.einsum("bhi, bhij -> bhj", x, matrix)
    return x


def gelu_slope(z: Tensor) -> Tensor:
    """The derivative of gelu in its tanh form."""
    root = (2 / torch.pi) ** 0.5
    bend = torch.tanh(root * (z + 0.044715 * z**3))
    return (1 + bend) / 2 + z / 2 * (1 - bend**2) * root * (1 + 3 * 0.044715 * z**2)


def surprise(anchor: Weights, k: Tensor, v: Tensor, loss: str, parameter: float) -> Weights:
    """The gradient of loss(f(k; anchor), v) by each matrix of the memory."""
    delta = slope(apply(anchor, k) - v, loss, parameter)
    if len(anchor) == 1:
        return (torch.einsum("bhi, bhj -> bhij", k, delta),)
    z = apply(anchor[:1], k)
    inner = torch.einsum("bhj, bhij -> bhi", delta, anchor[1]) * gelu_slope(z)
    g = gelu(z, approximate="tanh")
    return (
        torch.einsum("bhi, bhj -> bhij", k, inner),
        torch.einsum("bhi, bhj -> bhij", g, delta),
    )


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    state: tuple[Weights, Weights, Weights, int],
    momentum: Tensor | None,
    decay: Tensor | None,
    loss: str,
    loss_parameter: float,
    retention: str,
    retention_parameter: float,
    chunk: int,
) -> tuple[Tensor, tuple[Weights, Weights, Weights, int]]:
    """y (B, T, H, D) and the state after the last token."""
    weights, velocity, anchor, position = state
    outputs = []
    for t in range(q.shape[1]):
        gradients = surprise(anchor, k[:, t], v[:, t], loss, loss_parameter)
        steps = tuple(-rate[:, t, :, None, None] * u for u in gradients)
        if momentum is not None:
            eta = momentum[:, t, :, None, None]
            steps = velocity = tuple(eta * s + u for s, u in zip(velocity, steps, strict=True))
        if decay is not None:
            weights = tuple(decay[:, t, :, None, None] * a for a in weights)
        weights = tuple(a + s for a, s in zip(weights, steps, strict=True))
        position += 1
        if position == chunk:
            anchor = tuple(retain(a, retention, retention_parameter) for a in weights)
            position = 0
        outputs.append(apply(weights if retention == "decay" else anchor, q[:, t]))
    return torch.stack(outputs, 1), (weights, velocity, anchor, position)
