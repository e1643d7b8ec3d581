"""Dark experience replay, DER and DER++ (Buzzega et al. 2020): replay logits of the time."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from clplat.backbones.heads import MASKED
from clplat.batches import prepared, stored_inputs
from clplat.errors import at_least, not_negative
from clplat.memory import Memory

NO_LOGIT = -500  # what masks an output is below this: our heads' MASKED, Avalanche's -1000


def logit_distance(logits: Tensor, stored: Tensor) -> Tensor:
    """Mean squared error, over the outputs that existed when the stored logits were given."""
    existed = stored > NO_LOGIT
    logits = logits[:, : stored.shape[1]]
    return ((logits - stored).square() * existed).sum() / existed.sum().clamp_min(1)


class DER(SupervisedPlugin):
    """Adds alpha * MSE to stored logits on one memory batch, beta * cross-entropy on another.

    beta = 0 is DER, beta > 0 is DER++. The memory is a reservoir, filled at every iteration with
    the inputs before augmentation and the logits of that moment. The batch and both draws go
    through the model in one pass; `batch_size` is that of a draw, the loop's own by default.
    """

    owns = ("the forward pass",)

    def __init__(
        self,
        capacity: int,
        alpha: float = 0.1,
        beta: float = 0.5,
        batch_size: int | None = None,
    ):
        super().__init__()
        not_negative("strategy", alpha=alpha, beta=beta)
        if batch_size is not None:
            at_least("strategy", 1, batch_size=batch_size)
        self.memory = Memory(capacity, "reservoir")
        self.alpha, self.beta, self.batch_size = alpha, beta, batch_size
        self._batch: list[Tensor] | None = None
        self._draws: list[list[Tensor]] = []
        self._replayed: list[Tensor] = []  # the model's logits on the draws

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._draws, self._replayed, self._batch = [], [], list(strategy.mbatch)
        if not len(self.memory):
            return
        size = self.batch_size or strategy.train_mb_size
        self._draws = [self.memory.sample(size) for _ in range(2 if self.beta else 1)]
        replayed = [(prepared(strategy, x, True), y, task) for x, y, task, _ in self._draws]
        strategy.mbatch = [
            torch.cat([b, *(r.to(b.device) for r in rest)])
            for b, *rest in zip(self._batch, *replayed, strict=True)
        ]

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        sizes = [len(draw[1]) for draw in self._draws]
        strategy.mbatch = self._batch
        strategy.mb_output, *self._replayed = strategy.mb_output.split([len(strategy.mb_y), *sizes])

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if not self._draws:
            return
        stored = self._draws[0][3].to(strategy.mb_output.device)
        strategy.loss = strategy.loss + self.alpha * logit_distance(self._replayed[0], stored)
        if self.beta:
            labels = self._draws[1][1].to(strategy.mb_output.device)
            loss = strategy._criterion(self._replayed[1], labels)  # the scenario's
            strategy.loss = strategy.loss + self.beta * loss

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        x, output = stored_inputs(strategy), strategy.mb_output.detach()
        if len(self.memory):
            columns = self.memory.columns
            if grown := output.shape[1] - columns[3].shape[1]:
                columns[3] = nn.functional.pad(columns[3], (0, grown), value=MASKED)
        self.memory.add(x, strategy.mb_y, strategy.mb_task_id, output)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
