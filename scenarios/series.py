"""Real multivariate time series split by class, from files inside the package sktime."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clplat.errors import InputError
from clplat.prepare import Prepare
from clplat.scenario import Scenario
from scenarios.split import class_counts, of_classes
from scenarios.streams import make_scenario

Series = list[NDArray[np.float64]]  # each (T, D), T its own

LOADERS = {
    "japanese_vowels": "load_japanese_vowels",  # 9 speakers, 12 coefficients, 7 to 29 steps
    "basic_motions": "load_basic_motions",  # 4 activities, 6 signals of a watch, 100 steps
}


def read(name: str) -> list[tuple[Series, NDArray[Any]]]:
    """The series and the names of their classes, of the training and of the test part."""
    if name not in LOADERS:
        raise InputError(
            f"scenario.name={name}: no such series; choose one of {', '.join(LOADERS)}"
        )
    try:
        from sktime import datasets  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"scenario.name={name}: the series come with the package sktime, which is not "
            "installed; pip install 'clplat[series]'"
        ) from error
    parts = []
    for part in ("train", "test"):
        frame, classes = getattr(datasets, LOADERS[name])(split=part, return_X_y=True)
        parts.append(([np.stack([*row], 1) for row in frame.to_numpy()], classes))
    return parts


def padded(series: Series, length: int) -> Tensor:
    """Zeros in front of each series (T, D), so that all end at the last step: (N, length, D)."""
    x = torch.zeros(len(series), length, series[0].shape[1])
    for row, values in zip(x, series, strict=True):
        row[length - len(values) :] = torch.from_numpy(values)
    return x


def series(
    name: str = "japanese_vowels",
    experiences: int = 3,
    task_labels: bool = False,
    shuffle_classes: bool = True,
    normalise: bool = True,
    seed: int = 0,
) -> Scenario:
    """Each experience brings classes of its own, in series (length, D) of one length.

    "japanese_vowels": who of 9 speaks (Kudo et al. 1999); "basic_motions": what a wearer of a watch
    does. A shorter series has zeros in front, so that the last state is that of its end.
    `normalise`: to mean 0 and deviation 1 of each channel over all steps for training, padding
    apart. Labels are numbered in the order of appearance, as by `scenarios.split`; `seed` sets it.
    """
    (train, train_classes), (test, test_classes) = read(name)
    names = np.unique(train_classes)
    counts = class_counts(len(names), experiences, None)
    if normalise:
        steps = np.concatenate(train)
        mean, deviation = steps.mean(0), steps.std(0)
        train, test = ([(x - mean) / deviation for x in part] for part in (train, test))
    length = max(map(len, [*train, *test]))
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))
    if not shuffle_classes:
        order = order.sort().values
    firsts = [sum(counts[:k]) for k in range(experiences)]

    def by_class(part: Series, classes: NDArray[Any]) -> list[tuple[Tensor, Tensor]]:
        data = padded(part, length), torch.from_numpy(np.searchsorted(names, classes))
        groups = zip(order.split(counts), firsts, strict=True)
        return [of_classes(data, chosen, first) for chosen, first in groups]

    return make_scenario(
        by_class(train, train_classes),
        by_class(test, test_classes),
        len(names),
        task_labels,
        Prepare(),
        order.tolist(),
    )
