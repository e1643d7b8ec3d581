"""PODNet (Douillard et al. 2020): pooled outputs of all stages are held; several proxies a class.

L = L_NCA + sqrt(classes so far / classes of this experience) (3 POD-spatial + 1 POD-flat), against
the encoder before the experience, on all samples of a batch, from the second experience on.
L_NCA = max(0, log sum_{c != y} exp(eta s_c) - eta (s_y - margin)), s and eta of the head, and eta
a constant in front of the margin (our reading): it would otherwise be driven below 0, where a
sample is told by the class it is farthest from.
The published code has neither hinge nor margin (its margin is taken from every class, so that it
cancels), and puts the largest similarity in the sum in place of the class's own: loss=released.

Each batch is joined by samples of the memory, where the paper has one data set of both. Our ResNet
keeps its last ReLU: stages are compared before it, features after it. Gradients are clipped by
train.grad_clip, by their norm; the published code clips every element at 5. The head alone is
trained on the memory (augmented; by SGD without weight decay: our reading) with its scale, and with
the encoder in evaluation mode.
"""

from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn
from torch.nn.functional import normalize

from clplat.backbones.heads import MASKED
from clplat.backbones.local_similarity import LocalSimilarity
from clplat.batches import Batches, experience_batches, prepared
from clplat.errors import InputError, at_least, not_negative
from clplat.memory import Memory
from clplat.modes import frozen_copy
from clplat.precision import autocast
from clplat.taps import Tap
from strategies.kmeans import k_means, spread
from strategies.pooled import pod_flat, pod_spatial
from strategies.replay import Replay, check_room


def hinged_nca(logits: Tensor, targets: Tensor, margin: Tensor) -> Tensor:
    """Of (B, C): how far the target is from `margin` above the others' log-sum-exp; mean over B."""
    own = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], MASKED).logsumexp(1)
    return (others - own + margin).relu().mean()


