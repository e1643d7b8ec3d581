"""Replay with asymmetric cross-entropy, ER-ACE (Caccia et al. 2022): new classes do not push old.

The softmax of an incoming sample is over the classes of the incoming batch alone, that of a sample
of the memory over all classes seen so far: L_in(C_batch) + L_memory(C_seen).

The loss is the mean over the samples of both: half of the paper's sum, as in Avalanche, where both
are as many. The released code leaves outputs that no sample has had yet in either softmax, and
Avalanche all outputs in the memory's. The memory takes in every batch at once, in the first epoch,
as new classes meet old ones only in what is replayed; Avalanche takes in the experience before it
is trained on. A batch that nothing is replayed with, the first, has the plain loss: our reading.
"""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from clplat.backbones.heads import MASKED
from clplat.errors import InputError
from strategies.replay import Replay, WithMemory, fresh_samples


def first_pass(strategy: Any) -> bool:
    """Whether the experience's samples come for the first time."""
    return strategy.clock.train_exp_epochs == 0


def among(target: Tensor, classes: int) -> Tensor:
    """Which of the classes are targets, as booleans (C,)."""
    return torch.zeros(classes, dtype=torch.bool, device=target.device).index_fill(0, target, True)


def asymmetric(output: Tensor, target: Tensor, fresh: int, seen: Tensor) -> Tensor:
    """Logits (B, C) with those masked that a sample's softmax leaves out.

    Of the first `fresh` samples all but their own classes, of the others all that were not `seen`.
    """
    own = among(target[:fresh], output.shape[1])
    incoming = torch.arange(len(output), device=output.device) < fresh
    return output.masked_fill(~torch.where(incoming[:, None], own, seen), MASKED)


class ERACE(SupervisedPlugin):
    """Each batch is joined by samples of the memory, which takes in each batch; two softmaxes.

    `capacity`, `memory` and `batch_size` are those of `Replay`.
    """

    needs_boundaries = False
    owns = ("the batches", "the forward pass", "the loss", "the outputs")
    one_target = True  # a class for each sample

    def __init__(self, capacity: int, memory: str = "reservoir", batch_size: int | None = None):
        super().__init__()
        if memory == "herding":
            raise InputError(
                "strategy.memory=herding: the memory takes in batch after batch, and herding needs "
                "the whole experience; choose reservoir, class_balanced or ring"
            )
        self.replay = Replay(capacity, memory, batch_size)
        self.memory, self.batch_size = self.replay.memory, batch_size
        self.seen = torch.zeros(0, dtype=torch.bool)  # by class
        self._output: Tensor | None = None  # with nothing masked

    def check(self, scenario: Any) -> None:
        self.replay.check(scenario)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        size = self.batch_size or strategy.train_mb_size
        strategy.dataloader = WithMemory(strategy.dataloader, self.memory, size)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Masks the output that the loop's loss is computed of."""
        output, target, fresh = strategy.mb_output, strategy.mb_y, strategy.dataloader.fresh
        self.seen = self.seen.to(output.device)
        if grown := output.shape[1] - len(self.seen):
            self.seen = nn.functional.pad(self.seen, (0, grown))
        self.seen |= among(target[:fresh], output.shape[1])
        self._output = output
        if len(target) > fresh:
            strategy.mb_output = asymmetric(output, target, fresh, self.seen)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        strategy.mb_output, self._output = self._output, None

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if first_pass(strategy):
            self.memory.add(*fresh_samples(strategy))

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.seen = state["seen"]
