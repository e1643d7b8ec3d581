"""A copy of what training changes, and how it is put back into a network that grew since."""

import copy
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from torch.optim import Optimizer

from clplat.grown import extended_state, holds, leading

# In the names of buffers that the forward pass writes; all others are left to whoever sets them.
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

Snapshot = dict[str, dict[str, Any]]  # `weights` and `moments`, each by name


def held(model: nn.Module, optimizer: Optimizer) -> dict[str, Parameter]:
    """The parameters of the model that the optimizer trains, by name."""
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    return {name: p for name, p in model.named_parameters() if p in trained}


def snapshot(model: nn.Module, optimizer: Optimizer) -> Snapshot:
    """Copies of trained parameters, of running statistics, and of the optimizer's state."""
    parameters = held(model, optimizer)
    statistics = {n: b for n, b in model.named_buffers() if any(s in n for s in STATISTICS)}
    moments = {n: optimizer.state[p] for n, p in parameters.items() if p in optimizer.state}
    return {
        "weights": {n: t.detach().clone() for n, t in {**parameters, **statistics}.items()},
        "moments": copy.deepcopy(moments),
    }


@torch.no_grad()
def put_back(model: nn.Module, optimizer: Optimizer, kept: Snapshot) -> None:
    """Give model and optimizer what they had when `kept` was made.

    A tensor that has been replaced by a larger one gets its leading entries back; of the others
    the values stay and the optimizer's state is zero. One that was replaced by another that is no
    larger stays as it is, as does what is new.
    """
    parameters = held(model, optimizer)
    now = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    fitting = {n for n, old in kept["weights"].items() if n in now and holds(now[n], old)}
    for name in fitting:
        old = kept["weights"][name]
        leading(now[name], old).copy_(old)

    # By the optimizer's own loading, which knows on which device it keeps what.
    in_order = [p for group in optimizer.param_groups for p in group["params"]]
    index = {p: i for i, p in enumerate(in_order)}
    saved = optimizer.state_dict()
    for name in fitting & parameters.keys():
        old, new = kept["weights"][name], parameters[name]
        saved["state"].pop(index[new], None)
        if name in kept["moments"]:
            state = {k: extended_state(v, old, new) for k, v in kept["moments"][name].items()}
            saved["state"][index[new]] = state
    optimizer.load_state_dict(saved)
