"""Quadratic penalties against naive sums, entry by entry in float64, and against autograd."""

import itertools

import pytest
import torch
from torch import nn

from strategies.quadratic import add_penalty, add_quadratics


class Toy(nn.Module):
    def __init__(self, **shapes):
        super().__init__()
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.randn(shape, dtype=torch.float64)))


class Loop:
    """What `add_penalty` reads of a loop."""

    def __init__(self, model, loss=0.0):
        self.model, self.loss = model, torch.as_tensor(loss, dtype=torch.float64)
        self.scaler = None


def naive_penalty(model, penalties):
    total = torch.zeros((), dtype=torch.float64)
    for importance, anchor in penalties:
        for name, values in importance.items():
            parameter = model.get_parameter(name)
            for at in itertools.product(*map(range, values.shape)):
                total = total + values[at] * (parameter[at] - anchor[name][at]) ** 2
    return total


def test_one_quadratic_has_the_value_and_gradient_of_the_sum_of_all_penalties():
    torch.manual_seed(0)
    shapes = [
        {"shared": (3, 5), "head": (2, 3)},
        {"shared": (3, 5), "head": (2, 3)},
        {"shared": (3, 5), "head": (4, 3), "gate": (3,)},  # the head grew, the gate is new
        {"shared": (3, 5), "head": (5, 3), "gate": (3,)},
    ]
    penalties, importance, anchor, constant = [], {}, {}, 0.0
    for shape in shapes:
        new = {n: torch.rand(s, dtype=torch.float64) for n, s in shape.items()}
        for values in new.values():
            values[torch.rand_like(values) < 0.3] = 0.0  # a dead unit's weights
        at = {n: torch.randn(s, dtype=torch.float64) for n, s in shape.items()}
        penalties.append((new, at))
        importance, anchor, left = add_quadratics(importance, anchor, new, at)
        constant += left

    model = Toy(**shapes[-1], never_seen=(2,))
    loop = Loop(model)
    add_penalty(loop, importance, anchor, 1.0)
    many = naive_penalty(model, penalties)
    torch.testing.assert_close(loop.loss + constant, many.detach())
    names = list(shapes[-1])
    gradients = torch.autograd.grad(many, [model.get_parameter(n) for n in names])
    for name, expected in zip(names, gradients, strict=True):
        torch.testing.assert_close(model.get_parameter(name).grad, expected)
    assert model.never_seen.grad is None


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_the_penalty_and_its_gradient_are_those_of_a_graph(scale):
    torch.manual_seed(0)
    model = nn.ModuleDict(
        {"grown": nn.Linear(3, 5), "old": nn.Linear(3, 2), "idle": nn.Linear(2, 2)}
    ).double()
    then = nn.ModuleDict(
        {"grown": nn.Linear(3, 2), "old": nn.Linear(3, 2), "idle": nn.Linear(2, 2)}
    )
    importance = {n: torch.rand(p.shape).double() for n, p in then.named_parameters()}
    anchor = {n: torch.randn(p.shape).double() for n, p in then.named_parameters()}
    x = torch.randn(7, 3, dtype=torch.float64)

    def task_loss():
        return (model["grown"](x).square().mean() + model["old"](x).square().mean()) * scale

    penalty = 0.7 * naive_penalty(model, [(importance, anchor)])
    (task_loss() + scale * penalty).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    loss = task_loss()
    loss.backward()  # leaves `idle` without gradients
    loop = Loop(model, loss.detach() / scale)
    if scale > 1:
        loop.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loop.scaler.scale(torch.ones(()))
    add_penalty(loop, importance, anchor, 0.7)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    torch.testing.assert_close(loop.loss, (loss / scale + penalty).detach())
