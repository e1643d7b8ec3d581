"""Learned class prototypes compared by cosine, and a projection for contrasting samples.

As in prototype-sample relation distillation (Asadi et al. 2023).
"""

from itertools import groupby
from typing import Any

import torch
from avalanche.models.dynamic_modules import DynamicModule, MultiTaskModule
from torch import Tensor, nn
from torch.nn.functional import normalize

from clplat.backbones.heads import MASKED
from clplat.errors import at_least


def learned_prototypes(
    features: int, classes: int, task_labels: bool, projection: int = 128
) -> "LearnedPrototypes":
    """Prototypes of each task where the scenario gives task labels, of one task where it does not.

    `projection` is the dimension in which samples are contrasted.
    """
    at_least("head", 1, projection=projection)
    return (TaskPrototypes if task_labels else LearnedPrototypes)(features, classes, projection)


class LearnedPrototypes(DynamicModule):
    """Cosine of features (B, D) to a prototype of each class; one that is new draws its own.

    Those that came together are one parameter, `groups[i]` (C, D). `projection` is no part of the
    forward pass: two hidden layers as wide as the features, then the dimension given.
    """

    columns: Tensor
    tasks: Tensor

    def __init__(self, features: int, classes: int, projection: int = 128):
        super().__init__()
        self.in_features, self.classes = features, classes
        self.groups = nn.ParameterList()
        self.register_buffer("columns", torch.empty(0, dtype=torch.long))  # classes (K,) in turn
        self.register_buffer("tasks", torch.empty(0, dtype=torch.long))  # and the task of each
        self.projection = nn.Sequential(
            *(nn.Linear(features, features), nn.ReLU()),
            *(nn.Linear(features, features), nn.ReLU()),
            nn.Linear(features, projection),
        )

    def adaptation(self, experience: Any) -> None:
        super().adaptation(experience)
        if self._grows():
            known = set(self._known())
            new = [pair for pair in self._met(experience) if pair not in known]
            for task, pairs in groupby(new, lambda pair: pair[0]):
                self._add(task, [label for _, label in pairs])

    def _grows(self) -> bool:
        return self.training or not len(self.groups)

    def _met(self, experience: Any) -> list[tuple[int, int]]:
        """The (task, class) of the experience."""
        return [(0, label) for label in sorted(map(int, experience.classes_in_this_experience))]

    def _known(self) -> list[tuple[int, int]]:
        return list(zip(self.tasks.tolist(), self.columns.tolist(), strict=True))

    def _add(self, task: int, labels: list[int]) -> None:
        new = self.columns.new_tensor(labels)
        self.columns = torch.cat([self.columns, new])
        self.tasks = torch.cat([self.tasks, torch.full_like(new, task)])
        drawn = torch.randn(len(labels), self.in_features, device=new.device)
        self.groups.append(nn.Parameter(drawn / self.in_features**0.5))

    def met(self, experience: Any) -> list[int]:
        """The indices of the groups of which the experience has any class."""
        wanted, known = set(self._met(experience)), iter(self._known())
        pairs = [[next(known) for _ in group] for group in self.groups]
        return [i for i, group in enumerate(pairs) if not wanted.isdisjoint(group)]

    def own(self, labels: Tensor, tasks: Tensor) -> Tensor:
        """Which of all prototypes are those of the labels (B,), as booleans (B, K)."""
        return labels[:, None] == self.columns

    def cosines(self, features: Tensor) -> Tensor:
        """To each prototype (B, K)."""
        return normalize(features, dim=1) @ normalize(torch.cat([*self.groups]), dim=1).T

    def _by_class(self, logits: Tensor) -> Tensor:
        """(B, K) to (B, C): the largest of the prototypes that a class has, MASKED where none."""
        output = logits.new_full((len(logits), self.classes), MASKED)
        return output.scatter_reduce(1, self.columns.expand_as(logits), logits, "amax")

    def forward(self, features: Tensor) -> Tensor:
        if not len(self.groups):
            raise RuntimeError("learned prototypes: none before the first experience")
        return self._by_class(self.cosines(features))


class TaskPrototypes(LearnedPrototypes, MultiTaskModule):
    """Prototypes of each task, over that task's classes (task-incremental learning)."""

    def _grows(self) -> bool:
        return True  # as Multi does: in evaluation too

    def _met(self, experience: Any) -> list[tuple[int, int]]:
        sets = experience.dataset.task_set
        tasks = sorted(experience.task_labels)
        return [(t, c) for t in tasks for c in sorted(map(int, sets[t].targets.uniques))]

    def own(self, labels: Tensor, tasks: Tensor) -> Tensor:
        return super().own(labels, tasks) & (tasks[:, None] == self.tasks)

    def forward(self, features: Tensor, task: Tensor | int | None = None) -> Any:  # type: ignore[override]
        """`task`: one for all, one for each sample, or None for a dict of every task's logits."""
        if task is None:
            return {one: self(features, one) for one in dict.fromkeys(self.tasks.tolist())}
        others = self.tasks != (task[:, None] if isinstance(task, Tensor) else task)
        return self._by_class(self.cosines(features).masked_fill(others, MASKED))
