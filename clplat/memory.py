"""A replay memory of fixed capacity: tensors in the data's own dtype, and a key for each sample.

Whatever the policy, a memory holds the samples with the smallest keys. Random keys make it a
uniform sample of all that was ever offered (reservoir sampling; Efraimidis & Spirakis 2006);
keys that fall with time make it a ring; herding ranks make it iCaRL's. With `per_class`, the
capacity is shared equally among the classes seen so far, and smallest means within the class.
"""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clplat.errors import InputError

Array = NDArray[Any]

FREE = -1  # in place of a label: nothing is held in the slot
POLICIES = ("reservoir", "class_balanced", "ring", "herding")


def shares(capacity: int, groups: int) -> Array:
    """`capacity` slots over `groups` as evenly as can be: the first ones take what is left over."""
    base, left = divmod(capacity, groups)
    return base + (np.arange(groups) < left)


def rank_within(groups: Array, keys: Array) -> Array:
    """For each element, how many of its group have a smaller key (ties by position)."""
    order = np.lexsort((keys, groups))  # sorted by group, then by key; stable
    by_group = groups[order]
    ranks = np.empty_like(order)
    ranks[order] = np.arange(len(order)) - np.searchsorted(by_group, by_group)
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

    Samples with several targets each are all of one class.

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
        self.groups = torch.full((capacity,), FREE)  # the label in each slot
        self.classes: list[int] = []  # in the order in which they were first seen
        self.offered = 0
        self._look()

    def _look(self) -> None:
        self._held = (self.groups != FREE).nonzero()[:, 0]  # slots, looked up at each draw

    def __len__(self) -> int:
        return len(self._held)

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
        several = columns[1].ndim > 1
        labels = np.zeros(len(columns[1]), int) if several else columns[1].cpu().numpy()
        if not len(labels):
            return
        new = (self._new_keys(len(labels)) if keys is None else keys.double().cpu()).numpy()
        self.offered += len(labels)
        self.classes += [c for c in dict.fromkeys(labels.tolist()) if c not in self.classes]
        if not self.columns:
            self.columns = [c.new_zeros(self.capacity, *c.shape[1:]) for c in columns]

        held_groups, held_keys = self.groups.numpy(), self.keys.numpy()  # views: writes go through
        if not self.per_class and len(self) == self.capacity and new.min() >= held_keys.max():
            return
        stays = self._stays(np.concatenate([held_groups, labels]), np.concatenate([held_keys, new]))
        held_groups[~stays[: self.capacity]] = FREE
        incoming = stays[self.capacity :].nonzero()[0]
        slots = (held_groups == FREE).nonzero()[0][: len(incoming)]
        held_groups[slots], held_keys[slots] = labels[incoming], new[incoming]
        self._look()
        where, which = torch.from_numpy(slots), torch.from_numpy(incoming)
        for held, offered in zip(self.columns, columns, strict=True):
            chosen = offered.detach().index_select(0, which.to(offered.device))
            held.index_copy_(0, where.to(held.device), chosen.to(held.device, held.dtype))

    def _stays(self, groups: Array, keys: Array) -> Array:
        """Which of the samples, held and offered, are among the smallest keys."""
        stays = np.zeros(len(groups), dtype=bool)
        taken = ((groups != FREE) & np.isfinite(keys)).nonzero()[0]
        groups, keys = groups[taken], keys[taken]
        if not self.per_class:
            if len(taken) > self.capacity:
                taken = taken[keys.argpartition(self.capacity)[: self.capacity]]
            stays[taken] = True
            return stays
        known = np.array(self.classes)
        by_label = known.argsort()
        share = shares(self.capacity, len(known))[by_label]
        quota = share[np.searchsorted(known[by_label], groups)]
        stays[taken] = rank_within(groups, keys) < quota
        return stays

    def sample(self, count: int) -> list[Tensor]:
        """`count` samples drawn without replacement, or all there are if fewer."""
        chosen = self._held[torch.randperm(len(self))[:count]]
        return [column.index_select(0, chosen.to(column.device)) for column in self.columns]

    def all(self) -> list[Tensor]:
        """Every sample held, in slot order."""
        return [column.index_select(0, self._held.to(column.device)) for column in self.columns]

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
        self._look()
