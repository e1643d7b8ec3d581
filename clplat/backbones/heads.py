"""Heads: from features (B, D) to logits (B, C), C the number of classes of the whole scenario.

Classes that a head cannot predict (not met yet, or another task's) have the logit MASKED, so that
every head's output has one shape from the first experience to the last.
"""

import math
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.dynamic_modules import DynamicModule, MultiTaskModule
from torch import Tensor, nn

from clplat.batches import experience_batches, prepared

MASKED = -1e4  # a softmax of it is 0 in every precision, half included


def single(features: int, classes: int) -> nn.Module:
    """One linear layer for all classes."""
    return nn.Linear(features, classes)


def auto(features: int, classes: int, task_labels: bool) -> nn.Module:
    """`multi` where the scenario gives task labels, `single` where it does not."""
    return Multi(features, classes) if task_labels else single(features, classes)


def _widened(layer: nn.Linear | None, features: int, width: int, like: Tensor) -> nn.Linear:
    """A linear layer of `width` outputs whose first ones are those of `layer`."""
    wider = nn.Linear(features, width).to(like.device)
    if layer is not None:
        with torch.no_grad():
            wider.weight[: layer.out_features] = layer.weight
            wider.bias[: layer.out_features] = layer.bias
    return wider


def masked_out(logits: Tensor, columns: Tensor, classes: int) -> Tensor:
    """Put (B, k) logits at their columns of a (B, C) output that is MASKED elsewhere."""
    output = logits.new_full((len(logits), classes), MASKED)
    return output.index_copy(1, columns, logits)


class Growing(DynamicModule):
    """One linear layer that gains an output for each class when it is first trained on."""

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.in_features, self.classes = features, classes
        self.linear: nn.Linear | None = None
        self.register_buffer("columns", torch.empty(0, dtype=torch.long))

    def adaptation(self, experience: Any) -> None:
        known = self.columns.tolist()
        new = sorted(set(experience.classes_in_this_experience) - set(known))
        if new and (self.training or self.linear is None):
            self.columns = torch.tensor(known + new, device=self.columns.device)
            self.linear = _widened(self.linear, self.in_features, len(self.columns), self.columns)

    def forward(self, features: Tensor) -> Tensor:
        if self.linear is None:
            raise RuntimeError("a growing head has no outputs before its first experience")
        return masked_out(self.linear(features), self.columns, self.classes)


class Multi(MultiTaskModule):
    """A linear layer for each task, over that task's classes (task-incremental learning)."""

    device_marker: Tensor

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.in_features, self.classes = features, classes
        self.linears = nn.ModuleDict()
        self.register_buffer("device_marker", torch.empty(0), persistent=False)

    def adaptation(self, experience: Any) -> None:
        """Make a head for each task of the experience, or widen it by classes new to the task."""
        super().adaptation(experience)
        for task in experience.task_labels:
            key = str(task)
            old: Any = self.linears[key] if key in self.linears else None  # noqa: SIM401 - no get
            known = [] if old is None else self._columns(task).tolist()
            new = sorted(self._classes(experience, task) - set(known))
            if new:
                width = len(known) + len(new)
                self.linears[key] = _widened(old, self.in_features, width, self.device_marker)
                columns = torch.tensor(known + new, device=self.device_marker.device)
                self.register_buffer(f"columns_{key}", columns)

    @staticmethod
    def _classes(experience: Any, task: int) -> set[int]:
        if len(experience.task_labels) == 1:
            return set(experience.classes_in_this_experience)
        return set(experience.dataset.task_set[task].targets.uniques)

    def _columns(self, task: int) -> Tensor:
        return getattr(self, f"columns_{task}")

    @property
    def tasks(self) -> list[int]:
        return [int(key) for key in self.linears]

    def forward(self, features: Tensor, task: Tensor | int | None = None) -> Any:  # type: ignore[override]
        """`task`: one for all, one for each sample, or None for a dict of every task's logits."""
        if task is None:
            return {task: self.forward_single_task(features, task) for task in self.tasks}
        if isinstance(task, int):
            return self.forward_single_task(features, task)
        present = task.unique().tolist()
        if len(present) == 1:
            return self.forward_single_task(features, present[0])
        output = features.new_full((len(features), self.classes), MASKED)
        for one in present:
            rows = (task == one).nonzero()[:, 0]
            logits = self.forward_single_task(features[rows], one)
            output = output.to(logits.dtype).index_copy(0, rows, logits)
        return output

    def forward_single_task(self, features: Tensor, task: int) -> Tensor:  # type: ignore[override]
        if str(task) not in self.linears:
            raise ValueError(f"no head for task {task}; there are heads for {self.tasks}")
        return masked_out(self.linears[str(task)](features), self._columns(task), self.classes)


class Cosine(nn.Module):
    """Cosine of features and class weights, times a learned scale (Hou et al. 2019, LUCIR)."""

    def __init__(self, features: int, classes: int, scale: float = 10.0):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, features))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.scale = nn.Parameter(torch.tensor(float(scale)))

    def forward(self, features: Tensor) -> Tensor:
        unit = nn.functional.normalize
        return self.scale * unit(features, dim=1) @ unit(self.weight, dim=1).T


class NearestMean(nn.Module):
    """Predicts the class whose mean feature is nearest (Rebuffi et al. 2017, iCaRL).

    It trains through a linear layer; once means are there, evaluation uses them alone. Features
    and means are of unit length. `NearestMeanFit` computes the means after each experience.
    """

    means: Tensor
    known: Tensor

    def __init__(self, features: int, classes: int):
        super().__init__()
        self.linear = nn.Linear(features, classes)
        self.register_buffer("means", torch.zeros(classes, features))
        self.register_buffer("known", torch.zeros(classes, dtype=torch.bool))

    @property
    def memory_bytes(self) -> int:
        """What is remembered of the experiences."""
        return int(self.known.sum()) * self.means.shape[1] * self.means.element_size()

    def fit(self, features: Tensor, labels: Tensor) -> None:
        """Set the means of the classes among `labels`; those of other classes stay."""
        features = nn.functional.normalize(features, dim=1)
        for label in labels.unique():
            mean = features[labels == label].mean(0)
            self.means[label] = nn.functional.normalize(mean, dim=0)
            self.known[label] = True

    def forward(self, features: Tensor) -> Tensor:
        if self.training or not self.known.any():
            return self.linear(features)
        distances = torch.cdist(nn.functional.normalize(features, dim=1), self.means)
        return torch.where(self.known, -distances, MASKED)


class NearestMeanFit(SupervisedPlugin):
    """After each experience, fits the means of a `NearestMean` head.

    From the experience's data, and for other classes from the samples in `memory` where there is
    one: then every mean is that of the present encoder, as in iCaRL.
    """

    def __init__(self, memory: Any = None):
        super().__init__()
        self.memory = memory

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        model = strategy.model
        was_training = model.training
        model.eval()
        if self.memory is not None and len(self.memory):
            x, y, *_ = self.memory.all()
            model.head.fit(model.features(prepared(strategy, x, False)), y)
        pairs = [
            (model.features(prepared(strategy, x, False)), y)
            for x, y, *_ in experience_batches(strategy)
        ]
        model.head.fit(*(torch.cat(part) for part in zip(*pairs, strict=True)))
        model.train(was_training)
