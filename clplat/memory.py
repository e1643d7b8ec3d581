"""A replay memory of fixed capacity: tensors in the data's own dtype, and a key for each sample.

Whatever the policy, a memory holds the samples with the smallest keys. Random keys make it a
uniform sample of all that was ever offered (reservoir sampling; Efraimidis & Spirakis 2006);
keys that fall with time make it a ring; herding ranks make it iCaRL's. With `per_class`, the
capacity is shared equally among the classes seen so far, and smallest means within the class.
"""

import copy
from typing import Any

import torch
from torch import Tensor

from clplat.errors import InputError

POLICIES = ("reservoir", "class_balanced", "ring", "herding")


def shares(capacity: int, groups: int) -> Tensor:
    """`capacity` slots over `groups` as evenly as can be: the first ones take what is left over."""
    base, left = divmod(capacity, groups)
    return torch.tensor([base + (i < left) for i in range(groups)])


def rank_within(groups: Tensor, keys: Tensor) -> Tensor:
    """For each element, how many of its group have a smaller key (ties by position)."""
    by_key = keys.argsort(stable=True)
    order = by_key[groups[by_key].argsort(stable=True)]  # sorted by group, then by key
    counts = torch.bincount(groups)
    starts = counts.cumsum(0) - counts
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order)) - starts[groups[order]]
    return ranks


def herding(features: Tensor, count: int) -> Tensor:
    """Indices of `count` rows of (N, D) whose running mean stays closest to the mean of all.

    Rebuffi et al. 2017 (iCaRL), algorithm 4.
    """
    mean, total = features.mean(0), torch.zeros_like(features[0])
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    chosen = []
    for k in range(1, min(count, len(features)) + 1):
        distance = ((total + features) / k - mean).square().sum(1)
        best = distance.masked_fill(~free, float("inf")).argmin()
        total, free[best] = total + features[best], False
        chosen.append(best)
    return torch.stack(chosen) if chosen else torch.empty(0, dtype=torch.long)


def herding_keys(features: Tensor, labels: Tensor, count: int) -> Tensor:
    """Herding rank of each sample within its class; infinity for those beyond the first `count`.

    Features are normalised to unit length first, as in iCaRL.
    """
    features = torch.nn.functional.normalize(features.float(), dim=1)
    keys = torch.full((len(labels),), float("inf"))
    for label in labels.unique():
        members = (labels == label).nonzero()[:, 0]
        order = herding(features[members], count)
        keys[members[order].cpu()] = torch.arange(len(order), dtype=keys.dtype)
    return keys


class Memory:
    """Up to `capacity` samples, each a row in every column given to `add`; y is the second column.

    Keys and labels are kept on the CPU, so that choosing slots never waits for the device.
    """

    def __init__(self, capacity: int, policy: str = "reservoir"):
        if policy not in POLICIES:
            raise InputError(
                f"strategy.memory={policy}: no such policy; choose one of {', '.join(POLICIES)}"
            )
        if capacity < 1:
            raise InputError(
                f"strategy.capacity={capacity}: a memory holds at least 1 sample; raise it"
            )
        self.capacity, self.policy = capacity, policy
        self.columns: list[Tensor] = []  # each (capacity, ...), allocated by the first add
        self.keys = torch.full((capacity,), float("inf"), dtype=torch.float64)
        self.groups = torch.full((capacity,), -1)  # the label of each slot; -1: the slot is free
        self.classes: list[int] = []  # in the order in which they were first seen
        self.offered = 0

    def __len__(self) -> int:
        return int((self.groups >= 0).sum())

    @property
    def per_class(self) -> bool:
        return self.policy != "reservoir"

    @property
    def bytes(self) -> int:
        return sum(c.numel() * c.element_size() for c in self.columns)

    def _new_keys(self, count: int) -> Tensor:
        if self.policy == "ring":
            return -torch.arange(self.offered, self.offered + count, dtype=torch.float64)
        return torch.rand(count, dtype=torch.float64)

    def add(self, *columns: Tensor, keys: Tensor | None = None) -> None:
        """Offer samples as (x, y, ...); the policy decides which stay and which they replace.

        Herding needs the samples' `keys` (see `herding_keys`); other policies draw their own.
        """
        if self.policy == "herding" and keys is None:
            raise ValueError("a herding memory needs keys: herding ranks within each class")
        labels = columns[1].cpu()
        if not len(labels):
            return
        new = self._new_keys(len(labels)) if keys is None else keys.double().cpu()
        self.offered += len(labels)
        known = set(self.classes)
        self.classes += [c for c in dict.fromkeys(labels.tolist()) if c not in known]
        if not self.columns:
            self.columns = [c.new_zeros(self.capacity, *c.shape[1:]) for c in columns]

        groups, every_key = torch.cat([self.groups, labels]), torch.cat([self.keys, new])
        stays = self._stays(groups, every_key)
        self.groups[~stays[: self.capacity]] = -1
        incoming = stays[self.capacity :].nonzero()[:, 0]
        slots = (self.groups < 0).nonzero()[: len(incoming), 0]
        self.groups[slots], self.keys[slots] = labels[incoming], new[incoming]
        self.keys[self.groups < 0] = float("inf")
        for held, offered in zip(self.columns, columns, strict=True):
            index = incoming.to(offered.device)
            held[slots.to(held.device)] = offered.detach()[index].to(held.device)

    def _stays(self, groups: Tensor, keys: Tensor) -> Tensor:
        taken = (groups >= 0) & keys.isfinite()
        stays = torch.zeros(len(groups), dtype=torch.bool)
        index = taken.nonzero()[:, 0]
        if not self.per_class:
            best = keys[index].topk(min(self.capacity, len(index)), largest=False).indices
            stays[index[best]] = True
            return stays
        position = {label: k for k, label in enumerate(self.classes)}
        dense = torch.tensor([position[y] for y in groups[index].tolist()], dtype=torch.long)
        quota = shares(self.capacity, len(self.classes))
        stays[index] = rank_within(dense, keys[index]) < quota[dense]
        return stays

    def sample(self, count: int) -> list[Tensor]:
        """`count` samples drawn without replacement, or all there are if fewer."""
        held = (self.groups >= 0).nonzero()[:, 0]
        chosen = held[torch.randperm(len(held))[:count]]
        return [column[chosen.to(column.device)] for column in self.columns]

    def all(self) -> list[Tensor]:
        """Every sample held, in slot order."""
        held = (self.groups >= 0).nonzero()[:, 0]
        return [column[held.to(column.device)] for column in self.columns]

    def state_dict(self) -> dict[str, Any]:
        return {
            "columns": list(self.columns),
            "keys": self.keys,
            "groups": self.groups,
            "classes": list(self.classes),
            "offered": self.offered,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["keys"]) != self.capacity:
            raise ValueError(
                f"this memory's capacity is {self.capacity}, the saved one's {len(state['keys'])}"
            )
        for name, value in state.items():
            setattr(self, name, copy.deepcopy(value))  # add() writes in place
