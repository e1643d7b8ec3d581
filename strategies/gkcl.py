"""Generative kernel continual learning (Derakhshani et al. 2021b): a generator makes the coresets.

As kernel continual learning (`strategies/kcl.py`), but a task's coreset is drawn from a conditional
VAE, whose loss is -ELBO + contrast * L_supcon of the means of its latents. Only the generator is
replayed, and only it is kept.

Our reading of the abstract and of METHODS, the text being out of reach: the generator is fitted to
an experience before the network is trained on it, from its last weights on, to the experience's
samples and to as many for each earlier class that it generates itself; each training batch has a
coreset drawn anew, evaluation the same one each time.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.batches import experience_columns, prepared
from clplat.data import Columns
from clplat.errors import InputError, at_least, not_negative
from strategies.conditional_vae import ConditionalVAE
from strategies.contrastive import supervised_contrastive
from strategies.kcl import check_head, check_tasks, joined, parted, solve, task_of

BATCH = 128  # of fitting the generator


class GKCL(SupervisedPlugin):
    """Solves for `samples` of each class that a generator makes.

    The generator has `latent` latents and `hidden` hidden units each way; it is fitted by Adam at a
    rate of `generator_lr` for `generator_steps`. `contrast` is the weight of the supervised
    contrastive term, `temperature` its. The head is `Kernel`.
    """

    needs_boundaries = True
    gives_coresets = True  # to a kernel head
    needs_task_labels = True
    one_target = True
    keeps_samples = False
    owns = ("the batches", "the forward pass")

    def __init__(
        self,
        samples: int = 20,
        hidden: int = 128,
        latent: int = 16,
        generator_steps: int = 1500,
        generator_lr: float = 0.003,
        contrast: float = 0.1,
        temperature: float = 0.1,
    ):
        super().__init__()
        at_least("strategy", 1, samples=samples, hidden=hidden, latent=latent)
        at_least("strategy", 1, generator_steps=generator_steps)
        for key, value in {"generator_lr": generator_lr, "temperature": temperature}.items():
            if not 0 < value < math.inf:
                raise InputError(f"strategy.{key}={value}: expected more than 0; raise it")
        not_negative("strategy", contrast=contrast)
        self.samples, self.hidden, self.latent = samples, hidden, latent
        self.generator_steps, self.generator_lr = generator_steps, generator_lr
        self.contrast, self.temperature = contrast, temperature
        self.generator: ConditionalVAE | None = None
        self.classes: dict[int, list[int]] = {}  # by task
        self.shape: list[int] = []  # of an input
        self.fitted = False  # to this experience
        self._batch: Columns = []

    def check(self, scenario: Any) -> None:
        """Refuse inputs that a generator of numbers cannot make, experiences of several tasks."""
        check_tasks(self, scenario)
        tasks: dict[int, int] = {}  # by class
        for experience in scenario.train_stream:
            (task,) = experience.task_labels
            for label in map(int, experience.classes_in_this_experience):
                if tasks.setdefault(label, task) != task:
                    raise InputError(
                        f"scenario: class {label} is in tasks {tasks[label]} and {task}, and the "
                        "generator of GKCL knows samples by their class alone; choose a scenario "
                        "whose tasks have classes of their own, such as split_digits"
                    )
        if scenario.vocabulary is not None:
            raise InputError(
                "strategy: GKCL generates images and series, and this scenario's inputs are "
                "tokens; choose another strategy, or another scenario"
            )

    def check_model(self, model: Any) -> None:
        check_head(self, model)

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if self.fitted:
            return
        x, y, _ = experience_columns(strategy)
        x, y = prepared(strategy, x.to(strategy.device), False), y.to(strategy.device)
        if self.generator is None:
            self.shape = list(x.shape[1:])
            self.generator = self._new(math.prod(self.shape), strategy.model.head.classes)
        self.generator.to(strategy.device)
        new = {int(label) for label in strategy.experience.classes_in_this_experience}
        earlier = {c for classes in self.classes.values() for c in classes} - new
        self._fit(self.generator, x.flatten(1), y, len(new), sorted(earlier))
        task = task_of(strategy)
        self.classes[task] = sorted(new | {*self.classes.get(task, [])})
        self.fitted = True

    def _new(self, inputs: int, classes: int) -> ConditionalVAE:
        return ConditionalVAE(inputs, classes, self.hidden, self.latent)

    def _fit(
        self, generator: ConditionalVAE, x: Tensor, y: Tensor, new: int, earlier: list[int]
    ) -> None:
        """To samples of `new` classes, and to what the generator made of earlier ones till now."""
        optimizer = torch.optim.Adam(generator.parameters(), lr=self.generator_lr, fused=True)
        before = copy.deepcopy(generator)
        known = torch.tensor(earlier, dtype=torch.long, device=y.device)
        replayed = BATCH * len(earlier) // (new + len(earlier))
        for _ in range(self.generator_steps):
            rows = torch.randint(len(y), (BATCH - replayed,)).to(y.device)
            inputs, labels = x[rows], y[rows]
            if replayed:
                drawn = known[torch.randint(len(known), (replayed,)).to(y.device)]
                made = before.generate(drawn, self._noise(drawn))
                inputs, labels = torch.cat([inputs, made]), torch.cat([labels, drawn])
            loss, means = generator.negative_elbo(inputs, labels, self._noise(labels))
            if self.contrast:
                term = supervised_contrastive(means, labels, self.temperature)
                loss = loss + self.contrast * term
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def _noise(self, labels: Tensor, source: torch.Generator | None = None) -> Tensor:
        return torch.randn(len(labels), self.latent, generator=source).to(labels.device)

    def _generate(self, labels: Tensor, seed: int | None = None) -> Tensor:
        """Inputs of these labels; the same ones for a seed, whatever else is drawn."""
        assert self.generator is not None
        source = None if seed is None else torch.Generator().manual_seed(seed)
        generator = self.generator.to(labels.device)  # a restored one may lie elsewhere
        return generator.generate(labels, self._noise(labels, source)).unflatten(1, self.shape)

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        task = task_of(strategy)
        labels = _of_each(self.classes[task], self.samples, strategy.device)
        self._batch = joined(strategy, self._generate(labels), labels, task)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        parted(strategy, self._batch)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.fitted = False
        self.before_eval(strategy)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        for task, classes in self.classes.items():
            labels = _of_each(classes, self.samples, strategy.device)
            solve(strategy, self._generate(labels, torch.initial_seed() + task), labels, task)

    @property
    def memory_bytes(self) -> int:
        """Of the generator's weights."""
        parameters = [] if self.generator is None else self.generator.parameters()
        return sum(p.numel() * p.element_size() for p in parameters)

    def state_dict(self) -> dict[str, Any]:
        return {
            "generator": None if self.generator is None else self.generator.state_dict(),
            "classes": self.classes,
            "shape": self.shape,
            "fitted": self.fitted,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        weights = state["generator"]
        if weights is not None:
            with torch.device("meta"):  # draws nothing
                self.generator = self._new(math.prod(state["shape"]), len(weights["prior"]))
            own = {name: tensor.clone() for name, tensor in weights.items()}
            self.generator.load_state_dict(own, assign=True)
        for name in ("classes", "shape", "fitted"):
            setattr(self, name, state[name])


def _of_each(classes: Sequence[int], count: int, device: Any) -> Tensor:
    """`count` labels of each class."""
    return torch.tensor(classes, device=device).repeat_interleave(count)
