"""Experience replay: samples of a memory beside those of the experience (Chaudhry et al. 2019)."""

from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.batches import experience_batches, ordered, prepared, stored_inputs
from clplat.data import Columns
from clplat.errors import InputError
from clplat.memory import Memory, herding_keys


class Sampled(Protocol):
    """What samples are drawn from: fewer than `count` where it has no more, [] if it is empty."""

    def sample(self, count: int) -> list[Tensor]: ...


class WithMemory:
    """A loader whose every batch is followed by `size` samples drawn from a memory.

    `fresh` is how many samples of the last batch were the loader's own.
    """

    def __init__(self, batches: Iterable[Columns], memory: Sampled, size: int):
        self.batches, self.memory, self.size = batches, memory, size
        self.fresh = 0

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Columns]:
        for batch in self.batches:
            self.fresh = len(batch[1])
            drawn = self.memory.sample(self.size) or [column[:0] for column in batch]
            yield [torch.cat([b, d.to(b.device)]) for b, d in zip(batch, drawn, strict=True)]


def check_room(name: str, capacity: int, scenario: Any, held: str = "sample") -> None:
    """Refuse a memory that cannot hold one sample of each class, as the strategy `name` needs."""
    if capacity < scenario.n_classes:
        raise InputError(
            f"strategy.capacity={capacity}: {name} keeps at least one {held} of each of the "
            f"scenario's {scenario.n_classes} classes; set "
            f"strategy.capacity={scenario.n_classes} or more"
        )


def fresh_samples(strategy: Any) -> Columns:
    """The batch's `[x, y, task]` as stored, without what was joined to it from a memory."""
    columns = (stored_inputs(strategy), strategy.mb_y, strategy.mb_task_id)
    return [column[: strategy.dataloader.fresh] for column in columns]


class Replay(SupervisedPlugin):
    """From the second experience on, each batch is joined by as many samples of the memory.

    In a stream without boundaries the memory takes in every batch, and joins the next.

    `capacity` samples are held, chosen by `memory`: reservoir (a uniform sample of all data),
    class_balanced (the same within each class), ring (the latest of each class) or herding
    (those whose mean feature is nearest the class's; the model must have `features`).
    `batch_size` is the number of samples drawn a batch; by default the loop's own batch size.
    """

    needs_boundaries = False
    owns = ("the batches",)

    def __init__(
        self, capacity: int, memory: str = "class_balanced", batch_size: int | None = None
    ):
        super().__init__()
        if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
            raise InputError(
                f"strategy.batch_size={batch_size}: expected a whole number of at least 1 sample a "
                "batch; or leave it null for train.batch_size"
            )
        self.memory, self.batch_size = Memory(capacity, memory), batch_size

    def check(self, scenario: Any) -> None:
        """Refuse a memory that cannot hold one sample of each class where it should."""
        if scenario.marks and self.memory.policy == "herding":
            raise InputError(
                "strategy.memory=herding: samples are chosen where an experience ends, and this "
                "scenario is one stream without boundaries; choose reservoir, class_balanced or "
                "ring"
            )
        if scenario.head is not None and self.memory.per_class:
            raise InputError(
                f"strategy.memory={self.memory.policy}: it goes by the class of each sample, and "
                "this scenario has several targets of each; set strategy.memory=reservoir"
            )
        if self.memory.per_class and self.memory.capacity < scenario.n_classes:
            raise InputError(
                f"strategy.capacity={self.memory.capacity}: strategy.memory={self.memory.policy} "
                f"keeps at least one sample of each of the scenario's {scenario.n_classes} "
                f"classes; set strategy.capacity={scenario.n_classes} or more, or "
                "strategy.memory=reservoir"
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if len(self.memory) or ordered(strategy):
            size = self.batch_size or strategy.train_mb_size
            strategy.dataloader = WithMemory(strategy.dataloader, self.memory, size)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if ordered(strategy):
            self.memory.add(*fresh_samples(strategy))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if ordered(strategy):
            return
        batches = experience_batches(strategy)
        if self.memory.policy == "herding":
            columns = [torch.cat(column) for column in zip(*batches, strict=True)]
            features = self._features(strategy, columns[0])
            keys = herding_keys(features, columns[1], self.memory.capacity)
            self.memory.add(*columns, keys=keys)
        else:
            for columns in batches:
                self.memory.add(*columns)

    @torch.no_grad()
    def _features(self, strategy: Any, x: Tensor) -> Tensor:
        was_training = strategy.model.training
        strategy.model.eval()
        parts = x.split(strategy.eval_mb_size)
        features = [strategy.model.features(prepared(strategy, part, False)) for part in parts]
        strategy.model.train(was_training)
        return torch.cat(features)

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
