"""What a memory answers and learns at fixed weights, with derivatives; x: (B H, places, D)."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import gelu as exact_or_tanh_gelu

from clplat.ops.neural_memory.reference import slope
from clplat.ops.neural_memory.rule import Rule

Matrices = list[Tensor]  # of the memory, (B H, ., .) each


def gelu(z: Tensor) -> Tensor:
    return exact_or_tanh_gelu(z, approximate="tanh")


def gelu_backward(grad: Tensor, z: Tensor) -> Tensor:
    return torch.ops.aten.gelu_backward(grad, z, approximate="tanh")


def gelu_curvature(z: Tensor) -> Tensor:
    """The second derivative of gelu."""
    root, cube = (2 / torch.pi) ** 0.5, 0.044715
    square = z * z
    bend = torch.tanh(root * z * (1 + cube * square))
    first = root * (1 + 3 * cube * square)
    second = root * 6 * cube * z
    return (1 - bend * bend) * (first + z * (second / 2 - bend * first * first))


def curvature(e: Tensor, rule: Rule) -> Tensor | float:
    """The derivative of the inner loss' slope by the error e."""
    if rule.loss == "huber":
        return (e.abs() <= rule.loss_parameter).to(e.dtype)
    if rule.loss == "lp":
        size, tiny = e.abs(), torch.finfo(e.dtype).tiny
        steep = (rule.loss_parameter - 1) * size.clamp(min=tiny) ** (rule.loss_parameter - 2)
        return steep * (size >= tiny)
    return 1.0


def retain_backward(weights: Tensor, kept: Tensor, grad: Tensor, rule: Rule) -> Tensor:
    """The gradient of weights by that of `kept = retain(weights)`."""
    if rule.retention == "lq":
        q = rule.retention_parameter
        power = (weights.abs() ** q).sum((-2, -1), keepdim=True)
        power = torch.where(power == 0, 1.0, power)
        along = (kept * grad).sum((-2, -1), keepdim=True) * (2 - q) / power
        return grad * power ** (2 / q - 1) + along * weights.sign() * weights.abs() ** (q - 1)
    if rule.retention == "softmax":
        return kept * (grad - (kept * grad).sum(-2, keepdim=True))
    return grad


def answer(x: Tensor, weights: Matrices) -> Tensor:
    """f(x): x W, or gelu(x W1) W2."""
    y = x @ weights[0]
    return y if len(weights) == 1 else gelu(y) @ weights[1]


def answer_backward(x: Tensor, weights: Matrices, grad: Tensor) -> tuple[Tensor, Matrices]:
    """Gradients of x and of the weights."""
    if len(weights) == 1:
        return grad @ weights[0].mT, [x.mT @ grad]
    z = x @ weights[0]
    grad_z = gelu_backward(grad @ weights[1].mT, z)
    return grad_z @ weights[0].mT, [x.mT @ grad_z, gelu(z).mT @ grad]


class Lesson(NamedTuple):
    """Matrix i is to learn the outer products of the rows of inputs[i] and deltas[i]."""

    inputs: Matrices
    deltas: Matrices
    error: Tensor
    hidden: Tensor | None  # k W1
    pull: Tensor | None  # delta W2', before the slope of gelu


def learn(k: Tensor, v: Tensor, anchor: Matrices, rule: Rule) -> Lesson:
    """The gradients of the inner loss at the anchor."""
    if len(anchor) == 1:
        error = torch.baddbmm(v, k, anchor[0], beta=-1)
        return Lesson([k], [slope(error, rule.loss, rule.loss_parameter)], error, None, None)
    hidden = k @ anchor[0]
    g = gelu(hidden)
    error = torch.baddbmm(v, g, anchor[1], beta=-1)
    delta = slope(error, rule.loss, rule.loss_parameter)
    pull = delta @ anchor[1].mT
    return Lesson([k, g], [gelu_backward(pull, hidden), delta], error, hidden, pull)


def learn_backward(
    lesson: Lesson, anchor: Matrices, rule: Rule, grad_inputs: Matrices, grad_deltas: Matrices
) -> tuple[Tensor, Tensor, Matrices]:
    """Gradients of k, v and the anchor."""
    k, grad_k, grad_delta = lesson.inputs[0], grad_inputs[0], grad_deltas[-1]
    if len(anchor) == 1:
        grad_error = grad_delta * curvature(lesson.error, rule)
        return grad_k + grad_error @ anchor[0].mT, -grad_error, [k.mT @ grad_error]
    g, hidden, pull, delta = lesson.inputs[1], lesson.hidden, lesson.pull, lesson.deltas[1]
    assert hidden is not None
    assert pull is not None
    grad_pull = gelu_backward(grad_deltas[0], hidden)
    grad_error = (grad_delta + grad_pull @ anchor[1]) * curvature(lesson.error, rule)
    grad_g = grad_inputs[1] + grad_error @ anchor[1].mT
    grad_hidden = gelu_backward(grad_g, hidden) + grad_deltas[0] * pull * gelu_curvature(hidden)
    grad_anchor = [k.mT @ grad_hidden, g.mT @ grad_error + grad_pull.mT @ delta]
    return grad_k + grad_hidden @ anchor[0].mT, -grad_error, grad_anchor
