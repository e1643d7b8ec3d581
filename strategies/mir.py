"""Maximally interfered retrieval, MIR (Aljundi et al. 2019): replay what would be forgotten.

Of some samples drawn from the memory, those are replayed whose loss would rise the most by one step
on the incoming batch: l(theta') - l(theta), theta' = theta - rate * gradient of the batch's loss.

The step foreseen is plain SGD's at the optimizer's rate, as in the paper, whatever the optimizer:
to first order the ranking does not depend on the rate; momentum would count earlier batches in, and
most optimizers have no look-ahead. Losses are compared in full precision, as their differences
would drown in the rounding of half, and in evaluation mode; the released code and Avalanche compare
them in training mode, so that candidates move the statistics of batch norm. The loss is the mean
over the batch and what is replayed, as in the paper's algorithm; the code adds two means.
"""

from collections.abc import Mapping
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from clplat.data import Columns
from clplat.errors import InputError, at_least
from clplat.modes import in_evaluation
from strategies.importance import Weights
from strategies.replay import Replay, WithMemory

Moving = tuple[Tensor, float]  # a parameter and the rate of its step


def sample_losses(
    model: nn.Module, weights: Weights | None, x: Tensor, y: Tensor, task: Tensor
) -> Tensor:
    """Cross-entropy of each sample, (B,), with the given weights, or None for the model's own."""
    inputs = (x, task) if is_multi_task_module(model) else (x,)
    output = model(*inputs) if weights is None else functional_call(model, weights, inputs)
    return cross_entropy(output, y, reduction="none")


def interference(
    model: nn.Module, moving: Mapping[str, Moving], incoming: Columns, candidates: Columns
) -> Tensor:
    """What each candidate's loss rises by if plain SGD steps on the incoming batch, (candidates,).

    `moving` holds the parameters that step by name.
    """
    loss = sample_losses(model, None, *incoming).mean()
    parameters = [parameter for parameter, _ in moving.values()]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    with torch.no_grad():
        moved = {
            name: torch.sub(parameter, g, alpha=rate)
            for (name, (parameter, rate)), g in zip(moving.items(), gradients, strict=True)
            if g is not None
        }
        after = sample_losses(model, moved, *candidates)
        return after - sample_losses(model, None, *candidates)


class MIR(SupervisedPlugin):
    """Each batch is joined by the `batch_size` of `candidates` drawn samples that suffer most.

    By default by as many as the loop's own batches have. Capacity and policy of the memory, and
    when it is filled, are those of `Replay`; with as many candidates as are replayed it is
    `Replay`.
    """

    needs_boundaries = False
    owns = ("the batches", "the forward pass")  # which it narrows
    one_target = True  # a class for each sample

    def __init__(
        self,
        capacity: int,
        memory: str = "reservoir",
        candidates: int = 50,
        batch_size: int | None = None,
    ):
        super().__init__()
        at_least("strategy", 1, candidates=candidates)
        if batch_size is not None:
            at_least("strategy", 1, batch_size=batch_size)
        self.replay = Replay(capacity, memory, candidates)
        self.memory, self.candidates, self.batch_size = self.replay.memory, candidates, batch_size

    def check(self, scenario: Any) -> None:
        self.replay.check(scenario)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if (size := self._size(strategy)) > self.candidates:
            raise InputError(
                f"strategy.candidates={self.candidates}: fewer than the {size} samples that are "
                f"chosen of them for each batch; raise it to {size} or more, or lower "
                "strategy.batch_size"
            )
        self.replay.before_training_exp(strategy)

    def _size(self, strategy: Any) -> int:
        return self.batch_size or strategy.train_mb_size

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Leaves only the chosen ones of the candidates that joined the batch."""
        loader = strategy.dataloader
        if not isinstance(loader, WithMemory):
            return
        fresh, size = loader.fresh, self._size(strategy)
        if len(strategy.mb_y) - fresh <= size:
            return
        groups = strategy.optimizer.param_groups
        rates = {p: float(group["lr"]) for group in groups for p in group["params"]}
        named = strategy.model.named_parameters()
        moving = {n: (p, rates[p]) for n, p in named if p in rates and p.requires_grad}
        incoming = [column[:fresh] for column in strategy.mbatch]
        candidates = [column[fresh:] for column in strategy.mbatch]
        with in_evaluation(strategy.model):
            scores = interference(strategy.model, moving, incoming, candidates)
        chosen = scores.topk(size).indices
        strategy.mbatch = [
            torch.cat([own, column[chosen]])
            for own, column in zip(incoming, candidates, strict=True)
        ]

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.replay.after_training_iteration(strategy)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.replay.after_training_exp(strategy)

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state)