def released_nca(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy whose denominator has the largest logit in place of the target's."""
    own = logits.gather(1, targets[:, None])
    others = logits.scatter(1, targets[:, None], logits.amax(1, keepdim=True))
    return (others.logsumexp(1) - own[:, 0]).mean()


class Tapped:
    """What the stages of an encoder, and itself, gave in its latest pass."""

    def __init__(self, encoder: Any):
        self.encoder = encoder
        self.taps = [Tap(module) for module in (*encoder.stage_outputs, encoder)]

    def take(self) -> tuple[list[Tensor], Tensor]:
        *stages, features = [tap.take() for tap in self.taps]
        return stages, features

    def close(self) -> None:
        for tap in self.taps:
            tap.close()


class PODNet(SupervisedPlugin):
    """Distils the pooled outputs of the encoder's stages, with replay of herded samples.

    The encoder names its stages by `stage_outputs`, and the head is `LocalSimilarity`: a class that
    is new begins with the k-means centres of its features as proxies; those of earlier classes stay
    as they are, until after the experience the head alone is trained on the memory, which has as
    many samples of each class, for `balance_epochs` at a rate of `balance_lr`. `loss`: paper or
    released. `batch_size` samples are drawn from the memory for each batch; None: as many as the
    loop's own.
    """

    needs_boundaries = True
    one_target = True
    owns = ("the batches", "the forward pass", "the loss")

    def __init__(
        self,
        capacity: int = 200,
        spatial: float = 3.0,
        flat: float = 1.0,
        loss: str = "paper",
        margin: float = 0.6,
        balance_epochs: int = 20,
        balance_lr: float = 0.05,
        batch_size: int | None = None,
    ):
        super().__init__()
        not_negative("strategy", spatial=spatial, flat=flat, margin=margin)
        if loss not in ("paper", "released"):
            raise InputError(f"strategy.loss={loss}: choose one of paper, released")
        at_least("strategy", 0, balance_epochs=balance_epochs)
        if balance_lr <= 0:
            raise InputError(f"strategy.balance_lr={balance_lr}: expected more than 0; raise it")
        self.replay = Replay(capacity, "herding", batch_size)
        self.spatial, self.flat, self.loss, self.margin = spatial, flat, loss, margin
        self.balance_epochs, self.balance_lr = balance_epochs, balance_lr
        self.factor = 1.0  # of the distillation in this experience
        self.old_groups = 0  # of proxies, of the experiences before this one
        self.begun = False  # this experience
        self._old: Tapped | None = None  # the encoder as it was before this experience
        self._new: Tapped | None = None
        self._saved: dict[str, Tensor] | None = None  # of `_old`, when restored

    @property
    def memory(self) -> Memory:
        return self.replay.memory

    def check(self, scenario: Any) -> None:
        """Refuse a memory that cannot hold one sample of each class."""
        check_room("PODNet", self.memory.capacity, scenario)

    def check_model(self, model: Any) -> None:
        """Refuse an encoder whose stages cannot be read, and a head without proxies."""
        encoder, head = getattr(model, "encoder", None), getattr(model, "head", None)
        if encoder is None:
            raise InputError(
                f"hypernet: PODNet compares an encoder with what it was, and {type(model).__name__}"
                " generates its weights for each task; set hypernet=none"
            )
        if not hasattr(encoder, "stage_outputs"):
            raise InputError(
                f"backbone: PODNet compares the stages of an encoder, and {type(encoder).__name__} "
                "names none; choose convnet, resnet18, resnet32, or a sequence model such as mingru"
            )
        if getattr(encoder, "_compiled_call_impl", None) is not None:
            raise InputError(
                "compile=true: PODNet reads the stages of the encoder, which do not show once it "
                "is compiled; set compile=false"
            )
        if not isinstance(head, LocalSimilarity):
            raise InputError(
                f"head: PODNet gives each class several proxies, and {type(head).__name__} has "
                "none; set head=local_similarity"
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.replay.before_training_exp(strategy)
        strategy._criterion = self.criterion(strategy.model.head)
        groups = strategy.model.head.groups
        if not self.begun and 0 < self.old_groups < len(groups):
            self._place_proxies(strategy)
        for group in groups[: self.old_groups]:
            group.requires_grad_(False)
        classes = strategy.experience.classes_in_this_experience
        self.factor = (len(strategy.model.head.columns) / len(classes)) ** 0.5
        self.begun = True

    def criterion(self, head: LocalSimilarity) -> Callable[[Tensor, Tensor], Tensor]:
        """L_NCA of a head's output (B, C) and targets (B,)."""
        if self.loss == "released":
            return released_nca
        return lambda output, target: hinged_nca(output, target, self.margin * head.scale.detach())

    @torch.no_grad()
    def _place_proxies(self, strategy: Any) -> None:
        """The centres of each new class's unit features, times the mean norm of older proxies."""
        head, generator = strategy.model.head, _generator()
        norm = torch.cat([*head.groups[: self.old_groups]]).norm(dim=2).mean()
        pairs = [(_features(strategy, x, False), y) for x, y, *_ in experience_batches(strategy)]
        features, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
        labels = labels.to(features.device)
        new = head.groups[-1]
        for proxies, label in zip(new, head.columns[-len(new) :], strict=True):
            points = normalize(features[labels == label], dim=1)
            first = spread(points, len(proxies), generator)
            proxies.copy_(norm * k_means(points, first))

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        if self._saved is not None:
            self._old = _frozen(strategy.model.encoder)
            self._old.encoder.load_state_dict(self._saved)
            self._saved = None
        if self._old is not None and self._new is None:
            self._new = Tapped(strategy.model.encoder)

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self._old is None or self._new is None:
            return
        with torch.no_grad(), autocast(strategy):
            self._old.encoder(strategy.mb_x)
        old_stages, old_features = self._old.take()
        stages, features = self._new.take()
        distance = self.spatial * pod_spatial(stages, old_stages)
        distance = distance + self.flat * pod_flat(features, old_features)
        strategy.loss = strategy.loss + self.factor * distance

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self._new is not None:
            self._new.close()
            self._new = None
        self.replay.after_training_exp(strategy)
        head = strategy.model.head
        head.groups.requires_grad_(True)
        if self.old_groups:
            self._balance(strategy)
        self._old, self._saved = _frozen(strategy.model.encoder), None
        self.old_groups, self.begun = len(head.groups), False

    def _balance(self, strategy: Any) -> None:
        """Trains the head alone on the memory, by an optimizer of its own."""
        head = strategy.model.head
        optimizer = torch.optim.SGD(head.parameters(), lr=self.balance_lr, momentum=0.9)
        criterion = self.criterion(head)
        batches = Batches(self.memory.all()[:2], strategy.train_mb_size, _generator())
        for _ in range(self.balance_epochs):
            for x, y in batches:
                features = _features(strategy, x, True)
                optimizer.zero_grad()
                criterion(head(features), y.to(features.device)).backward()
                optimizer.step()
        optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        return {
            "memory": self.memory.state_dict(),
            "old": self._saved if self._old is None else self._old.encoder.state_dict(),
            "factor": self.factor,
            "old_groups": self.old_groups,
            "begun": self.begun,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self._saved, self._old = state["old"], None
        for name in ("factor", "old_groups", "begun"):
            setattr(self, name, state[name])


def _frozen(encoder: nn.Module) -> Tapped:
    """A copy that stays as it is."""
    old = frozen_copy(encoder)
    if all(parameter.device.type == "cpu" for parameter in old.parameters()):
        old = old.to(memory_format=torch.channels_last)  # pooling is several times faster so
    return Tapped(old)


def _generator() -> torch.Generator:
    """Seeded as the run is; the global generator does not feel it."""
    return torch.Generator().manual_seed(torch.initial_seed())


@torch.no_grad()
def _features(strategy: Any, x: Tensor, augmented: bool) -> Tensor:
    """Of inputs as stored, by the encoder in evaluation mode, in float32."""
    model = strategy.model
    was_training = model.training
    model.eval()
    x = prepared(strategy, x.to(strategy.device), augmented)
    with autocast(strategy):
        features = model.features(x).float()
    model.train(was_training)
    return features
