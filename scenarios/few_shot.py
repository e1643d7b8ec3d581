"""Continual few-shot learning: many tasks of a few small support sets each (Antoniou et al. 2020).

A task's support sets are seen one at a time and each is gone after use; its target set asks for all
of its classes. Every task begins anew, with the same pre-trained encoder or weights of its own, and
results are means over tasks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from clplat.errors import InputError, at_least
from clplat.prepare import Prepare
from clplat.scenario import Scenario, seed_of_task
from scenarios.glyphs import ImagesByClass, load_by_class
from scenarios.streams import Pairs, make_scenario

PARTS = ("evaluation", "validation")
VALIDATION = 5  # of so many base classes, the last one


class Tasks(Sequence[Scenario]):
    """Independent tasks, each made when it is asked for, and always the same by its number."""

    def __init__(self, make: Callable[[torch.Generator], Scenario], size: int, seed: int):
        self.make, self.size, self.seed = make, size, seed

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index):  # type: ignore[override] - a task, or a list of a slice's
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(self.size))]
        if not -self.size <= index < self.size:
            raise IndexError(f"task {index} of {self.size}")
        seed = seed_of_task(self.seed, index % self.size)
        return self.make(torch.Generator().manual_seed(seed))


def support_sets(
    images: Tensor,
    experiences: int,
    ways: int,
    shots: int,
    targets: int,
    change_interval: int,
    overwrite: bool,
    generator: torch.Generator,
) -> tuple[Pairs, Pairs]:
    """A task out of images (classes, samples, ...): support sets, and the targets of each one.

    Each has `ways` classes of `shots` samples, new classes every `change_interval` sets. Labels
    count on from one change to the next; with `overwrite` each begins at 0 again. The samples of a
    class that are learnt from have the same numbers in every class, and targets have others.
    """
    classes = torch.randperm(len(images), generator=generator).split(ways)
    places = torch.randperm(images.shape[1], generator=generator)
    asked = places[change_interval * shots :][:targets]
    support, target = [], []
    for k in range(experiences):
        change, within = divmod(k, change_interval)
        chosen, first = images[classes[change]], 0 if overwrite else change * ways
        label = torch.arange(first, first + ways)
        given = places[within * shots : (within + 1) * shots]
        support.append((chosen[:, given].flatten(0, 1), label.repeat_interleave(shots)))
        target.append((chosen[:, asked].flatten(0, 1), label.repeat_interleave(len(asked))))
    return support, target


def disturbed(images: Tensor, occlusion: float, noise: float, generator: torch.Generator) -> Tensor:
    """Images (N, C, H, W) in uint8 with a black square on each, and Gaussian noise all over.

    The square has a side of `occlusion` times the shorter side, rounded, and lies anywhere within;
    `noise` is the deviation on the 0..1 scale.
    """
    count, _, height, width = images.shape
    side = round(occlusion * min(height, width))
    top, left = (
        (torch.rand(count, generator=generator) * (size - side + 1)).long()[:, None]
        for size in (height, width)
    )
    rows, columns = torch.arange(height), torch.arange(width)
    hidden = ((rows >= top) & (rows < top + side))[:, :, None]
    hidden = hidden & ((columns >= left) & (columns < left + side))[:, None, :]
    values = torch.where(hidden[:, None], 0.0, images / 255)
    values = values + noise * torch.randn(images.shape, generator=generator)
    return (values.clamp(0, 1) * 255).round().to(torch.uint8)


def _parts(data: ImagesByClass, part: str) -> tuple[Tensor, Tensor]:
    """The images that tasks are made of, and those to pre-train on, of other classes."""
    if part not in PARTS:
        raise InputError(f"scenario.part={part}: expected one of {', '.join(PARTS)}")
    apart = len(data.base) - len(data.base) // VALIDATION
    chosen = data.evaluation if part == "evaluation" else data.base[apart:]
    return data.images[chosen], data.images[data.base[:apart]]


def _first_task(
    make: Callable[[torch.Generator], tuple[Pairs, Pairs]],
    classes: int,
    tasks: int,
    base: Tensor,
    seed: int,
) -> Scenario:
    """The first of a number of tasks, which knows them all."""
    label = torch.arange(len(base)).repeat_interleave(base.shape[1])
    general = base.flatten(0, 1), label

    def scenario(generator: torch.Generator, **more: Any) -> Scenario:
        return make_scenario(*make(generator), classes, False, Prepare(), **more)

    first = scenario(torch.Generator().manual_seed(seed_of_task(seed, 0)), general=general)
    first.tasks = Tasks(scenario, tasks, seed)
    return first


def _check_labels(task_labels: bool) -> None:
    if task_labels:
        raise InputError(
            "scenario.task_labels=true: a target set asks for the classes of all support sets at "
            "once; set scenario.task_labels=false"
        )


def _check_samples(key: str, given: int, targets: int, images: Tensor, source: str) -> None:
    if given + targets > images.shape[1]:
        raise InputError(
            f"scenario.{key}={given}, scenario.targets={targets}: of each class {given + targets} "
            f"samples are asked for and {source} has {images.shape[1]}; lower one of them"
        )


def few_shot(
    source: str = "digit_glyphs",
    experiences: int = 4,
    ways: int = 5,
    shots: int = 1,
    targets: int = 5,
    change_interval: int = 2,
    overwrite: bool = False,
    tasks: int = 600,
    part: str = "evaluation",
    task_labels: bool = False,
    download: bool = False,
    seed: int = 0,
) -> Scenario:
    """`tasks` tasks of `experiences` support sets of `ways` classes with `shots` samples each.

    Classes change every `change_interval` support sets and get new labels, or with `overwrite` the
    same again; `targets` unseen samples of each are asked for. Tasks are made of the source's
    evaluation classes, or, to choose settings by, of the "validation" `part`: a fifth of its base
    classes, which the general stream leaves out. `seed` draws the tasks.
    """
    at_least("scenario", 1, experiences=experiences, ways=ways, shots=shots, targets=targets)
    at_least("scenario", 1, change_interval=change_interval, tasks=tasks)
    _check_labels(task_labels)
    changes, left = divmod(experiences, change_interval)
    if left:
        raise InputError(
            f"scenario.change_interval={change_interval}: expected a divisor of "
            f"scenario.experiences={experiences}, so that all classes have as many support sets; "
            f"set scenario.experiences={change_interval * (changes + 1)}, or another interval"
        )
    images, base = _parts(load_by_class(source, download), part)
    if changes * ways > len(images):
        raise InputError(
            f"scenario.ways={ways}: {changes * ways} classes are asked for and the {part} part of "
            f"{source} has {len(images)}; lower scenario.ways or scenario.experiences"
        )
    _check_samples("shots", change_interval * shots, targets, images, source)
    classes = ways if overwrite else changes * ways
    numbers = (experiences, ways, shots, targets, change_interval, overwrite)
    return _first_task(lambda g: support_sets(images, *numbers, g), classes, tasks, base, seed)


def instances(
    source: str = "digit_glyphs",
    experiences: int = 4,
    images_per_set: int = 5,
    targets: int = 5,
    occlusion: float = 0.3,
    noise: float = 0.1,
    tasks: int = 100,
    part: str = "evaluation",
    task_labels: bool = False,
    download: bool = False,
    seed: int = 0,
) -> Scenario:
    """The instance test: every image is a class of its own, among images of one class.

    The targets are the images themselves, each `targets` times, `disturbed` anew (Kowadlo et al.
    2022; how much is our reading). Tasks, parts and `seed` are those of `few_shot`.
    """
    at_least("scenario", 1, experiences=experiences, images_per_set=images_per_set)
    at_least("scenario", 1, targets=targets, tasks=tasks)
    _check_labels(task_labels)
    if not 0 <= occlusion < 1:
        raise InputError(
            f"scenario.occlusion={occlusion}: expected a share of an image's side, at least 0 and "
            "below 1; choose 0.3"
        )
    if not noise >= 0:
        raise InputError(f"scenario.noise={noise}: expected at least 0; choose 0.1")
    images, base = _parts(load_by_class(source, download), part)
    if not len(images):
        raise InputError(
            f"scenario.part={part}: the {part} part of {source} has 0 classes; choose another "
            "source, or scenario.part=evaluation"
        )
    count = experiences * images_per_set
    if count > images.shape[1]:
        raise InputError(
            f"scenario.images_per_set={images_per_set}: {count} images of one class are asked for "
            f"and {source} has {images.shape[1]}; lower it, or scenario.experiences"
        )

    def make(generator: torch.Generator) -> tuple[Pairs, Pairs]:
        of_class = images[int(torch.randint(len(images), (), generator=generator))]
        chosen = of_class[torch.randperm(len(of_class), generator=generator)[:count]]
        label = torch.arange(count)
        asked = disturbed(chosen.repeat_interleave(targets, 0), occlusion, noise, generator)
        parts = images_per_set, images_per_set * targets
        support = zip(chosen.split(parts[0]), label.split(parts[0]), strict=True)
        again = label.repeat_interleave(targets)
        target = zip(asked.split(parts[1]), again.split(parts[1]), strict=True)
        return list(support), list(target)

    return _first_task(make, count, tasks, base, seed)
