"""Avalanche strategies that own their training loop, behind the face of our learner.

A template runs unchanged, but on our data path where it leaves that to its base classes: batches
by index from resident tensors, in the order that the learner would use, and an optimizer that
holds what the model says is trainable.
"""

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from avalanche.benchmarks.scenarios import CLExperience
from avalanche.training.templates.base_sgd import BaseSGDTemplate
from avalanche.training.templates.observation_type import BatchObservation
from avalanche.training.templates.problem_type import SupervisedProblem
from torch import Tensor, nn

from clplat.batches import make_batches
from clplat.data import Columns
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.learner import check_losses
from clplat.optimizer import OptimizerFactory, follow, make_optimizer
from clplat.prepare import Prepare


@dataclass(frozen=True)
class TemplateStrategy:
    """A strategy that brings its own loop: a template class, with its own arguments bound."""

    template: Callable[..., BaseSGDTemplate]
    needs_task_labels: bool = False


def template(
    template: Callable[..., BaseSGDTemplate], needs_task_labels: bool = False, **named: Any
) -> TemplateStrategy:
    """The strategy of a config node; `named` are keys that `template` takes by interpolation."""
    _check_draw(named)
    return TemplateStrategy(template, needs_task_labels)


def plugin(plugin: Any, **named: Any) -> Any:
    """The plugin of a config node; `named` are keys that `plugin` takes by interpolation."""
    _check_draw(named)
    return plugin


def _check_draw(named: dict[str, Any]) -> None:
    """Avalanche waits forever for a batch larger than the memory, or leaves replay out."""
    capacity, batch_size = named.get("capacity"), named.get("batch_size")
    if capacity is not None and batch_size is not None and not 1 <= batch_size <= capacity:
        raise InputError(
            f"strategy.batch_size={batch_size}: expected from 1 to the samples held, "
            f"strategy.capacity={capacity}; lower it, or raise the capacity"
        )


class OurData(BatchObservation, SupervisedProblem, BaseSGDTemplate):
    """What `AvalancheTemplate` slips in between a template and Avalanche's base classes.

    In the order of method resolution it comes after the template, so that what a template
    overrides stays as it is, and before the base classes, whose loaders and optimizer it replaces.
    """

    factory: OptimizerFactory
    order: torch.Generator | None
    prepare: Callable[[Tensor, bool], Tensor]
    resident_bytes: float
    workers: int
    stored_x: Tensor | None = None
    losses: Sequence[Tensor] = ()

    def make_batches(
        self,
        dataset: Any,
        batch_size: int,
        order: torch.Generator | None = None,
        drop_last: bool = False,
    ) -> Iterable[Columns]:
        return make_batches(
            dataset, batch_size, self.device, order, self.resident_bytes, self.workers, drop_last
        )

    def make_train_dataloader(self, drop_last: bool = False, **kwargs: Any) -> None:  # type: ignore[override]
        self.dataloader = self.make_batches(
            self.adapted_dataset, self.train_mb_size, self.order, drop_last
        )

    def make_eval_dataloader(self, **kwargs: Any) -> None:  # type: ignore[override]
        self.dataloader = self.make_batches(self.adapted_dataset, self.eval_mb_size)

    def _unpack_minibatch(self) -> None:
        super()._unpack_minibatch()
        self.stored_x = self.mbatch[0]  # type: ignore[index]
        self.mbatch[0] = self.prepare(self.stored_x, self.is_training)  # type: ignore[index]

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:  # type: ignore[override]
        if reset_optimizer_state:
            self.optimizer, self.optimized_param_id = make_optimizer(self.factory, self.model)
        else:
            self.optimized_param_id = follow(self.optimizer, self.model, self.optimized_param_id)

    def _before_training_epoch(self, **kwargs: Any) -> None:
        self.losses = []
        super()._before_training_epoch(**kwargs)

    def _after_training_iteration(self, **kwargs: Any) -> None:
        self.losses.append(self.loss.detach().reshape(()))  # type: ignore[attr-defined]
        super()._after_training_iteration(**kwargs)

    def _after_training_epoch(self, **kwargs: Any) -> None:
        check_losses(self.losses, len(self.losses), self.clock)
        super()._after_training_epoch(**kwargs)

    # Avalanche forgets the batch when it evaluates in the middle of training.

    def _save_train_state(self) -> dict[str, Any]:
        batch = (self.mbatch, self.stored_x, self.mb_output, self.loss)
        return {**super()._save_train_state(), "batch": batch}

    def _load_train_state(self, prev_state: dict[str, Any]) -> None:
        super()._load_train_state(prev_state)
        self.mbatch, self.stored_x, self.mb_output, self.loss = prev_state["batch"]


