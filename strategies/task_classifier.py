"""Which task a sample is of, told by a network fitted to some samples of each.

The auxiliary classifier of von Oswald et al. (2020) sees generated samples of earlier tasks; ours
sees kept ones (our reading).
"""

from typing import Any

import torch
from torch import Tensor, nn

from clplat.batches import experience_batches, prepared
from clplat.errors import InputError
from clplat.memory import Memory

HIDDEN = 100
STEPS, BATCH = 500, 64  # of a fit
RATE = 1e-3


class TaskClassifier:
    """Inputs (B, ...) to tasks (B,). Holds `capacity` samples, the same number of each task."""

    def __init__(self, capacity: int):
        if capacity < 2:
            raise InputError(
                f"strategy.capacity={capacity}: a classifier of tasks needs samples of at least 2; "
                "raise it"
            )
        self.memory = Memory(capacity, "class_balanced")
        self.network: nn.Module | None = None
        self.tasks = torch.empty(0, dtype=torch.long)  # what the outputs stand for

    def __call__(self, x: Tensor) -> Tensor:
        if self.network is None:  # one task has ended
            return self.tasks[:1].to(x.device).expand(len(x))
        return self.tasks.to(x.device)[self.network(x).argmax(1)]

    def after_training_exp(self, strategy: Any) -> None:
        """Keep samples of the task that has ended, and fit a network to those of all."""
        task = strategy.model.current[0]
        for x, *_ in experience_batches(strategy):
            self.memory.add(x, torch.full((len(x),), task, device=x.device))
        self.tasks = torch.tensor(sorted(strategy.model.trained))
        x, tasks = self.memory.all()
        if len(self.tasks) > 1:
            places = torch.searchsorted(self.tasks.to(tasks.device), tasks)
            x = prepared(strategy, x, False)
            self.network = fitted(_network(x[0].numel(), len(self.tasks)).to(x.device), x, places)

    def state_dict(self) -> dict[str, Any]:
        network = None if self.network is None else self.network.state_dict()
        return {"memory": self.memory.state_dict(), "network": network, "tasks": self.tasks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.tasks, weights = state["tasks"], state["network"]
        if weights is not None:
            self.network = _network(weights["1.weight"].shape[1], len(self.tasks))
            self.network.to(weights["1.weight"].device).load_state_dict(weights)


def _network(inputs: int, tasks: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, tasks)
    )


@torch.enable_grad()
def fitted(network: nn.Module, x: Tensor, labels: Tensor) -> nn.Module:
    """The network, trained on samples (S, ...) and their labels (S,)."""
    optimizer = torch.optim.Adam(network.parameters(), RATE)
    for _ in range(STEPS):
        chosen = torch.randint(len(x), (BATCH,)).to(x.device)
        loss = nn.functional.cross_entropy(network(x[chosen]), labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval().requires_grad_(False)
