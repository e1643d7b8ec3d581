"""Online streams: each sample comes once, and nothing says where a task begins or ends."""

import torch
from torch import Tensor

from clplat.errors import InputError
from clplat.scenario import Scenario
from scenarios.sources import load
from scenarios.split import class_counts, of_classes
from scenarios.streams import make_prepare, make_stream

ORDERS = ("split", "blurry", "gaussian", "random")


def split_order(part: Tensor, generator: torch.Generator) -> Tensor:
    """Indices of the samples, part after part, in random order within each part."""
    shuffled = torch.randperm(len(part), generator=generator)
    return shuffled[part[shuffled].argsort(stable=True)]


def blurry_order(
    part: Tensor, parts: int, share: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As `split_order` once a `share` of each part's samples went to the other parts, evenly.

    Also the part that each sample of the stream now belongs to (Bang et al. 2021, "blurry").
    """
    moved = torch.rand(len(part), generator=generator) < share
    away = torch.randint(1, max(parts, 2), (len(part),), generator=generator)
    part = torch.where(moved, (part + away) % parts, part)
    order = split_order(part, generator)
    return order, part[order]


def gaussian_order(
    label: Tensor, classes: int, deviation: float, generator: torch.Generator
) -> Tensor:
    """Indices of the samples by a time drawn for each, normal around a moment of its class.

    The moments are evenly spaced, `deviation` is a share of the stream (Shanahan et al. 2021).
    """
    centre = (label + 0.5) / classes
    return (centre + deviation * torch.randn(len(label), generator=generator)).argsort()


def online(
    source: str,
    order: str = "split",
    experiences: int = 5,
    blur: float = 0.1,
    deviation: float = 0.1,
    task_labels: bool = False,
    shuffle_classes: bool = True,
    normalise: bool = False,
    crop: int = 0,
    flip: bool = False,
    download: bool = False,
    seed: int = 0,
) -> Scenario:
    """One pass over a source as a stream without boundaries; testing is by groups of classes.

    The classes are divided into `experiences` groups. Orders: "split" (group after group),
    "blurry" (a share `blur` of each group's samples comes among the others), "gaussian" (each
    class comes and goes by a bell curve of `deviation`, a share of the stream) and "random".
    Row k of the accuracy matrix is taken where group k ends ("split", "blurry") or after
    (k + 1) / experiences of the stream. `seed` sets the order of classes and of samples.
    """
    if order not in ORDERS:
        raise InputError(f"scenario.order={order}: expected one of {', '.join(ORDERS)}")
    if task_labels:
        raise InputError(
            "scenario.task_labels=true: a stream without boundaries has no tasks to label; set "
            "scenario.task_labels=false, or choose a scenario with experiences"
        )
    if not 0 <= blur <= 1:
        raise InputError(f"scenario.blur={blur}: a share of a group is in 0..1; choose 0.1")
    if not deviation > 0:
        raise InputError(
            f"scenario.deviation={deviation}: expected more than 0, a share of the stream; "
            "choose 0.1"
        )
    data = load(source, download)
    counts = class_counts(data.classes, experiences, None)
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randperm(data.classes, generator=generator)
    if not shuffle_classes:
        classes = classes.sort().values
    x, label = of_classes(data.train, classes, 0)
    group = torch.arange(experiences).repeat_interleave(torch.tensor(counts))[label]
    total = len(label)
    if order in ("split", "blurry"):
        index, group = blurry_order(group, experiences, blur * (order == "blurry"), generator)
        marks = group.bincount(minlength=experiences).cumsum(0).tolist()
    else:
        index = torch.randperm(total, generator=generator)
        if order == "gaussian":
            index = gaussian_order(label, data.classes, deviation, generator)
        marks = [total * (k + 1) // experiences for k in range(experiences)]
    firsts = [sum(counts[:k]) for k in range(experiences)]
    test = [of_classes(data.test, c, f) for c, f in zip(classes.split(counts), firsts, strict=True)]
    prepare = make_prepare(data, normalise, crop, flip)
    return make_stream(
        (x[index], label[index]), test, data.classes, marks, prepare, classes.tolist()
    )
