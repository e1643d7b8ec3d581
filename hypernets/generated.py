"""A network whose weights are generated, for one task or several: any module is a target."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from avalanche.models.dynamic_modules import DynamicModule, MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _NormBase

from clplat.backbones.heads import MASKED, Cosine
from clplat.errors import InputError
from clplat.layers.layer import Layer
from hypernets.fit import check_strategy
from hypernets.inference import of_surest
from hypernets.layout import NO_CLASS, Layout

# Operations with no form for several weights at a time, or that mix the samples of a batch.
ONE_BY_ONE = (Layer, nn.RNNBase, nn.RNNCellBase, _NormBase)


class Generator(nn.Module):
    """Task embeddings (K, E) to the generated numbers (K, N) of K tasks, at their own scale."""

    def __init__(self, body: Any, layout: Layout):
        super().__init__()
        self.body, self.layout = body, layout
        layout.calibrate(lambda: body(body.embedding()[None])[0])

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.layout(self.body(embeddings))


class OfNumbers(nn.Module):
    """The network of one task as a function of its generated numbers, its only parameter."""

    def __init__(self, model: "Generated", task: int):
        super().__init__()
        with torch.no_grad():
            self.numbers = nn.Parameter(model.generator(model.embedding([task]))[0])
        self.target = model.target  # so that this network's mode is the target's
        self.answer = partial(model.answer, task)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(self.numbers, x)


class Generated(MultiTaskModule):
    """A target network that is given its weights, task by task, by a hypernetwork.

    `generator` makes the map from an embedding to numbers, such as `hypernets.rnn.RNN`; `layout`
    says what the numbers are for. Each task has an embedding, trained in its own experiences and
    frozen in others, and running statistics of its own where the target has batch norm.

    With task labels a batch may hold samples of several tasks, and each sees its task's weights.
    Without, an experience is a task in training; in evaluation every sample is answered by the task
    that `infer` (inputs to tasks (B,)) says, by default the one whose prediction has the least
    entropy (von Oswald et al. 2020), as a share of the largest that its classes allow. With
    `classes`, a task predicts those of its experiences only.
    """

    def __init__(
        self,
        target: nn.Module,
        generator: Callable[[Layout], Any],
        layout: Callable[..., Layout] = Layout,
        task_labels: bool = True,
        classes: int | None = None,
    ):
        super().__init__()
        head = getattr(target, "head", None)
        if isinstance(head, DynamicModule) or not isinstance(head, nn.Linear | Cosine | None):
            raise InputError(
                f"head: a hypernetwork generates a head for each task, and {type(head).__name__} "
                "is none that can be generated; set head=single, or head=cosine"
            )
        names = (f"{n}.{b}" for n, m in target.named_modules() if _runs(m) for b in m._buffers)
        self.running = list(names)  # statistics, of which each task has its own
        self.looped = any(isinstance(module, ONE_BY_ONE) for module in target.modules())
        own = layout(target, classes)
        self.target, self.generator = target, Generator(generator(own), own)
        self.embeddings = nn.ParameterDict()
        self.task_labels, self.classes = task_labels, classes
        self.current: list[int] = []  # tasks of the experience that is trained on, or was last
        self.trained: list[int] = []
        self.infer: Callable[[Tensor], Tensor] | None = None

    @property
    def begins_as_target(self) -> bool:
        """Whether the target's own weights are what the generated ones begin with."""
        return self.generator.layout.begins_as_target

    # --- tasks and their weights ---------------------------------------------------------------

    @property
    def tasks(self) -> list[int]:
        return [int(task) for task in self.embeddings]

    def _known(self, task: int) -> str:
        if str(task) not in self.embeddings:
            raise InputError(f"task {task}: the hypernetwork knows the tasks {self.tasks}")
        return str(task)

    def embedding(self, tasks: Sequence[int]) -> Tensor:
        """(K, E)."""
        if len(tasks) == 0:
            raise InputError(f"no task given: the hypernetwork knows the tasks {self.tasks}")
        return torch.stack([self.embeddings[self._known(task)] for task in tasks])

    def weights(self, task: int | Sequence[int]) -> dict[str, Tensor]:
        """The target's parameters by name; of K tasks: with a first axis of K."""
        if isinstance(task, Sequence):
            return self.generator.layout.weights(self.generator(self.embedding(task)))
        return self.generator.layout.weights(self.generator(self.embedding([task]))[0])

    def own_classes(self, task: int) -> Tensor | None:
        """(classes,) whether a task predicts each; None where outputs are no classes."""
        return None if self.classes is None else getattr(self, f"classes_{self._known(task)}")

    def serves(self, tasks: Sequence[int]) -> Tensor | None:
        """(K, N) whether each number serves a task: not where it is the row of another's class."""
        label = self.generator.layout.label
        if self.classes is None or not (label != NO_CLASS).any():
            return None
        own = torch.stack([self.own_classes(task) for task in tasks])  # type: ignore[arg-type]
        every = torch.ones(len(tasks), 1, dtype=torch.bool, device=own.device)
        return torch.cat([own, every], 1)[:, label]  # label -1 is the column at the end

    def statistics(self, task: int) -> dict[str, Tensor]:
        """The running statistics of a task, by their names in the target."""
        return {name: getattr(self, _key(name, task)) for name in self.running}

    def of_numbers(self, task: int) -> OfNumbers:
        """A task's network with its generated numbers as the parameter `numbers`."""
        return OfNumbers(self, task)

    def add_task(self, task: int) -> None:
        """An embedding, and what else is a task's own; nothing where it has them."""
        if str(task) in self.embeddings:
            return
        like = self.generator.layout.scale
        embedding = self.generator.body.embedding().to(like)
        self.embeddings[str(task)] = nn.Parameter(embedding, requires_grad=False)
        for name in self.running:
            self.register_buffer(_key(name, task), self.target.get_buffer(name).clone())
        if self.classes is not None:
            none = torch.zeros(self.classes, dtype=torch.bool, device=like.device)
            self.register_buffer(f"classes_{task}", none)

    def adaptation(self, experience: Any) -> None:
        """Make what the experience's tasks need; in training, theirs alone is what is trained."""
        super().adaptation(experience)
        tasks = experience.task_labels if self.task_labels else [experience.current_experience]
        if not self.task_labels and not self.training:
            tasks = self.trained or [0]  # which task it is nobody says
        for task in tasks:
            self.add_task(task)
            if self.classes is not None and (self.task_labels or self.training):
                self.own_classes(task)[_classes(experience, task, self.task_labels)] = True  # type: ignore[index]
        if self.training:
            self.current = list(tasks)
            self.trained = list(dict.fromkeys([*self.trained, *tasks]))
            for task in self.tasks:
                self.embeddings[str(task)].requires_grad_(task in tasks)

    # --- the forward pass ----------------------------------------------------------------------

    def features(self, x: Tensor) -> Tensor:
        """The encoder's, of the task that is trained or was trained last."""
        prefix, task = "encoder.", (self.current or self.tasks)[0]
        state = self.weights(task) | self.statistics(task)
        own = {name.removeprefix(prefix): v for name, v in state.items() if name.startswith(prefix)}
        return functional_call(self.target.encoder, own, (x,))  # type: ignore[arg-type]

    def forward(self, x: Tensor, task: Tensor | int | None = None) -> Any:  # type: ignore[override]
        """`task`: one for all, one for each sample, or None for a dict of every task's logits.

        Without task labels it is not looked at.
        """
        if not self.task_labels:
            return self._unlabelled(x)
        if task is None:
            return {task: self._of_task(x, task) for task in self.tasks}
        if isinstance(task, int):
            return self._of_task(x, task)
        return self._by_task(x, task)

    def forward_single_task(self, x: Tensor, task: int) -> Tensor:  # type: ignore[override]
        return self._of_task(x, task)

    def answer(self, task: int, numbers: Tensor, x: Tensor) -> Tensor:
        """Logits of a task whose generated numbers are these."""
        state = self.generator.layout.weights(numbers) | self.statistics(task)
        return _of_classes(functional_call(self.target, state, (x,)), self.own_classes(task))

    def _of_task(self, x: Tensor, task: int) -> Tensor:
        return self.answer(task, self.generator(self.embedding([task]))[0], x)

    def _by_task(self, x: Tensor, task: Tensor) -> Tensor:
        """Each sample by its task's weights: all tasks in one pass where the target allows it."""
        present = task.unique().tolist()
        if len(present) == 1:
            return self._of_task(x, present[0])
        if self.training and self.running:
            raise InputError(
                f"a batch of the tasks {present} on a target with running batch statistics: they "
                "are of one task each; take batches of one task, or a backbone without batch norm"
            )
        if self.looped:
            answers = {one: self._of_task(x[task == one], one) for one in present}
            output = next(iter(answers.values())).new_empty(len(x), *answers[present[0]].shape[1:])
            for one, answer in answers.items():
                output = output.index_copy(0, (task == one).nonzero()[:, 0], answer)
            return output
        which = torch.searchsorted(task.new_tensor(present), task)
        place = _place_within(which, len(present))
        padded = x.new_zeros(len(present), int(place.max()) + 1, *x.shape[1:])
        padded[which, place] = x
        output = self._in_one_pass(self.weights(present), padded)[which, place]
        if self.classes is None:
            return output
        own = torch.stack([self.own_classes(one) for one in present])  # type: ignore[arg-type]
        return torch.where(own[which], output, MASKED)

    def _in_one_pass(self, weights: dict[str, Tensor], x: Tensor) -> Tensor:
        """Weights (K, ...) and inputs (K, B, ...) to outputs (K, B, ...)."""

        def call(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(self.target, weights, (x,))

        return vmap(call, randomness="different")(weights, x)

    def _unlabelled(self, x: Tensor) -> Tensor:
        if self.training:
            return self._of_task(x, self.current[0])
        known = self.trained or self.tasks[:1]
        if len(known) == 1:
            return self._of_task(x, known[0])
        if self.infer is not None:
            return self._by_task(x, self.infer(x))
        own = None
        if self.classes is not None:
            own = torch.stack([self.own_classes(task).sum() for task in known])  # type: ignore[union-attr]
        return of_surest(torch.stack([self._of_task(x, task) for task in known]), own)

    # --- the rest ------------------------------------------------------------------------------

    @property
    def measured(self) -> dict[str, float]:
        """The target's parameters, and how often the hypernetwork's own go into them."""
        own = sum(p.numel() for p in self.parameters())
        size = sum(part.shape.numel() for part in self.generator.layout.parts)  # type: ignore[union-attr]
        return {"target_parameters": float(size), "compression": size / own}

    def check(self, strategy: Any) -> None:
        """Refuse a strategy that mixes tasks in a batch where this network cannot."""
        check_strategy(strategy, self.task_labels, bool(self.running))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:  # type: ignore[override]
        """Makes the tasks of the state first: their number is part of it."""
        start = f"{prefix}embeddings."
        for key in [key for key in state_dict if key.startswith(start)]:
            self.add_task(int(key.removeprefix(start)))
        super()._load_from_state_dict(state_dict, prefix, *more)

    def get_extra_state(self) -> Tensor:
        """How many tasks are current, which they are, and those trained on."""
        return torch.tensor([len(self.current), *self.current, *self.trained])

    def set_extra_state(self, state: Tensor) -> None:
        count, *tasks = state.tolist()
        self.current, self.trained = tasks[:count], tasks[count:]
        for task in self.tasks:
            self.embeddings[str(task)].requires_grad_(task in self.current)


def _of_classes(logits: Tensor, own: Tensor | None) -> Tensor:
    return logits if own is None else torch.where(own, logits, MASKED)


def _place_within(group: Tensor, groups: int) -> Tensor:
    """For each element, how many of its group come before it."""
    one_hot = nn.functional.one_hot(group, groups)
    return (one_hot.cumsum(0) - 1).gather(1, group[:, None])[:, 0]


def _classes(experience: Any, task: int, labelled: bool) -> list[int]:
    if labelled and len(experience.task_labels) > 1:
        return sorted(experience.dataset.task_set[task].targets.uniques)
    return sorted(experience.classes_in_this_experience)


def _runs(module: nn.Module) -> bool:
    return isinstance(module, _NormBase) and module.track_running_stats


def _key(name: str, task: int) -> str:
    return f"{name}_{task}".replace(".", "_")
