"""Riemannian walk (Chaudhry et al. 2018): EWC's importance kept as it goes, and a path's beside it.

F <- (1 - alpha) F + alpha g^2 at every update, g the gradient of the task's loss alone. Every
`interval` updates the score s_i gains (what the loss fell by along the weight since the last time)
/ (F_i Delta_i^2 / 2 + epsilon): the fall for the distance, in the metric of the Fisher information,
that the weight went. After an experience the score is the mean of that before and this one's.
Loss: L_task + strength * sum_i (F_i / max F + max(0, s_i) / max s) (theta_i - theta*_i)^2, theta*
the latest experience's.
Avalanche's plugin makes a second forward and backward pass for g, lets the last updates of an
experience count in the next one's score, and leaves parameters that are new without a score.
"""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.errors import InputError, at_least, not_negative
from clplat.grown import extended, leading
from strategies.importance import Weights
from strategies.quadratic import add_penalty, lists
from strategies.si import Path


def path_score(drop: Tensor, fisher: Tensor, moved: Tensor) -> Tensor:
    """What the loss fell by along each weight, for its distance in the metric of `fisher`."""
    return drop / (fisher * moved.square() / 2 + torch.finfo(drop.dtype).eps)


def normalised(values: Weights) -> Weights:
    """All divided by the largest of all; negative ones are 0."""
    positive = {name: value.clamp_min(0) for name, value in values.items()}
    largest = torch.stack([value.max() for value in positive.values()]).max()
    return {name: value / largest.clamp_min(1e-45) for name, value in positive.items()}


def mean_score(old: Tensor | None, new: Tensor) -> Tensor:
    """Of the score so far and this experience's; what is new takes its own."""
    if old is None:
        return new
    return extended((old + leading(new, old)) / 2, new)


class RWalk(SupervisedPlugin):
    """Penalises the change of weights that earlier experiences need, or that lowered their loss.

    `alpha`: share of an update's squared gradient in the running Fisher information. `interval`:
    updates between two additions to the score.
    """

    def __init__(self, strength: float = 0.1, alpha: float = 0.9, interval: int = 10):
        super().__init__()
        not_negative("strategy", strength=strength)
        if not 0 < alpha <= 1:
            raise InputError(
                f"strategy.alpha={alpha}: expected more than 0 and at most 1; choose a share"
            )
        at_least("strategy", 1, interval=interval)
        self.strength, self.alpha, self.interval = strength, alpha, interval
        self.path, self.updates = Path(), 0
        self.fisher: Weights = {}  # running
        self.gained: Weights = {}  # the score of this experience
        self.score: Weights = {}  # of those before
        self.importance: Weights = {}
        self.anchor: Weights = {}

    @torch.no_grad()
    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        gradients = self.path.before_update(strategy)
        if gradients:
            self._follow(gradients)
            running = [self.fisher[name] for name in gradients]
            values = list(gradients.values())
            lists._foreach_mul_(running, 1 - self.alpha)
            lists._foreach_addcmul_(running, values, values, value=self.alpha)
        if self.importance and self.strength:
            add_penalty(strategy, self.importance, self.anchor, self.strength)

    def _follow(self, gradients: Weights) -> None:
        """Make room for parameters that are new, or grew; their first square counts whole."""
        for name, g in gradients.items():
            if name not in self.fisher or self.fisher[name].shape != g.shape:
                self.fisher[name] = extended(self.fisher.get(name), g.square())

    def after_update(self, strategy: Any, **kwargs: Any) -> None:
        self.path.after_update()
        self.updates += 1
        if self.updates == self.interval:
            self._add_scores(strategy)

    @torch.no_grad()
    def _add_scores(self, strategy: Any) -> None:
        weights = dict(strategy.model.named_parameters())
        for name, drop in self.path.drop.items():
            moved = leading(weights[name], drop) - self.path.start[name]
            new = path_score(drop, self.fisher[name], moved)
            old = extended(self.gained.get(name), torch.zeros_like(new))
            self.gained[name] = old + new
        self.path.begin()
        self.updates = 0

    @torch.no_grad()
    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._add_scores(strategy)  # of the last updates, fewer than an interval
        if not self.fisher:  # the scaler skipped every update
            return
        for name, fisher in self.fisher.items():
            new = extended(self.gained.get(name), torch.zeros_like(fisher))
            self.score[name] = mean_score(self.score.get(name), new)
        fisher, score = normalised(self.fisher), normalised(self.score)
        self.importance = {name: fisher[name] + score[name] for name in fisher}
        weights = dict(strategy.model.named_parameters())
        self.anchor = {n: leading(weights[n], old).clone() for n, old in self.importance.items()}
        self.gained = {}

    def state_dict(self) -> dict[str, Any]:
        names = ("updates", "fisher", "gained", "score", "importance", "anchor")
        return {name: getattr(self, name) for name in names} | {"path": self.path.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            if name != "path":
                setattr(self, name, value)
        self.path.load_state_dict(state["path"])
