"""Kernel continual learning (Derakhshani et al. 2021): a coreset a task, solved for by its kernel.

K = phi phi^T, phi(z) = sqrt(2/D) cos(omega z + b) of the encoder's features z; of a coreset C with
one-hot labels Y: alpha = (K_CC + (|lambda_t| + 0.01) I)^-1 Y; for a batch X:
gamma_t K_XC alpha + beta_t, with lambda_t, gamma_t and beta_t learned. Loss: its cross-entropy,
whose gradient reaches the encoder through K_XC and through alpha. Nothing is replayed and nothing
holds the encoder: what it makes of an earlier coreset is solved for anew before an evaluation.

The paper infers omega from each coreset by variational networks; ours is drawn once, of a Gaussian
kernel. Features have unit length, as in the published code's ResNet. Its evaluation takes lambda,
gamma and beta of the latest task for all; ours each task's own. A softmax does not feel beta.
"""

from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.backbones.kernel import Kernel
from clplat.batches import experience_columns, prepared
from clplat.data import Columns
from clplat.errors import InputError, at_least
from clplat.modes import in_evaluation


def task_of(strategy: Any) -> int:
    """The one task of the current experience."""
    return int(strategy.experience.task_labels[0])


def balanced_draw(places: dict[int, list[int]], count: int) -> Tensor:
    """Up to `count` of each label's places, drawn at random without replacement; ascending."""
    drawn = [torch.tensor(p)[torch.randperm(len(p))[:count]] for p in places.values()]
    return torch.cat(drawn).sort().values


def joined(strategy: Any, x: Tensor, labels: Tensor, task: int) -> Columns:
    """Send a coreset, ready for the model, through it behind the batch; returns the batch alone."""
    batch = list(strategy.mbatch)
    strategy.mbatch = [torch.cat([batch[0], x]), *batch[1:]]
    strategy.model.head.coreset = task, labels
    return batch


def parted(strategy: Any, batch: Columns) -> None:
    """Give the batch back that `joined` returned."""
    strategy.mbatch = batch
    strategy.model.head.coreset = None


@torch.no_grad()
def solve(strategy: Any, x: Tensor, labels: Tensor, task: int) -> None:
    """Fit a task's kernel to a coreset, ready for the model, by the encoder as it is now."""
    model = strategy.model
    with in_evaluation(model):
        features = [model.features(part) for part in x.split(strategy.eval_mb_size)]
    model.head.fit(torch.cat(features), labels, task)


def check_tasks(strategy: Any, scenario: Any) -> None:
    """Refuse experiences of several tasks."""
    for place, experience in enumerate(scenario.train_stream):
        if len(experience.task_labels) > 1:
            raise InputError(
                f"scenario: experience {place} has {len(experience.task_labels)} tasks, and "
                f"{type(strategy).__name__} solves for one at a time; choose one of a task an "
                "experience, such as split_digits"
            )


def check_head(strategy: Any, model: Any) -> None:
    """Refuse a model without an encoder, and a head that is no kernel."""
    name, head = type(strategy).__name__, getattr(model, "head", None)
    if not hasattr(model, "encoder"):
        raise InputError(
            f"hypernet: {name} trains an encoder, and {type(model).__name__} generates its weights "
            "for each task; set hypernet=none"
        )
    if not isinstance(head, Kernel):
        raise InputError(
            f"head: {name} predicts by kernel ridge regression, and {type(head).__name__} does "
            "not; set head=kernel"
        )


class KCL(SupervisedPlugin):
    """Keeps `samples` of each class as the coreset of its task, and does not train on them.

    A task that comes again gains as many. The head is `Kernel`.
    """

    needs_boundaries = True
    gives_coresets = True  # to a kernel head
    needs_task_labels = True
    one_target = True
    keeps_samples = True
    owns = ("the batches", "the forward pass")

    def __init__(self, samples: int = 20):
        super().__init__()
        at_least("strategy", 1, samples=samples)
        self.samples = samples
        self.coresets: dict[int, list[Tensor]] = {}  # by task: x as stored, y
        self.kept: Tensor | None = None  # places in this experience of its samples in the coreset
        self._batch: Columns = []

    def check(self, scenario: Any) -> None:
        """Refuse a coreset that leaves nothing to train on, and experiences of several tasks."""
        check_tasks(self, scenario)
        for place, experience in enumerate(scenario.train_stream):
            places = experience.dataset.targets.val_to_idx.values()
            most = max(len(of_label) for of_label in places)
            if most <= self.samples:
                raise InputError(
                    f"strategy.samples={self.samples}: experience {place} has at most {most} "
                    "samples of a class, and none would be left to train on; set "
                    f"strategy.samples={most - 1} or less"
                )

    def check_model(self, model: Any) -> None:
        check_head(self, model)

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        targets = strategy.experience.dataset.targets
        if self.kept is None:
            self.kept = balanced_draw(targets.val_to_idx, self.samples)
            self._keep(strategy)
        left = torch.ones(len(targets), dtype=torch.bool).index_fill_(0, self.kept, False)
        rest = left.nonzero()[:, 0].tolist()
        strategy.adapted_dataset = strategy.adapted_dataset.subset(rest)

    def _keep(self, strategy: Any) -> None:
        """Take this experience's samples into the coreset of its task."""
        x, y, _ = experience_columns(strategy)
        new, task = [x[self.kept], y[self.kept]], task_of(strategy)
        old = self.coresets.get(task, [column[:0] for column in new])
        self.coresets[task] = [torch.cat(pair) for pair in zip(old, new, strict=True)]

    def _coreset(self, strategy: Any, task: int, training: bool) -> tuple[Tensor, Tensor]:
        # Restored ones may lie elsewhere.
        x, y = self.coresets[task] = [c.to(strategy.device) for c in self.coresets[task]]
        return prepared(strategy, x, training), y

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        task = task_of(strategy)
        self._batch = joined(strategy, *self._coreset(strategy, task, True), task)

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        parted(strategy, self._batch)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.kept = None
        self.before_eval(strategy)

    def before_eval(self, strategy: Any, **kwargs: Any) -> None:
        for task in self.coresets:
            solve(strategy, *self._coreset(strategy, task, False), task)

    @property
    def memory_bytes(self) -> int:
        """Of the coresets' inputs and labels."""
        return sum(t.numel() * t.element_size() for pair in self.coresets.values() for t in pair)

    def state_dict(self) -> dict[str, Any]:
        return {"coresets": self.coresets, "kept": self.kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.coresets, self.kept = state["coresets"], state["kept"]
