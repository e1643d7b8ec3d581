"""Hypernetworks that keep what they generated for earlier tasks (von Oswald et al. 2020).

Loss: L_task(h(e_t, Theta)) + beta/(t-1) sum_{s<t} || h(e_s, Theta*) - h(e_s, Theta + dTheta) ||^2,
with Theta* the weights before the task and dTheta the step that the optimizer is about to take. The
weighting by importance and the growth are our reading of Chandra et al. (WACV 2023), whose abstract
alone we could read.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor
from torch.func import functional_call

from clplat.batches import experience_batches, prepared
from clplat.errors import InputError
from clplat.lookahead import look_ahead
from clplat.precision import loss_scale
from strategies.ewc import KINDS, fisher
from strategies.growth import Growth
from strategies.task_classifier import TaskClassifier


def regulariser(numbers: Tensor, targets: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean over tasks of the weighted sum of squared differences.

    `numbers`, `targets` (K, N); `weight` (N,) or (K, N), None for ones. A sum over all that is
    generated, so what `beta` is good depends on the target's size.
    """
    squares = (numbers - targets).square()
    return (squares if weight is None else squares * weight).sum() / len(numbers)


def normalised(importance: Tensor) -> Tensor:
    """Importances with a mean of 1, so that they share out `beta` and do not change it."""
    mean = importance.mean()
    return importance / mean if mean > 0 else torch.ones_like(importance)


