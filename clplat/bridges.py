"""Avalanche's strategies where they want to know something that only a run can tell.

The shape of an input, the number of classes, the length of the stream, another model: what is here
finds that out and leaves everything else to Avalanche. `conf/strategy/avalanche/` names it.
"""

from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from types import SimpleNamespace
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import PNN, FeCAMClassifier, MlpVAE, SCRModel, TrainEvalModel
from avalanche.models.packnet import PackNetModel
from avalanche.models.utils import FeatureExtractorModel
from avalanche.training import plugins, supervised
from avalanche.training.losses import MaskedCrossEntropy
from avalanche.training.utils import cycle, get_last_fc_layer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from clplat.adapter import AvalancheTemplate
from clplat.backbones.heads import Multi
from clplat.backbones.mlp import MLP
from clplat.errors import InputError

# --- plugins, run by our learner -------------------------------------------------------------


class _Shared(SupervisedPlugin):
    """`capacity` samples in all, where Avalanche counts those of one experience."""

    capacity: int

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.patterns_per_experience = self.capacity // len(strategy.experience.origin_stream)
        if not self.patterns_per_experience:
            raise InputError(
                f"strategy.capacity={self.capacity}: less than a sample for each of the "
                f"{len(strategy.experience.origin_stream)} experiences; raise it"
            )


class AGEM(_Shared, plugins.AGEMPlugin):
    def __init__(self, capacity: int, batch_size: int):
        super().__init__(capacity, batch_size)
        self.capacity = capacity


class GEM(_Shared, plugins.GEMPlugin):
    def __init__(self, capacity: int, margin: float):
        super().__init__(capacity, margin)
        self.capacity = capacity


class GSS(plugins.GSS_greedyPlugin):
    """The memory takes the shape of its samples from the first experience."""

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.ext_mem_list_current_index == 0:
            x = strategy.experience.dataset[0][0].to(strategy.device)
            self.ext_mem_list_x = x.new_zeros(self.mem_size, *x.shape)
        super().before_training_exp(strategy, *args, **kwargs)


