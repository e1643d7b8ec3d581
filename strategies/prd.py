"""Prototype-sample relation distillation, PRD (Asadi et al. 2023): no sample is kept.

L = SupCon(projection of both views, T = 0.1) + 2 L_p + 4 L_d
L_p = mean over samples of 1 - cos(f, p_y), features f detached.
L_d = sum over earlier experiences e of KL(old || new) of softmax_{c in e}(f p_c / |p_c|), on the
data of this one; its gradients reach the encoder and the prototypes of e.

As in the published code, whose gradient is that of the KL from the old relations. There the old
encoder normalises by batch statistics; ours is in evaluation mode. There prototypes are trained
without momentum and weight decay, and SupCon is multiplied by T / 0.07; here neither. The first
view is the loop's batch, the second another augmentation of it with noise: our reading for data
that is not augmented. Where classes come again they are both learned and distilled: our reading.
With distillation=0 the prototypes of earlier classes stay as they are: supervised contrastive
learning with frozen prototypes, which the paper compares with.
"""

from collections.abc import Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from clplat.backbones.heads import MASKED
from clplat.backbones.learned_prototypes import LearnedPrototypes
from clplat.batches import prepared, stored_inputs
from clplat.errors import InputError, not_negative
from clplat.modes import frozen_copy
from clplat.precision import autocast
from clplat.taps import Tap
from strategies.contrastive import supervised_contrastive


def relations(features: Tensor, groups: Sequence[Tensor]) -> Tensor:
    """Features (B, D) times unit prototypes, each group (C, D), as (B, largest C, groups).

    MASKED where a group has fewer.
    """
    padded = pad_sequence([*groups])  # (C, groups, D)
    dots = features @ normalize(padded, dim=2).flatten(0, 1).T
    return dots.unflatten(1, padded.shape[:2]).masked_fill(~padded.any(2), MASKED)


def relation_distillation(relations: Tensor, old_relations: Tensor) -> Tensor:
    """KL(old || new) of each group's softmax, summed over groups; mean over samples."""
    new, old = relations.log_softmax(1), old_relations.log_softmax(1)
    return nn.functional.kl_div(new, old, reduction="batchmean", log_target=True)


def prototype_distance(features: Tensor, prototypes: Tensor, own: Tensor) -> Tensor:
    """1 - cosine of features (B, D) to the row of prototypes (K, D) that is `own` (B, K); mean."""
    cosines = normalize(features, dim=1) @ normalize(prototypes, dim=1).T
    return 1 - (cosines * own).sum(1).mean()


class PRD(SupervisedPlugin):
    """Contrasts samples, draws prototypes to their classes, and keeps old relations to old ones.

    `prototypes` and `distillation` are the weights of L_p and L_d; `noise` is the standard
    deviation of what is added to the second view. The loop's own forward pass is given both views;
    the head is `LearnedPrototypes`.
    """

    needs_boundaries = True
    one_target = True
    owns = ("the forward pass", "the loss")

    def __init__(
        self,
        temperature: float = 0.1,
        prototypes: float = 2.0,
        distillation: float = 64.0,
        noise: float = 0.1,
    ):
        super().__init__()
        if temperature <= 0:
            raise InputError(f"strategy.temperature={temperature}: expected more than 0; raise it")
        not_negative("strategy", prototypes=prototypes, distillation=distillation, noise=noise)
        self.temperature, self.noise = temperature, noise
        self.prototypes, self.distillation = prototypes, distillation
        self.trained: list[int] = []  # groups of prototypes, of the experiences before this one
        self.old_prototypes: list[Tensor] = []  # those groups as they were before it
        self._old: nn.Module | None = None  # the encoder as it was before this experience
        self._saved: dict[str, Tensor] | None = None  # of `_old`, when restored
        self._met: list[int] = []  # groups of this experience
        self._tap: Tap | None = None
        self._batch: list[Tensor] = []
        self._criterion: Any = None  # the loop's own

    def check(self, scenario: Any) -> None:
        """Refuse noise on tokens."""
        if self.noise and scenario.vocabulary is not None:
            raise InputError(
                f"strategy.noise={self.noise}: this scenario's inputs are tokens, which noise "
                "cannot be added to; set strategy.noise=0"
            )

    def check_model(self, model: Any) -> None:
        """Refuse a model that has no encoder of its own, or a head without prototypes."""
        if not hasattr(model, "encoder"):
            raise InputError(
                f"hypernet: PRD compares an encoder with what it was, and {type(model).__name__} "
                "generates its weights for each task; set hypernet=none"
            )
        if not isinstance(model.head, LearnedPrototypes):
            raise InputError(
                f"head: PRD learns a prototype of each class, and {type(model.head).__name__} has "
                "none; set head=learned_prototypes"
            )

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        model = strategy.model
        if self._tap is None:
            self._met, self._tap = model.head.met(strategy.experience), Tap(model.encoder)
        if self._saved is not None:
            self._old = frozen_copy(model.encoder)
            self._old.load_state_dict(self._saved)
            self._saved = None
        other = prepared(strategy, stored_inputs(strategy), True)
        if self.noise:
            other = other + self.noise * torch.randn_like(other)
        self._batch = strategy.mbatch
        x, *columns = self._batch
        strategy.mbatch = [torch.cat([x, other]), *(torch.cat([c, c]) for c in columns)]

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Puts this loss in the place of the loop's, which is computed next."""
        loss = self._loss(strategy)
        strategy.mbatch, self._batch = self._batch, []
        strategy.mb_output = strategy.mb_output[: len(strategy.mb_y)]
        self._criterion, strategy._criterion = strategy._criterion, lambda output, target: loss

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        strategy._criterion, self._criterion = self._criterion, None

    def _loss(self, strategy: Any) -> Tensor:
        head, labels = strategy.model.head, strategy.mb_y
        features = self._tap.take().to(strategy.mb_output.dtype)  # type: ignore[union-attr]
        loss = supervised_contrastive(head.projection(features), labels, self.temperature)
        # Only those of this experience: others would get zeros for gradients, and momentum or
        # weight decay would move them.
        groups = [g if i in self._met else g.detach() for i, g in enumerate(head.groups)]
        own = head.own(labels, strategy.mb_task_id)
        distance = prototype_distance(features.detach(), torch.cat(groups), own)
        loss = loss + self.prototypes * distance
        if self._old is None or not self.distillation:
            return loss
        with torch.no_grad(), autocast(strategy):
            before = self._old(strategy.mb_x).to(features.dtype)
        old = relations(before, self.old_prototypes)
        new = relations(features, [head.groups[i] for i in self.trained])
        return loss + self.distillation * relation_distillation(new, old)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None
        head = strategy.model.head
        self.trained = sorted({*self.trained, *head.met(strategy.experience)})
        self.old_prototypes = [head.groups[i].detach().clone() for i in self.trained]
        self._old, self._saved = frozen_copy(strategy.model.encoder), None

    def state_dict(self) -> dict[str, Any]:
        return {
            "old": self._saved if self._old is None else self._old.state_dict(),
            "old_prototypes": self.old_prototypes,
            "trained": self.trained,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._saved, self._old = state["old"], None
        self.old_prototypes, self.trained = state["old_prototypes"], state["trained"]
