"""An optimizer over what a model says is trainable, kept in step with a model that grows."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from clplat.errors import InputError
from clplat.grown import extended_state, holds

OptimizerFactory = Callable[[list[dict[str, Any]]], Optimizer]
Names = dict[str, Parameter]


def trainable(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups as the model wants them, each `{"params": {name: parameter}, option: ...}`.

    A model says so itself by a method `parameter_groups()`; otherwise one group of all parameters
    that require a gradient.
    """
    if hasattr(model, "parameter_groups"):
        return model.parameter_groups()  # type: ignore[operator]
    return [{"params": {n: p for n, p in model.named_parameters() if p.requires_grad}}]


def make_optimizer(factory: OptimizerFactory, model: nn.Module) -> tuple[Optimizer, Names]:
    """The optimizer, and the parameters it holds by name, which `follow` needs later."""
    groups = trainable(model)
    held = {name: p for group in groups for name, p in group["params"].items()}
    try:
        optimizer = factory([{**g, "params": list(g["params"].values())} for g in groups])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"optimizer: refused its arguments ({error}); correct the keys under optimizer"
        ) from error
    _begin_momentum(optimizer)
    return optimizer, held


def _begin_momentum(optimizer: Optimizer) -> None:
    """Zeros for SGD's momentum, which is how it begins.

    torch makes them at a parameter's first gradient, and its fused form breaks off where some have
    theirs and others not yet, such as the head of a task that is still to come.
    """
    for group in optimizer.param_groups:
        if isinstance(optimizer, torch.optim.SGD) and group["momentum"] and group["fused"]:
            for parameter in group["params"]:
                if parameter not in optimizer.state and not group["dampening"]:
                    zeros = torch.zeros_like(parameter, memory_format=torch.preserve_format)
                    optimizer.state[parameter]["momentum_buffer"] = zeros


def follow(optimizer: Optimizer, model: nn.Module, held: Names) -> Names:
    """Make the optimizer hold what the model has now; returns the parameters by name.

    A parameter that grew keeps its state, with zeros for the new entries; one that was replaced
    by another that is no larger starts afresh; one that is gone is dropped.
    """
    groups = trainable(model)
    now = {name: p for group in groups for name, p in group["params"].items()}
    if now.keys() == held.keys() and all(now[name] is held[name] for name in now):
        return held
    for name, old in held.items():
        new = now.get(name)
        if new is old or old not in optimizer.state:
            continue
        state = optimizer.state.pop(old)
        if new is not None and new.shape != old.shape and holds(new, old):
            optimizer.state[new] = {k: extended_state(v, old, new) for k, v in state.items()}
    del optimizer.param_groups[len(groups) :]
    for i, group in enumerate(groups):
        parameters = list(group["params"].values())
        if i < len(optimizer.param_groups):
            optimizer.param_groups[i]["params"] = parameters
        else:
            optimizer.add_param_group({**group, "params": parameters})
    _begin_momentum(optimizer)
    return now