class AvalancheTemplate:
    """Trains and evaluates by an Avalanche template; the arguments are those of `Learner`.

    `template` is the class or a partial of it. What its constructor requires of the model is
    given by name: `model`, or its parts (`feature_extractor`, `classifier`, ...). A `model` that
    the partial binds is a function from our model to the one that the template wants; `plugins`
    that it binds come before ours.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        *,
        template: Callable[..., BaseSGDTemplate],
        plugins: Sequence[Any] = (),
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        evaluator: Any = None,
        batch_size: int = 32,
        epochs: int = 1,
        eval_batch_size: int = 512,
        device: str | torch.device = "cpu",
        order: torch.Generator | None = None,
        prepare: Callable[[Tensor, bool], Tensor] = Prepare(),  # noqa: B008
        resident_bytes: float = float("inf"),
        workers: int = 0,
    ):
        kind, bound = _taken_apart(template)
        self.device = torch.device(device)
        model = bound.pop("model", lambda same: same)(model).to(self.device)
        plugins = [*bound.pop("plugins", ()), *plugins]
        first, held = make_optimizer(optimizer, model)
        offered = {
            "model": model,
            "optimizer": first,
            "criterion": criterion or nn.CrossEntropyLoss(),
            **_parts(model),
        }
        wanted = inspect.signature(kind).parameters
        required = {n for n, p in wanted.items() if p.default is p.empty and n not in bound}
        self.evaluator = evaluator or Evaluator()
        with warnings.catch_warnings():
            # Avalanche remarks on its own signatures and on its own plugins' hooks.
            warnings.simplefilter("ignore", UserWarning)
            self.strategy: Any = type(kind.__name__, (kind, OurData), {})(
                **bound | {name: value for name, value in offered.items() if name in required},
                plugins=plugins,
                evaluator=self.evaluator,
                train_mb_size=batch_size,
                train_epochs=epochs,
                eval_mb_size=eval_batch_size,
                device=self.device,
            )
        self.strategy.factory, self.strategy.optimized_param_id = optimizer, held
        self.strategy.order = order or torch.Generator().manual_seed(0)
        self.strategy.prepare = prepare
        self.strategy.resident_bytes, self.strategy.workers = resident_bytes, workers

    def train(self, experiences: CLExperience | Iterable[CLExperience]) -> None:
        """Train on one experience, or on several one after the other."""
        self.strategy.train(experiences)

    def eval(self, experiences: CLExperience | Iterable[CLExperience]) -> list[float]:
        """Run over the experiences' data without training; the mean score of each."""
        self.strategy.eval(experiences)
        return self.evaluator.scores

    @property
    def model(self) -> nn.Module:
        return self.strategy.model

    @property
    def optimizer(self) -> Any:
        return self.strategy.optimizer

    @property
    def clock(self) -> Any:
        return self.strategy.clock

    @property
    def plugins(self) -> list[Any]:
        return self.strategy.plugins

    @property
    def losses(self) -> Sequence[Tensor]:
        return self.strategy.losses


def _taken_apart(template: Any) -> tuple[Any, dict[str, Any]]:
    """The class, and the arguments that are bound to it."""
    if isinstance(template, partial):
        return template.func, dict(template.keywords)
    return template, {}


def _parts(model: Any) -> dict[str, Any]:
    """The parts of a classifier under the names by which templates ask for them."""
    if not (hasattr(model, "encoder") and hasattr(model, "head")):
        return {}
    return {
        "feature_extractor": model.encoder,
        "classifier": model.head,
        "slda_model": model.encoder,
        "input_size": model.encoder.width,
        "num_classes": getattr(model.head, "out_features", getattr(model.head, "classes", None)),
    }
