"""Series by class, against the files they come from."""

import json
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from clplat.data import tensors_of
from clplat.errors import InputError
from scenarios.series import padded, series

here = pytest.mark.skipif(find_spec("sktime") is None, reason="sktime is not installed")
SIZES = {"japanese_vowels": (9, 12, 29), "basic_motions": (4, 6, 100)}
FILES = {"japanese_vowels": "JapaneseVowels", "basic_motions": "BasicMotions"}


def in_file(name: str, part: str) -> list[tuple[str, np.ndarray]]:
    """The class and the values (T, D) of each line: channels between colons, the class last."""
    (package,) = find_spec("sktime").submodule_search_locations
    file = Path(package, "datasets/data", FILES[name], f"{FILES[name]}_{part.upper()}.ts")
    lines = file.read_text().split("@data\n")[1].splitlines()
    rows = [line.split(":") for line in lines]
    return [(row[-1], np.array([c.split(",") for c in row[:-1]], float).T) for row in rows]


def rows(x: torch.Tensor) -> Counter:
    return Counter(tuple(np.round(row.flatten().tolist(), 4)) for row in x)


def test_shorter_series_have_zeros_in_front():
    ragged = [np.arange(1.0, 5).reshape(2, 2), np.full((3, 2), 7.0)]
    expected = [[[0, 0], [0, 0], [1, 2], [3, 4]], [[0, 0], [7, 7], [7, 7], [7, 7]]]
    assert padded(ragged, 4).tolist() == expected


@here
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("normalise", [False, True])
def test_every_series_of_the_files_is_in_the_experience_of_its_class(name, normalise):
    classes, channels, length = SIZES[name]
    scenario = series(name, experiences=3, normalise=normalise, seed=4)
    assert (scenario.n_classes, scenario.input_shape) == (classes, (length, channels))
    known = sorted({label for label, _ in in_file(name, "train")})
    mean, deviation = np.zeros(channels), np.ones(channels)
    if normalise:
        steps = np.concatenate([values for _, values in in_file(name, "train")])
        mean, deviation = steps.mean(0), np.sqrt(((steps - steps.mean(0)) ** 2).mean(0))
    seen = []
    for part, stream in (("train", scenario.train_stream), ("test", scenario.test_stream)):
        by_class = {label: [] for label in known}
        for label, values in in_file(name, part):
            row = torch.zeros(length, channels)
            row[length - len(values) :] = torch.tensor((values - mean) / deviation)
            by_class[label].append(row)
        for experience in stream:
            x, y, task = tensors_of(experience.dataset)
            assert x.dtype == torch.float32
            assert not task.any()
            for label in y.unique().tolist():
                source = by_class[known[scenario.class_order[label]]]
                assert rows(x[y == label]) == rows(torch.stack(source))
                seen.append(label)
    # Labels are numbered in the order of appearance.
    assert seen == [*range(classes)] * 2


@here
def test_the_seed_orders_the_classes_and_labels_of_tasks_are_given_where_asked():
    orders = [series("basic_motions", 2, seed=s).class_order for s in range(6)]
    assert orders == [series("basic_motions", 2, seed=s).class_order for s in range(6)]
    assert len(set(map(tuple, orders))) > 1
    scenario = series("basic_motions", 2, task_labels=True, shuffle_classes=False)
    assert scenario.class_order == [0, 1, 2, 3]
    tasks = [set(tensors_of(e.dataset)[2].tolist()) for e in scenario.train_stream]
    assert tasks == [{0}, {1}]


@here
def test_a_small_model_learns_who_speaks(command):
    model = "backbone=mingru backbone.width=16 backbone.depth=1 optimizer.lr=0.01"
    outcome = command(f"scenario=series strategy=joint {model} train.epochs=6 out=runs/a")
    assert outcome.status == 0, outcome.err
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["accuracy"] > 0.6  # chance is 1 of 9


@here
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiences": 0}, "scenario.experiences=0: expected at least 1; raise it"),
        ({"experiences": 10}, "scenario.experiences=10: more experiences than the 9 classes"),
        ({"name": "vowels"}, "scenario.name=vowels: no such series; choose one of japanese_vowels"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        series(**settings)


def test_a_package_that_is_missing_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sktime", None)
    with pytest.raises(InputError, match=r"not installed; pip install 'clplat\[series\]'"):
        series()