class LFL(plugins.LFLPlugin):
    """Takes the features from `model.features`."""

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        """Avalanche's check is for the name `get_features`."""

    def compute_features(self, model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
        old = self.prev_model
        return model.eval().features(x), old.eval().features(x)  # type: ignore[operator, union-attr]


class CoPE(plugins.CoPEPlugin):
    """A prototype for each output of the model's last layer; the experience ends with its data."""

    def __init__(self, **settings: Any):
        super().__init__(max_it_cnt=None, **settings)  # type: ignore[arg-type]

    def before_training(self, strategy: Any, **kwargs: Any) -> None:
        if not self.initialized:
            self.n_classes = self.p_size = get_last_fc_layer(strategy.model)[1].out_features
        with redirect_stdout(StringIO()):
            super().before_training(strategy, **kwargs)


class GenerativeReplay(plugins.GenerativeReplayPlugin):
    """Replays from a variational autoencoder, made to the input's shape at the first experience."""

    def __init__(self, latent: int, lr: float, weight_decay: float, **settings: Any):
        super().__init__(**settings)
        self.latent = latent
        self.adam = partial(torch.optim.Adam, lr=lr, weight_decay=weight_decay)

    def before_training(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        """Avalanche would take the classifier itself for the generator."""

    def before_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        if self.generator is None:
            shape = strategy.experience.dataset[0][0].shape
            self.generator = MlpVAE(shape, self.latent, device=strategy.device)
            own = plugins.GenerativeReplayPlugin(
                replay_size=self.replay_size, increasing_replay_size=self.increasing_replay_size
            )
            self.generator_strategy = AvalancheTemplate(
                self.generator,
                self.adam,
                template=supervised.VAETraining,
                plugins=[own],
                batch_size=strategy.train_mb_size,
                epochs=strategy.train_epochs,
                device=strategy.device,
                prepare=strategy.prepare,
            ).strategy
        super().before_training_exp(strategy, *args, **kwargs)

    def after_training_exp(self, strategy: Any, *args: Any, **kwargs: Any) -> None:
        # Its batch norm takes no batch of one sample.
        self.generator_strategy.train(strategy.experience, drop_last=True)
        super().after_training_exp(strategy, *args, **kwargs)


class Freeze(SupervisedPlugin):
    """Trains the features on the first experience only."""

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_counter:
            strategy.model.feature_extractor.requires_grad_(False).eval()


# --- templates, run by the adapter -----------------------------------------------------------


class ICaRL(supervised.ICaRL):
    """Tells iCaRL the order of the classes, which it reads of a kind of benchmark now gone."""

    def _before_training_exp(self, **kwargs: Any) -> None:
        if not hasattr(self.experience, "benchmark"):
            groups = [sorted(e.classes_in_this_experience) for e in self.experience.origin_stream]  # type: ignore[union-attr]
            self.experience.benchmark = SimpleNamespace(  # type: ignore[union-attr]
                n_classes_per_exp=[len(group) for group in groups],
                classes_order=[label for group in groups for label in group],
            )
        super()._before_training_exp(**kwargs)


class ERAML(supervised.ER_AML):
    """Draws from a class with fewer samples than a batch; Avalanche's loader would never end."""

    def _before_training_exp(self, **kwargs: Any) -> None:
        super()._before_training_exp(**kwargs)
        groups: list[Any] = [g.buffer for g in self.storage_policy.buffer_groups.values()]
        self.pos_neg_loaders = [
            cycle(DataLoader(b, batch_size=min(self.train_mb_size, len(b)), shuffle=True))
            for b in groups
        ]


class SeenClasses(MaskedCrossEntropy):
    """Cross-entropy over the classes seen so far; over all of them before the first is."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        if not self.current_mask(logits.shape[1]):
            return nn.functional.cross_entropy(logits, targets)
        return super().__call__(logits, targets)


class FeCAM(FeCAMClassifier):
    """Spares the copy that Avalanche takes of every batch, with a warning."""

    def _tukey_transforms(self, x: Tensor) -> Tensor:
        return x**self.tukey1 if self.tukey1 else x.log()


# --- models that a template wants instead of ours --------------------------------------------


def feature_model(model: Any) -> FeatureExtractorModel:
    """Ours, keeping the features of the last batch as an attribute."""
    return FeatureExtractorModel(model.encoder, model.head)


def prototype_model(model: Any, classifier: nn.Module) -> TrainEvalModel:
    """Ours in training; in evaluation `classifier` on the same features."""
    return TrainEvalModel(model.encoder, model.head, classifier)


def contrastive_model(model: Any, projection: int) -> SCRModel:
    """Our encoder with a projection of two layers, and nearest means for evaluation."""
    width = model.encoder.width
    layers = [nn.Linear(width, width), nn.ReLU(), nn.Linear(width, projection)]
    return SCRModel(model.encoder, nn.Sequential(*layers))


def pruned_model(model: Any) -> PackNetModel:
    """Ours, with weights that can be given to one task each."""
    try:
        return PackNetModel(model)
    except ValueError as error:
        raise InputError(f"strategy=avalanche/packnet: {error}; set backbone=mlp") from error


class Progressive(PNN):
    """Trains the column of the current task, also where evaluation has already made later ones."""

    def adaptation(self, experience: Any) -> None:
        super().adaptation(experience)
        if self.training:
            for layer in self.layers:
                for task, index in layer.task_to_module_idx.items():  # type: ignore[union-attr, operator]
                    layer.columns[index].requires_grad_(task in experience.task_labels)  # type: ignore[index]


def progressive_model(model: Any) -> Progressive:
    """Columns as deep as our MLP and as wide as its features, under our own heads."""
    if not (isinstance(model.encoder, MLP) and isinstance(model.head, Multi)):
        raise InputError(
            f"strategy=avalanche/pnn: expected backbone=mlp and head=multi, got a "
            f"{type(model.encoder).__name__} and a {type(model.head).__name__} head; set both"
        )
    linears = [m for m in model.encoder.modules() if isinstance(m, nn.Linear)]
    progressive: Any = Progressive(len(linears), linears[0].in_features, model.encoder.width)
    progressive.classifier, progressive.max_class_label = model.head, model.head.classes
    return progressive
