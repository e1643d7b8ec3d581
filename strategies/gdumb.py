"""GDumb (Prabhu, Torr & Dokania 2020): a new network, trained on a balanced memory alone.

The memory takes each sample greedily (their algorithm 1): where its class is new, or has fewer than
capacity / classes in the memory; a full memory gives up a random sample of its largest class. So a
class keeps the samples that came first, and the memory stays full; the policy class_balanced of the
other strategies keeps any sample of a class alike, and holds each class to its share at once. Where
experiences bring no new class, as in permuted_digits, a memory that the first has filled takes in
nothing more, and nothing more is learned.

The paper trains where it is asked to predict, we after taking in an experience; its recipe (SGD
with warm restarts, CutMix) is left to the optimizer and the schedule. "From scratch" is from the
weights that the run began with, the same each time, with a new optimizer; what a network gained
since, such as the head of a task, begins with what it had when it was made.
"""

from collections.abc import Iterator
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from clplat.batches import Batches, experience_batches
from clplat.data import Columns
from clplat.errors import InputError, at_least
from clplat.grown import extended
from clplat.snapshot import STATISTICS
from strategies.replay import check_room


class GreedyMemory:
    """Up to `capacity` samples, each a row in every column given to `add`; y is the second column.

    Rows 0 to `len(memory)` are taken. Which sample leaves is drawn from the global generator.
    """

    def __init__(self, capacity: int):
        at_least("strategy", 1, capacity=capacity)
        self.capacity = capacity
        self.columns: Columns = []  # each (capacity, ...), allocated by the first add
        self.places: dict[int, list[int]] = {}  # the rows of each class

    def __len__(self) -> int:
        return sum(map(len, self.places.values()))

    def add(self, *columns: Tensor) -> None:
        """Offer samples as (x, y, ...), in this order."""
        if not self.columns:
            self.columns = [c.new_zeros(self.capacity, *c.shape[1:]) for c in columns]
        taken = {}  # by row: a later sample may take the row of an earlier one
        for index, label in enumerate(columns[1].tolist()):
            if self._wants(label):
                taken[self._place(label)] = index
        rows, chosen = torch.tensor([*taken]).long(), torch.tensor([*taken.values()]).long()
        for held, offered in zip(self.columns, columns, strict=True):
            new = offered.detach()[chosen.to(offered.device)]
            held[rows.to(held.device)] = new.to(held)

    def _wants(self, label: int) -> bool:
        known = self.places
        return label not in known or len(known[label]) < self.capacity / len(known)

    def _place(self, label: int) -> int:
        """A free row for a sample of this class, or else one of the largest class."""
        row = len(self)
        if row == self.capacity:
            largest = max(self.places.values(), key=len)  # the one seen first of several
            row = largest.pop(int(torch.randint(len(largest), ())))
        self.places.setdefault(label, []).append(row)
        return row

    def all(self) -> Columns:
        """Every sample held, in the order of rows."""
        return [column[: len(self)] for column in self.columns]

    @property
    def bytes(self) -> int:
        return sum(c.numel() * c.element_size() for c in self.columns)

    def state_dict(self) -> dict[str, Any]:
        return {"columns": list(self.columns), "places": self.places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.columns = [column.clone() for column in state["columns"]]  # add() writes in place
        self.places = {label: list(rows) for label, rows in state["places"].items()}


class Repeated:
    """Batches, several times over."""

    def __init__(self, batches: Batches, times: int):
        self.batches, self.times = batches, times

    def __len__(self) -> int:
        return self.times * len(self.batches)

    def __iter__(self) -> Iterator[Columns]:
        for _ in range(self.times):
            yield from self.batches


def starting(model: nn.Module) -> dict[str, Tensor]:
    """What training changes: parameters, and statistics of a normalisation."""
    statistics = {n: b for n, b in model.named_buffers() if any(s in n for s in STATISTICS)}
    return {**dict(model.named_parameters()), **statistics}


class GDumb(SupervisedPlugin):
    """Each experience begins anew, and makes `passes` over the memory in each of its epochs."""

    one_target = True  # a class for each sample
    owns = ("the batches",)

    def __init__(self, capacity: int = 200, passes: int = 10):
        super().__init__()
        at_least("strategy", 1, passes=passes)
        self.memory, self.passes = GreedyMemory(capacity), passes
        self.initial: dict[str, Tensor] = {}
        self.begun = False  # this experience

    @property
    def memory_bytes(self) -> int:
        """Of the samples; the initial weights are no knowledge."""
        return self.memory.bytes

    def check(self, scenario: Any) -> None:
        """Refuse a memory that cannot hold one sample of each class."""
        check_room("GDumb", self.memory.capacity, scenario)

    def check_model(self, model: Any) -> None:
        """Refuse a network that is given its weights task by task."""
        if hasattr(model, "generator"):
            raise InputError(
                "hypernet: GDumb trains on all tasks at once, and embeddings of tasks are trained "
                "in their own experience; set hypernet=none"
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if not self.begun:
            for columns in experience_batches(strategy):
                self.memory.add(*columns)
            self._begin_anew(strategy)
        self.begun = True
        order = getattr(strategy, "order", torch.default_generator)  # Avalanche's loop has none
        batches = Batches(self.memory.all(), strategy.train_mb_size, order)
        strategy.dataloader = Repeated(batches, self.passes)

    @torch.no_grad()
    def _begin_anew(self, strategy: Any) -> None:
        now = starting(strategy.model)
        self.initial = {n: extended(self.initial.get(n), tensor) for n, tensor in now.items()}
        for name, tensor in now.items():
            tensor.copy_(self.initial[name])
        strategy.make_optimizer(reset_optimizer_state=True)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.begun = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "memory": self.memory.state_dict(),
            "initial": dict(self.initial),
            "begun": self.begun,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
        self.initial, self.begun = dict(state["initial"]), state["begun"]
