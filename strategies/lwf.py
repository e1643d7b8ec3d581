"""Learning without forgetting (Li & Hoiem 2016): keep the old model's answers on new data."""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn

from clplat.errors import InputError
from clplat.grown import leading
from clplat.modes import frozen_copy
from clplat.taps import Tap


def distillation(logits: Tensor, old_logits: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of new answers with the old at a temperature, mean over samples, the paper's.

    KL(old || new) plus the entropy of the old answers, which no weight of the new model changes.
    """
    old = (old_logits / temperature).softmax(1)
    return nn.functional.cross_entropy(logits / temperature, old)


class LwF(SupervisedPlugin):
    """Distils the model as it was before the experience into the model that is trained.

    Over the classes seen before; with a multi-task model, each earlier task's head in turn, all
    from the one pass of the encoder that the loop makes anyway.
    """

    one_target = True  # a class for each sample
    owns = ("the outputs",)  # it distils them, and others must not mask some

    def __init__(self, strength: float = 1.0, temperature: float = 2.0):
        super().__init__()
        if temperature <= 0:
            raise InputError(f"strategy.temperature={temperature}: expected more than 0; raise it")
        self.strength, self.temperature = strength, temperature
        self.teacher: nn.Module | None = None
        self.seen: dict[int, list[int]] = {}  # classes by task
        self._columns: dict[int, Tensor] = {}  # of the logits, those of `seen`
        self._tap: Tap | None = None
        self._features: Tensor | None = None  # of the batch
        self._pending: dict[str, Tensor] | None = None

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        model = strategy.model
        self._restore(model)
        self._columns = {
            task: torch.tensor(classes, device=strategy.device)
            for task, classes in self.seen.items()
        }
        if self.teacher is not None and is_multi_task_module(model) and hasattr(model, "encoder"):
            self._tap = Tap(model.encoder)

    def _restore(self, model: nn.Module) -> None:
        if self._pending is not None:
            self.teacher, self._pending = _copy_with(model, self._pending), None

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """At once: another strategy may run the encoder again before the loss is complete."""
        if self._tap is not None:
            self._features = self._tap.take()

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self._restore(strategy.model)
        if self.teacher is None:
            return
        with torch.no_grad():
            old = _by_task(self.teacher, strategy.mb_x)
        if self._features is not None:
            features = self._features[: len(strategy.mb_x)]  # others' samples follow the batch
            new = strategy.model.head(features.to(strategy.mb_output.dtype), None)  # not autocast's
            self._features = None
        elif is_multi_task_module(strategy.model):
            new = _by_task(strategy.model, strategy.mb_x)
        else:
            new = {0: strategy.mb_output}
        for task, columns in self._columns.items():
            ours, theirs = (z[task].index_select(1, columns).float() for z in (new, old))
            distilled = distillation(ours, theirs, self.temperature)
            strategy.loss = strategy.loss.add(distilled, alpha=self.strength)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self._tap is not None:
            self._tap.close()
            self._tap = None
        self.teacher, self._pending = frozen_copy(strategy.model), None
        multi = is_multi_task_module(strategy.model)
        dataset = strategy.experience.dataset
        for task in dataset.targets_task_labels.uniques if multi else [0]:
            classes = (dataset.task_set[task] if multi else dataset).targets.uniques
            self.seen[int(task)] = sorted({*self.seen.get(int(task), []), *map(int, classes)})

    def state_dict(self) -> dict[str, Any]:
        teacher = self._pending if self.teacher is None else self.teacher.state_dict()
        return {"teacher": teacher, "seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self._pending, self.teacher = state["seen"], state["teacher"], None


def _by_task(model: nn.Module, x: Tensor) -> dict[int, Tensor]:
    return model(x, None) if is_multi_task_module(model) else {0: model(x)}


def _copy_with(model: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """A frozen copy of a model with a saved state, which may be of before the model grew."""
    teacher = frozen_copy(model)
    for name, tensor in teacher.state_dict().items():
        if name in state:
            leading(tensor, state[name]).copy_(state[name])
    return teacher
