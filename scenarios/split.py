"""Split a data set by class: class-incremental, or task-incremental where task labels are given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from clplat.errors import InputError
from clplat.scenario import Scenario
from scenarios.sources import load
from scenarios.streams import make_prepare, make_scenario


def class_counts(
    classes: int, experiences: int, per_experience: int | Sequence[int] | None
) -> list[int]:
    """How many classes each experience brings; as even as can be unless it is said."""
    if experiences < 1:
        raise InputError(f"scenario.experiences={experiences}: expected at least 1; raise it")
    if experiences > classes:
        raise InputError(
            f"scenario.experiences={experiences}: more experiences than the {classes} classes "
            f"of the source; choose at most {classes}"
        )
    if per_experience is None:
        base, left = divmod(classes, experiences)
        return [base + (k < left) for k in range(experiences)]
    counts = (
        [per_experience] * experiences if isinstance(per_experience, int) else [*per_experience]
    )
    if len(counts) != experiences or min(counts) < 1 or sum(counts) > classes:
        raise InputError(
            f"scenario.classes_per_experience={per_experience}: expected {experiences} positive "
            f"counts (scenario.experiences) that add up to at most {classes}, the source's classes"
        )
    return counts


def of_classes(data: tuple[Tensor, Tensor], classes: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """The samples of `classes`, relabelled first, first + 1, ... in the order of `classes`."""
    x, y = data
    label = torch.full((max(int(y.max()), int(classes.max())) + 1,), -1)
    label[classes] = torch.arange(first, first + len(classes))
    mine = label[y.long()] >= 0
    return x[mine], label[y.long()][mine]


def some_of_each(
    data: tuple[Tensor, Tensor], samples: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """`samples` random ones of each class, in the order that they had."""
    x, y = data
    least = int(torch.unique(y, return_counts=True)[1].min())
    if not 1 <= samples <= least:
        raise InputError(
            f"scenario.samples_per_class={samples}: expected 1 to {least}, what there is of every "
            "class; null takes all"
        )
    mixed = torch.randperm(len(y), generator=generator)
    drawn = [mixed[y[mixed] == label][:samples] for label in y.unique()]
    places = torch.cat(drawn).sort().values
    return x[places], y[places]


def split(
    source: str,
    experiences: int = 5,
    classes_per_experience: int | Sequence[int] | None = None,
    samples_per_class: int | None = None,
    task_labels: bool = False,
    shuffle_classes: bool = True,
    normalise: bool = False,
    crop: int = 0,
    flip: bool = False,
    validation: float = 0.0,
    download: bool = False,
    seed: int = 0,
) -> Scenario:
    """Each experience brings classes of its own.

    Labels are numbered in the order of appearance: experience 0 has 0..k-1, the next has k.. and
    so on; `scenario.class_order` gives the source's class behind each label. `seed` sets the order,
    and which `samples_per_class` of the training images there are.
    """
    data = load(source, download, validation)
    counts = class_counts(data.classes, experiences, classes_per_experience)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(data.classes, generator=generator)
    if not shuffle_classes:
        order = order.sort().values
    order = order[: sum(counts)]
    firsts = [sum(counts[:k]) for k in range(experiences)]
    train, test = (
        [of_classes(part, c, f) for c, f in zip(order.split(counts), firsts, strict=True)]
        for part in (data.train, data.test)
    )
    if samples_per_class is not None:
        train = [some_of_each(part, samples_per_class, generator) for part in train]
    prepare = make_prepare(data, normalise, crop, flip)
    return make_scenario(train, test, len(order), task_labels, prepare, order.tolist())
