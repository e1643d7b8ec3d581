"""The head of kernel continual learning (Derakhshani et al. 2021): one kernel for each task."""

import math
from typing import Any

import torch
from avalanche.models.dynamic_modules import MultiTaskModule
from torch import Tensor, nn
from torch.nn.functional import normalize

from clplat.backbones.heads import Multi, masked_out
from clplat.backbones.kernel_ridge import random_features, ridge
from clplat.errors import InputError, at_least

LEAST = 0.01  # what is added to |lambda|


class TaskKernel(nn.Module):
    """Of one task: lambda, gamma and beta, which are learned, and the weights as last solved.

    gamma K_XC alpha + beta, where K_XC alpha = phi(X) W with W = phi(C)^T alpha.
    """

    weight: Tensor

    def __init__(self, random_features: int, classes: int):
        super().__init__()
        self.ridge = nn.Parameter(torch.tensor(0.1))  # lambda
        self.scale = nn.Parameter(torch.tensor(1.0))  # gamma
        self.shift = nn.Parameter(torch.tensor(0.0))  # beta
        self.register_buffer("weight", torch.zeros(random_features, classes))

    def solved(self, phi: Tensor, targets: Tensor) -> Tensor:
        """W (F, C) of a coreset's random features (M, F) and targets (M, C)."""
        return phi.T @ ridge(phi @ phi.T, targets, self.ridge.abs() + LEAST)

    def forward(self, phi: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.scale * (phi @ (self.weight if weight is None else weight)) + self.shift


class Kernel(Multi):
    """Predicts by kernel ridge regression on a coreset of the task, over that task's classes.

    The kernel is Gaussian, of features scaled to unit length, by `random_features` random Fourier
    features. In training the coreset goes through the encoder with the batch: `coreset` names its
    task and its labels (M,), and the last M rows of the features are its. In evaluation the
    weights count that `fit` solved last, zeros before that. In float32 at least.
    """

    frequencies: Tensor
    phases: Tensor

    def __init__(
        self, features: int, classes: int, random_features: int = 512, bandwidth: float = 0.25
    ):
        super().__init__(features, classes)
        at_least("head", 1, random_features=random_features)
        if not bandwidth > 0:
            raise InputError(f"head.bandwidth={bandwidth}: expected more than 0; raise it")
        drawn = torch.randn(random_features, features) / bandwidth
        self.register_buffer("frequencies", drawn)
        self.register_buffer("phases", 2 * math.pi * torch.rand(random_features))
        self.coreset: tuple[int, Tensor] | None = None

    def adaptation(self, experience: Any) -> None:
        """Make a regression for each task of the experience, or widen it by classes new to it."""
        MultiTaskModule.adaptation(self, experience)
        for task in experience.task_labels:
            key, device = str(task), self.frequencies.device
            known = self._columns(task).tolist() if key in self.linears else []
            new = sorted(self._classes(experience, task) - set(known))
            if not new:
                continue
            if not known:
                self.linears[key] = TaskKernel(len(self.phases), len(new)).to(device)
            kernel: Any = self.linears[key]
            kernel.weight = kernel.weight.new_zeros(len(self.phases), len(known + new))
            self.register_buffer(f"columns_{key}", torch.tensor(known + new, device=device))

    @torch.no_grad()
    def fit(self, features: Tensor, labels: Tensor, task: int) -> None:
        """Solve a task's regression on its coreset's features (M, D) and labels (M,)."""
        kernel: Any = self.linears[str(task)]
        kernel.weight = kernel.solved(self.random_features(features), self._targets(labels, task))

    def random_features(self, features: Tensor) -> Tensor:
        unit = normalize(features.to(self.frequencies.dtype), dim=1)
        return random_features(unit, self.frequencies, self.phases)

    def _targets(self, labels: Tensor, task: int) -> Tensor:
        """One-hot, over the task's classes."""
        return (labels[:, None] == self._columns(task)).to(self.frequencies.dtype)

    def forward(self, features: Tensor, task: Tensor | int | None = None) -> Any:
        with torch.autocast(features.device.type, enabled=False):
            phi = self.random_features(features)
            if not self.training or task is None:
                return super().forward(phi, task)
            if self.coreset is None:
                raise InputError(
                    "head=kernel: in training it solves for a coreset, and this strategy gives it "
                    "none; set strategy=kcl, or strategy=gkcl"
                )
            task, labels = self.coreset
            own, kept = phi.split([len(phi) - len(labels), len(labels)])
            kernel: Any = self.linears[str(task)]
            weight = kernel.solved(kept, self._targets(labels, task))
            return masked_out(kernel(own, weight), self._columns(task), self.classes)
