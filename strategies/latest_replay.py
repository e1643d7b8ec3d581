"""Replay of the latest experiences, kept whole: in few-shot learning, of the last support sets."""

from collections import deque
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.batches import experience_batches
from clplat.data import Columns
from clplat.errors import at_least
from strategies.replay import WithMemory


class Latest:
    """The samples of the latest `experiences` experiences."""

    def __init__(self, experiences: int):
        self.parts: deque[Columns] = deque(maxlen=experiences)

    def sample(self, count: int) -> list[Tensor]:
        """`count` samples drawn without replacement, or all there are if fewer."""
        columns = [torch.cat(column) for column in zip(*self.parts, strict=True)]
        if not columns:
            return []
        chosen = torch.randperm(len(columns[0]))[:count].to(columns[0].device)
        return [column[chosen] for column in columns]


class LatestReplay(SupervisedPlugin):
    """Each batch is joined by `samples` samples of the last `experiences` experiences.

    With batches as large as an experience it is the replay of the last support sets (Kowadlo et al.
    2022), there with L for `experiences` and k for `samples`. The number of updates is that of the
    loop: the paper raises it together with replay, we compare at the same number.
    """

    needs_boundaries = True
    keeps_samples = True
    owns = ("the batches",)

    def __init__(self, experiences: int = 2, samples: int = 10):
        super().__init__()
        at_least("strategy", 1, experiences=experiences, samples=samples)
        self.latest, self.samples = Latest(experiences), samples

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.latest.parts:
            strategy.dataloader = WithMemory(strategy.dataloader, self.latest, self.samples)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        batches = experience_batches(strategy)
        self.latest.parts.append([torch.cat(column) for column in zip(*batches, strict=True)])

    @property
    def memory_bytes(self) -> int:
        """Of the samples' inputs and labels."""
        return sum(t.numel() * t.element_size() for part in self.latest.parts for t in part[:2])

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [list(part) for part in self.latest.parts]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.latest.parts.clear()
        self.latest.parts.extend(state["parts"])