class Hypernet(SupervisedPlugin):
    """Holds the weights generated for earlier tasks in place; the model is a hypernetwork.

    `look_ahead`: the regulariser sees the weights as the optimizer's step would leave them, were it
    not clipped.
    `importance`: None, or how the Fisher information of each generated weight is computed, exact,
    empirical or batch: summed over tasks, it weighs their squares. `subset`: of so many earlier
    tasks, drawn anew at every step; None: of all. `targets`: stored (what was generated for each
    earlier task), or recomputed from the generator before the task, whose memory does not grow
    with the number of tasks. Rows of the head that serve other tasks' classes are left out.

    `grow_by` units are added to a recurrent generator where the mean loss of a task, half way
    through its epochs, is above `grow_above`, and before the experiences `grow_at`. `inference`
    says how a sample's task is found where the scenario gives no task labels: by the least entropy
    of the prediction, or by a classifier of tasks that is fitted to `capacity` samples.
    """

    one_task_a_batch = True
    keeps_samples = False  # but for the task classifier, which takes any

    def __init__(
        self,
        beta: float = 0.1,
        look_ahead: bool = True,
        importance: str | None = None,
        subset: int | None = None,
        targets: str = "stored",
        grow_by: int = 0,
        grow_above: float | None = None,
        grow_at: Sequence[int] = (),
        inference: str = "entropy",
        capacity: int = 200,
    ):
        super().__init__()
        if not 0 <= beta < math.inf:
            raise InputError(f"strategy.beta={beta}: expected a number of 0 or more; change it")
        if subset is not None and (not isinstance(subset, int) or subset < 1):
            raise InputError(
                f"strategy.subset={subset}: expected a whole number of earlier tasks, at least 1, "
                "or null for all; change it"
            )
        for key, value, known in (
            ("importance", importance, (None, *KINDS)),
            ("targets", targets, ("stored", "recomputed")),
            ("inference", inference, ("entropy", "classifier")),
        ):
            if value not in known:
                names = ", ".join("null" if name is None else name for name in known)
                raise InputError(f"strategy.{key}={value}: choose one of {names}")
        self.beta, self.look_ahead, self.subset = beta, look_ahead, subset
        self.kind, self.stored = importance, targets == "stored"
        self.growth = Growth(grow_by, grow_above, grow_at)
        self.classifier = TaskClassifier(capacity) if inference == "classifier" else None
        self.earlier: list[int] = []  # tasks to keep, as they came
        self.targets: Tensor | None = None  # (K, N), what was generated for each
        self.before: dict[str, Tensor] = {}  # the generator's parameters before the task
        self.importance: Tensor | None = None  # (N,), summed over tasks
        self.weight: Tensor | None = None  # (N,), of the squares

    def check(self, scenario: Any) -> None:
        """Refuse what the scenario's samples or its task labels leave no room for."""
        experiences = len(scenario.train_stream)
        self.growth.check_experiences(experiences)
        if self.classifier is not None and self.classifier.memory.capacity < experiences:
            raise InputError(
                f"strategy.capacity={self.classifier.memory.capacity}: the classifier of tasks "
                f"keeps samples of each of the {experiences} experiences; raise it to "
                f"{experiences} or more"
            )
        one_class = any(len(e.classes_in_this_experience) == 1 for e in scenario.train_stream)
        if not scenario.task_labels and scenario.head is None and one_class and not self.classifier:
            raise InputError(
                "strategy.inference=entropy: where an experience has one class, its prediction is "
                "always sure; set strategy.inference=classifier, or fewer scenario.experiences"
            )
        if self.kind is not None and scenario.head is not None:
            raise InputError(
                f"strategy.importance={self.kind}: it asks for the class of each sample, and this "
                "scenario has several targets of each; set strategy.importance=null"
            )
        if self.classifier is None:
            return
        if scenario.task_labels:
            raise InputError(
                "strategy.inference=classifier: the scenario tells the task; set "
                "scenario.task_labels=false, or strategy.inference=entropy"
            )
        if scenario.vocabulary is not None:
            raise InputError(
                "strategy.inference=classifier: it reads images and series, and this scenario's "
                "samples are tokens; set strategy.inference=entropy"
            )

    def check_optimizer(self, optimizer: Any) -> None:
        """Refuse an optimizer whose next step nobody can foresee, where that is asked for."""
        if self.look_ahead and self.beta:
            look_ahead(optimizer, [])

    def check_model(self, model: Any) -> None:
        """Refuse a model whose weights nobody generates, or that cannot grow as it is asked to."""
        if not hasattr(model, "generator"):
            raise InputError(
                "strategy=hypernet: it keeps what a hypernetwork generates, and there is none; "
                "set hypernet=rnn, or another of the group hypernet (clplat --help lists them)"
            )
        self.growth.check(model)

    @torch.no_grad()
    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        model = strategy.model
        self.growth.before_training_exp(strategy)
        model.infer = self.classifier
        self.earlier = [task for task in model.trained if task not in model.current]
        self.targets, self.before, self.weight = None, {}, None
        shared = any(p.requires_grad for p in model.generator.parameters())
        if not self.earlier or not self.beta or not shared:
            self.earlier = []
            return
        if self.stored:
            mode = model.generator.training
            self.targets = model.generator.eval()(model.embedding(self.earlier))
            model.generator.train(mode)
        else:
            self.before = {n: p.clone() for n, p in model.generator.named_parameters()}
        if self.importance is not None:
            self.weight = normalised(self.importance)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        """As before training, which a restored strategy may have behind it."""
        strategy.model.infer = self.classifier

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.growth.count(strategy.loss)

    def before_update(self, strategy: Any, **kwargs: Any) -> None:
        if not self.earlier:
            return
        generator, scale = strategy.model.generator, loss_scale(strategy)
        places = torch.arange(len(self.earlier))
        if self.subset is not None:
            places = torch.randperm(len(self.earlier))[: self.subset]
        tasks = [self.earlier[place] for place in places]
        trained = {n: p for n, p in generator.named_parameters() if p.requires_grad}
        names, parameters = list(trained), list(trained.values())
        moved = [p.detach().clone() for p in parameters]
        if self.look_ahead:
            changes = look_ahead(strategy.optimizer, parameters, scale)
            moved = [p + change for p, change in zip(moved, changes, strict=True)]
        ahead = {n: p.requires_grad_() for n, p in zip(names, moved, strict=True)}
        with torch.enable_grad():
            embeddings = strategy.model.embedding(tasks).detach()
            numbers = functional_call(generator, ahead, (embeddings,))
            loss = self.beta * regulariser(
                numbers,
                self._targets(strategy.model, places, embeddings),
                self._weight(strategy.model, tasks),
            )
        gradients = torch.autograd.grad(loss * scale, moved, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None and parameter.grad is None:
                parameter.grad = gradient
            elif gradient is not None:
                parameter.grad += gradient
        # A scaler skips a step whose gradients are not finite, and so do we in what is shown.
        if scale == 1 or loss.isfinite():
            strategy.loss = strategy.loss.detach() + loss.detach()

    @torch.no_grad()
    def _targets(self, model: Any, places: Tensor, embeddings: Tensor) -> Tensor:
        if self.targets is not None:
            return self.targets if self.subset is None else self.targets[places]
        return functional_call(model.generator, self.before, (embeddings,))

    def _weight(self, model: Any, tasks: Sequence[int]) -> Tensor | None:
        serves = model.serves(tasks)
        if serves is None or self.weight is None:
            return self.weight if serves is None else serves
        return self.weight * serves

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        widened = self.growth.after_training_epoch(strategy)
        if widened and self.before:
            self.before = widened(self.before)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        model = strategy.model
        if self.kind is not None:
            for task in model.current:
                samples, key = self._samples(strategy, task), "strategy.importance"
                own = fisher(model.of_numbers(task), samples, self.kind, key)
                old = 0 if self.importance is None else self.importance
                self.importance = old + own["numbers"]
        if self.classifier is not None:
            self.classifier.after_training_exp(strategy)

    @staticmethod
    def _samples(strategy: Any, task: int) -> Iterator[list[Tensor]]:
        """The experience's batches of one of its tasks; without task labels it has but one."""
        for x, y, tasks in experience_batches(strategy, strategy.train_mb_size):
            rows = tasks == task if strategy.model.task_labels else slice(None)
            yield [prepared(strategy, x[rows], False), y[rows], tasks[rows]]

    def state_dict(self) -> dict[str, Any]:
        return {
            "earlier": self.earlier,
            "targets": self.targets,
            "before": self.before,
            "importance": self.importance,
            "weight": self.weight,
            "losses": self.growth.losses,
            "classifier": None if self.classifier is None else self.classifier.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.growth.losses = list(state["losses"])
        if self.classifier is not None:
            self.classifier.load_state_dict(state["classifier"])
        for name in ("earlier", "targets", "before", "importance", "weight"):
            setattr(self, name, state[name])
