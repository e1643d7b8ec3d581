"""Heads of a curriculum whose levels are trained one after another, each over the same features."""

from typing import Any

import torch
from avalanche.models.dynamic_modules import MultiTaskModule
from torch import Tensor, nn

CURRICULA = ("single_head", "multi_head", "sliding_window", "none")


def trained_levels(curriculum: str, level: int, window: int) -> range:
    """The levels that are trained together when `level` is the newest.

    All so far ("multi_head"), the latest `window` ("sliding_window"), or the newest alone.
    """
    first = {"multi_head": 0, "sliding_window": max(0, level - window + 1)}
    return range(first.get(curriculum, level), level + 1)


class Levels(MultiTaskModule):
    """A linear head for each level (Khajehabdollahi et al. 2024); tasks are levels.

    In training the logits (B, heads, classes) of all levels trained together, in evaluation those
    of the task, (B, 1, classes). With a single head, each level goes on with the head of the one
    before, and a level is evaluated by the head of its time; one not reached yet by the newest.
    """

    level: Tensor

    def __init__(self, features: int, classes: int, levels: int, curriculum: str, window: int):
        super().__init__()
        if curriculum not in CURRICULA:
            raise ValueError(f"curriculum={curriculum!r}; expected one of {', '.join(CURRICULA)}")
        self.curriculum, self.window = curriculum, window
        self.linears = nn.ModuleList(nn.Linear(features, classes) for _ in range(levels))
        self.register_buffer("level", torch.zeros((), dtype=torch.long))

    def adaptation(self, experience: Any) -> None:
        """Begin the level of a training experience."""
        super().adaptation(experience)
        (task,) = experience.task_labels
        if self.training and task != int(self.level):
            if self.curriculum == "single_head":
                before = self.linears[int(self.level)].state_dict()
                self.linears[task].load_state_dict(before)
            self.level.fill_(task)

    def forward(self, features: Tensor, task: Tensor | int | None = None) -> Tensor:  # type: ignore[override]
        if self.training:
            levels = trained_levels(self.curriculum, int(self.level), self.window)
            # One product for all heads: as many small ones would cost more than the rest.
            heads: list[Any] = [self.linears[level] for level in levels]
            weight, bias = (torch.cat([getattr(h, n) for h in heads]) for n in ("weight", "bias"))
            return nn.functional.linear(features, weight, bias).unflatten(1, (len(levels), -1))
        return self.forward_single_task(features, int(torch.as_tensor(task).flatten()[0]))

    def forward_single_task(self, features: Tensor, task: int) -> Tensor:  # type: ignore[override]
        if self.curriculum == "single_head":
            task = min(task, int(self.level))
        return self.linears[task](features)[:, None]
