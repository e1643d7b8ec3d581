"""iCaRL (Rebuffi et al. 2017): herded exemplars, distillation on sigmoids, nearest mean features.

Each experience trains on its samples and the exemplars as one set. With g_c the sigmoid of output c
and q_c what it was before the experience, a sample of class y costs
sum_{c new} BCE(g_c, [c = y]) + sum_{c old} BCE(g_c, q_c), over the classes seen so far, and a batch
the mean over its samples: the paper's sum over samples would tie the learning rate to their number,
and Avalanche's mean over outputs, those of classes to come included, to theirs. A class that comes
again counts as new (our reading). q is computed once, on samples that are not augmented, as the
paper stores it; the released code asks the old network at every batch.

Exemplars are herded by the paper's algorithm 4. The head `NearestMean` predicts; `NearestMeanFit`
takes the means of the classes just trained from all their samples, the paper from the exemplars.
An experience is held as a whole, also where it is larger than data.resident_gigabytes.
"""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot

from clplat.batches import Batches, experience_columns, prepared
from clplat.data import Columns
from clplat.memory import Memory
from clplat.modes import in_evaluation
from strategies.replay import Replay, check_room


def wanted_outputs(labels: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """What each output should be, (N, C): of classes `new` (C,) the label's, else as `old` (N, C).

    `labels` (N,).
    """
    return torch.where(new, one_hot(labels, old.shape[1]).to(old), old)


def outputs_loss(logits: Tensor, wanted: Tensor, seen: Tensor) -> Tensor:
    """Binary cross-entropy (B, C), summed over the classes `seen` (C,), mean over samples."""
    total = binary_cross_entropy_with_logits(logits, wanted, seen.to(logits), reduction="sum")
    return total / len(logits)


class ICaRL(SupervisedPlugin):
    """Joins `capacity` exemplars to each experience, and holds the outputs of earlier classes."""

    needs_boundaries = True
    one_target = True
    owns = ("the batches", "the forward pass", "the loss")

    def __init__(self, capacity: int = 200):
        super().__init__()
        self.replay = Replay(capacity, "herding")
        self.wanted: Tensor | None = None  # (N, C) in this experience

    @property
    def memory(self) -> Memory:
        return self.replay.memory

    @property
    def memory_bytes(self) -> int:
        """Of the exemplars, which alone are held between experiences."""
        return self.memory.bytes

    def check(self, scenario: Any) -> None:
        """Refuse a memory that cannot hold one exemplar of each class."""
        check_room("iCaRL", self.memory.capacity, scenario, "exemplar")

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        columns = experience_columns(strategy)
        new = columns[1].unique().tolist()
        if len(self.memory):
            exemplars = self.memory.all()
            pairs = zip(columns, exemplars, strict=True)
            columns = [torch.cat([own, held.to(own.device)]) for own, held in pairs]
        x, labels, task = columns
        if self.wanted is None:
            old = _outputs(strategy, columns)
            self.wanted = wanted_outputs(labels.to(old.device), old, _among(new, old))
        order = getattr(strategy, "order", torch.default_generator)  # Avalanche's loop has none
        joined = [x, labels, self.wanted.to(x.device), task]
        strategy.dataloader = Batches(joined, strategy.train_mb_size, order)
        seen = _among([*new, *self.memory.classes], self.wanted).to(strategy.device)
        strategy._criterion = criterion(strategy, seen)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.wanted = None
        self.replay.after_training_exp(strategy)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict(), "wanted": self.wanted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.wanted = state["wanted"]


def criterion(strategy: Any, seen: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of a training batch `[x, y, wanted, task]`; in evaluation, of the labels alone."""

    def loss(output: Tensor, target: Tensor) -> Tensor:
        if strategy.is_training:
            return outputs_loss(output, strategy.mbatch[2], seen)
        return outputs_loss(output, one_hot(target, output.shape[1]).to(output), seen)

    return loss


def _among(classes: list[int], outputs: Tensor) -> Tensor:
    """Which of C outputs are of these classes, (C,)."""
    among = torch.zeros(outputs.shape[1], dtype=torch.bool, device=outputs.device)
    among[classes] = True
    return among


@torch.no_grad()
def _outputs(strategy: Any, columns: Columns) -> Tensor:
    """Sigmoids of the model's outputs (N, C) for samples as stored, in evaluation mode."""
    model, outputs = strategy.model, []
    with in_evaluation(model):
        if hasattr(model, "head"):
            model.head.train()  # a nearest-mean head has outputs in training only
        for x, _, task in Batches(columns, strategy.eval_mb_size):
            x = prepared(strategy, x.to(strategy.device), False)
            inputs = (x, task.to(x.device)) if is_multi_task_module(model) else (x,)
            outputs.append(model(*inputs).float().sigmoid())
    return torch.cat(outputs)
