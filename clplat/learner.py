"""The training loop: fires Avalanche's plugin hooks, in Avalanche's order, at a bare loop's pace.

Any Avalanche plugin runs in it, and it is what Avalanche's `SupervisedTemplate` is to a plugin.
What differs from the template: data is resident on the device; only plugins that override a hook
are called; the optimizer holds what the model says is trainable; nothing reads a tensor's value
inside an epoch.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from avalanche.benchmarks.scenarios import CLExperience
from avalanche.core import SupervisedPlugin
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from avalanche.models.utils import is_multi_task_module
from avalanche.training.plugins.clock import Clock
from torch import Tensor, nn

from clplat.batches import make_batches, ordered
from clplat.data import Columns
from clplat.errors import TrainingError
from clplat.optimizer import OptimizerFactory, follow, make_optimizer
from clplat.precision import autocast
from clplat.prepare import Prepare
from clplat.state import Place

STAGES = (
    *("training", "train_dataset_adaptation", "training_exp", "training_epoch"),
    *("training_iteration", "forward", "backward", "update"),
    *("eval", "eval_dataset_adaptation", "eval_exp", "eval_iteration", "eval_forward"),
)
HOOKS = [f"{when}_{stage}" for stage in STAGES for when in ("before", "after")]
CHECK_EVERY = 256  # iterations between looks at whether the loss is finite


def hook_table(plugins: Sequence[Any]) -> dict[str, list[Callable]]:
    """For each hook the bound methods to call: only of plugins that do something there."""

    def acts(plugin: Any, hook: str) -> bool:
        idle = getattr(SupervisedPlugin, hook, None)
        return hasattr(plugin, hook) and getattr(type(plugin), hook, None) is not idle

    return {hook: [getattr(p, hook) for p in plugins if acts(p, hook)] for hook in HOOKS}


class Learner:
    """Trains a model on one experience after another.

    `optimizer` makes an optimizer from parameter groups; `prepare` turns stored inputs into what
    the model sees. `order` draws the order of samples, and nothing else does, so that strategies
    are compared on the same sequence of batches.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: OptimizerFactory,
        *,
        plugins: Sequence[Any] = (),
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        evaluator: Any = None,
        batch_size: int = 32,
        epochs: int = 1,
        eval_batch_size: int = 512,
        device: str | torch.device = "cpu",
        order: torch.Generator | None = None,
        prepare: Callable[[Tensor, bool], Tensor] = Prepare(),  # noqa: B008
        precision: str = "fp32",
        grad_clip: float | None = None,
        accumulate: int = 1,
        resident_bytes: float = float("inf"),
        workers: int = 0,
        checkpoints: Any = None,
    ):
        self.device = torch.device(device)
        self.model = model.to(self.device)
        self._factory = optimizer
        self._criterion = criterion or nn.CrossEntropyLoss()  # MIR sets its `reduction`
        self.train_mb_size, self.eval_mb_size = batch_size, eval_batch_size
        self.train_epochs = epochs
        self.order = order or torch.Generator().manual_seed(0)
        self.prepare = prepare
        self.grad_clip, self.accumulate = grad_clip, accumulate
        self.resident_bytes, self.workers = resident_bytes, workers
        self.precision = precision
        self.scaler = torch.amp.GradScaler(self.device.type) if precision == "fp16" else None

        self.evaluator = evaluator
        self.clock = Clock()
        last = [p for p in (evaluator, self.clock, checkpoints) if p is not None]
        self.plugins = [*plugins, *last]  # a checkpoint is of what all others have done
        self._hooks = hook_table(self.plugins)

        self.optimizer, self._held = make_optimizer(optimizer, self.model)
        self.is_training = False
        self.experience: CLExperience | None = None
        self.current_eval_stream: Iterable[CLExperience] = []
        self.adapted_dataset: Any = None
        self.dataloader: Any = []
        self.mbatch: Columns | None = None
        self.stored_x: Tensor | None = None  # the batch's inputs before `prepare`
        self.mb_output: Tensor | None = None
        self.loss: Any = 0.0
        self.losses: list[Tensor] = []  # of the current epoch, one per iteration
        self.stopping = False

    # --- what plugins read -------------------------------------------------------------------

    @property
    def is_eval(self) -> bool:
        return not self.is_training

    @property
    def mb_x(self) -> Tensor:
        return self.mbatch[0]  # type: ignore[index]

    @property
    def mb_y(self) -> Tensor:
        return self.mbatch[1]  # type: ignore[index]

    @property
    def mb_task_id(self) -> Tensor:
        return self.mbatch[-1]  # type: ignore[index]

    def criterion(self) -> Tensor:
        return self._criterion(self.mb_output, self.mb_y)  # type: ignore[arg-type]

    def forward(self) -> Tensor:
        inputs = (self.mb_x, self.mb_task_id) if is_multi_task_module(self.model) else (self.mb_x,)
        if self.precision == "fp32":
            return self.model(*inputs)
        with autocast(self):
            output = self.model(*inputs)
        return output.float()

    def stop_training(self) -> None:
        """End the current experience before its next iteration."""
        self.stopping = True

    def model_adaptation(self, model: nn.Module | None = None) -> nn.Module:
        """Let dynamic modules (growing and multi-task heads) see the experience."""
        model = self.model if model is None else model
        avalanche_model_adaptation(model, self.experience)  # type: ignore[arg-type]
        if any(p.device != self.device for p in model.parameters()):  # what has just been added
            model.to(self.device)
        return model

    def meet(self, experiences: Iterable[CLExperience], training: bool) -> None:
        """Let the model grow as it does when it trains on these, or is evaluated on them."""
        self.model.train(training)
        for self.experience in experiences:
            self.model = self.model_adaptation()

    def make_optimizer(self, reset_optimizer_state: bool = False, **kwargs: Any) -> None:
        """Bring the optimizer in step with the model, or start a new one."""
        if reset_optimizer_state:
            self.optimizer, self._held = make_optimizer(self._factory, self.model)
        else:
            self._held = follow(self.optimizer, self.model, self._held)

    def make_batches(
        self, dataset: Any, batch_size: int, order: torch.Generator | None = None
    ) -> Iterable[Columns]:
        return make_batches(
            dataset, batch_size, self.device, order, self.resident_bytes, self.workers
        )

    # --- training ----------------------------------------------------------------------------

    def train(
        self, experiences: CLExperience | Iterable[CLExperience], place: Place | None = None
    ) -> None:
        """Train on one experience, or on several one after the other.

        The first goes on from a `place` inside it, if there is one; the learner's state must be
        that in which the experience began.
        """
        self.is_training = True
        self.model.train()
        self._fire("before_training")
        for self.experience in _as_iterable(experiences):
            self._train_experience(place)
            place = None
        self._fire("after_training")
        self.is_training = False

    def _train_experience(self, place: Place | None) -> None:
        self.stopping = False
        self._fire("before_train_dataset_adaptation")
        self.adapted_dataset = self.experience.dataset.train()  # type: ignore[union-attr]
        self._fire("after_train_dataset_adaptation")
        order = None if ordered(self) else self.order
        self.dataloader = self.make_batches(self.adapted_dataset, self.train_mb_size, order)
        self.model = self.model_adaptation()
        self.make_optimizer()
        self._fire("before_training_exp")
        if place is not None:
            place.enter_experience(self)
        for _ in range(self.clock.train_exp_epochs, self.train_epochs):
            self._fire("before_training_epoch")
            if self.stopping:
                break
            self._train_epoch(place)
            place = None
            self._fire("after_training_epoch")
        self._fire("after_training_exp")

    def _train_epoch(self, resumed: Place | None) -> None:
        self.losses, batches, coming = [], len(self.dataloader), self.dataloader
        if resumed is not None:
            coming = resumed.enter_epoch(self, coming)
        for iteration, self.mbatch in enumerate(coming, len(self.losses)):
            if self.stopping:
                break
            self._unpack()
            self._fire("before_training_iteration")
            place = iteration % self.accumulate  # among the batches of one update
            group = min(self.accumulate, batches - iteration + place)  # fewer at the epoch's end
            if place == 0:
                self._zero_grad()
            self.loss = 0.0

            self._fire("before_forward")
            self.mb_output = self.forward()
            self._fire("after_forward")
            added = isinstance(self.loss, Tensor)  # by a plugin; to add 0 is a step of the graph
            self.loss = self.loss + self.criterion() if added else self.criterion()

            self._fire("before_backward")
            self._backward(group)
            self._fire("after_backward")

            if place == group - 1:
                self._fire("before_update")
                self._update()
                self._fire("after_update")
            self.losses.append(self.loss.detach())
            self._fire("after_training_iteration")
            if len(self.losses) % CHECK_EVERY == 0:
                check_losses(self.losses, CHECK_EVERY, self.clock)
        check_losses(self.losses, len(self.losses) % CHECK_EVERY, self.clock)

    def _unpack(self) -> None:
        columns = [column.to(self.device, non_blocking=True) for column in self.mbatch]  # type: ignore[union-attr]
        self.stored_x = columns[0]
        self.mbatch = [self.prepare(columns[0], self.is_training), *columns[1:]]

    def _zero_grad(self) -> None:
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def _backward(self, group: int) -> None:
        loss = self.loss / group if group > 1 else self.loss
        (self.scaler.scale(loss) if self.scaler else loss).backward()

    def _update(self) -> None:
        if self.grad_clip is not None:
            if self.scaler:
                self.scaler.unscale_(self.optimizer)
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(parameters, self.grad_clip)
        if self.scaler:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            self.optimizer.step()

    # --- evaluation --------------------------------------------------------------------------

    @torch.no_grad()
    def eval(self, experiences: CLExperience | Iterable[CLExperience]) -> Any:
        """Run over the experiences' data without training; returns what the evaluator measured."""
        kept = (self.experience, self.adapted_dataset, self.dataloader, self.mbatch, self.stored_x)
        output, loss, was_training = self.mb_output, self.loss, self.is_training
        modes = {module: module.training for module in self.model.modules()}
        self.is_training = False
        self.model.eval()
        self.current_eval_stream = _as_iterable(experiences)

        self._fire("before_eval")
        for self.experience in self.current_eval_stream:
            self._eval_experience()
        self._fire("after_eval")

        self.current_eval_stream = []
        self.experience, self.adapted_dataset, self.dataloader, self.mbatch, self.stored_x = kept
        self.mb_output, self.loss, self.is_training = output, loss, was_training
        for module in self.model.modules():
            module.training = modes.get(module, was_training)
        return self.evaluator.get_last_metrics() if self.evaluator else None

    def _eval_experience(self) -> None:
        self._fire("before_eval_dataset_adaptation")
        self.adapted_dataset = self.experience.dataset.eval()  # type: ignore[union-attr]
        self._fire("after_eval_dataset_adaptation")
        self.dataloader = self.make_batches(self.adapted_dataset, self.eval_mb_size)
        self.model = self.model_adaptation()
        self._fire("before_eval_exp")
        for self.mbatch in self.dataloader:
            self._unpack()
            self._fire("before_eval_iteration")
            self._fire("before_eval_forward")
            self.mb_output = self.forward()
            self._fire("after_eval_forward")
            self.loss = self.criterion()
            self._fire("after_eval_iteration")
        self._fire("after_eval_exp")

    def _fire(self, hook: str) -> None:
        for method in self._hooks[hook]:
            method(self)


def _as_iterable(experiences: CLExperience | Iterable[CLExperience]) -> Iterable[CLExperience]:
    return experiences if isinstance(experiences, Iterable) else [experiences]


def check_losses(losses: Sequence[Tensor], count: int, clock: Clock) -> None:
    """Look at the last `count` losses, in one synchronisation; names the first not finite."""
    recent = losses[len(losses) - count :]
    finite = torch.stack([*recent]).isfinite() if recent else torch.ones(1)
    if not finite.all():
        iteration = len(losses) - count + int(finite.logical_not().nonzero()[0, 0])
        raise TrainingError(
            f"the loss is not finite (experience {clock.train_exp_counter}, "
            f"epoch {clock.train_exp_epochs}, iteration {iteration}, counted from 0): "
            "lower optimizer.lr, or set train.grad_clip=1"
        )
