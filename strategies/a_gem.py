"""Averaged gradient episodic memory, A-GEM (Chaudhry, Ranzato et al. 2019): no step against memory.

With g the gradient of the batch and r that of a batch drawn from the memory, a step along
g - min(g.r / r.r, 0) r does not raise the memory's loss, to first order, and is the nearest to g.

Parameters that the batch does not reach, such as another task's head, have a gradient of 0 and are
projected with the others, as in the paper; Avalanche leaves them out. r is drawn from the whole
memory; Avalanche draws as many samples of every experience. In a stream without boundaries the
memory has samples of the present too: our reading.
"""

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.batches import ordered, prepared, stored_inputs
from clplat.precision import loss_scale
from strategies.replay import Replay


def projected(gradient: Tensor, reference: Tensor) -> Tensor:
    """g - min(g.r / r.r, 0) r of vectors g and r.

    The outcome is of the scale of g, whatever that of r. What is not finite in either stays so, for
    a gradient scaler to find.
    """
    square = (reference @ reference).clamp_min(torch.finfo(reference.dtype).tiny)
    share = (gradient @ reference / square).clamp_max(0)
    return torch.addcmul(gradient, reference, share, value=-1)


def flat(tensors: Sequence[Tensor | None], like: Sequence[Tensor]) -> Tensor:
    """All in a row, zeros for those that are None."""
    pairs = zip(tensors, like, strict=True)
    return torch.cat([(torch.zeros_like(p) if t is None else t).flatten() for t, p in pairs])


class AGEM(SupervisedPlugin):
    """Projects gradients that conflict with the gradient of `batch_size` samples of the memory.

    Capacity and policy of the memory, and when it is filled, are those of `Replay`.
    """

    needs_boundaries = False
    owns = ("the batches",)

    def __init__(
        self, capacity: int, memory: str = "class_balanced", batch_size: int | None = None
    ):
        super().__init__()
        self.replay = Replay(capacity, memory, batch_size)
        self.memory, self.batch_size = self.replay.memory, batch_size

    def check(self, scenario: Any) -> None:
        self.replay.check(scenario)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if not len(self.memory):
            return
        groups = strategy.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"] if p.requires_grad]
        reference = self._reference(strategy, parameters)
        gradient = projected(
            flat([p.grad for p in parameters], parameters), flat(reference, parameters)
        )
        reached = zip(parameters, reference, strict=True)
        sizes = [p.numel() for p in parameters]
        for (p, r), part in zip(reached, gradient.split(sizes), strict=True):
            if p.grad is not None or r is not None:
                p.grad = part.view_as(p)

    def _reference(self, strategy: Any, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """The gradient of a batch of the memory, scaled as those of the loop are."""
        own, output = strategy.mbatch, strategy.mb_output
        size = self.batch_size or strategy.train_mb_size
        x, y, task = (column.to(strategy.device) for column in self.memory.sample(size))
        strategy.mbatch = [prepared(strategy, x, True), y, task]
        loss = strategy._criterion(strategy.forward(), y)  # the scenario's
        strategy.mbatch, strategy.mb_output = own, output
        return torch.autograd.grad(loss * loss_scale(strategy), parameters, allow_unused=True)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if ordered(strategy):
            self.memory.add(stored_inputs(strategy), strategy.mb_y, strategy.mb_task_id)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.replay.after_training_exp(strategy)

    def state_dict(self) -> dict[str, Any]:
        return self.replay.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.replay.load_state_dict(state)
