"""The first experiences alone: the same data, weights and order as in the whole, and no more."""

import json
from pathlib import Path

import numpy as np
import pytest

from clplat.build import build_scenario
from clplat.errors import InputError
from tests.test_conf import composed


def matrix(folder):
    return np.load(Path(folder) / "accuracy_matrix.npy")


@pytest.mark.parametrize("strategy", ["finetune", "replay", "cumulative"])
def test_a_run_begins_as_the_whole_one(command, strategy):
    arguments = f"strategy={strategy} train.epochs=1 scenario.task_labels=false"
    assert command(f"{arguments} out=runs/whole").status == 0
    assert command(f"{arguments} train.experiences=2 out=runs/part").status == 0
    whole, part = matrix("runs/whole"), matrix("runs/part")
    assert part.shape == (3, 2)
    np.testing.assert_array_equal(part[:2], whole[:2, :2])
    np.testing.assert_array_equal(part[-1], whole[-1, :2])
    assert json.loads(Path("runs/part/result.json").read_text())["experiences"] == 2


def test_joint_trains_on_no_more():
    config = composed("train.experiences=2", "scenario.experiences=5", "strategy=joint")
    scenario = build_scenario(config, [])
    stream = scenario.train_stream
    assert len(stream) == len(scenario.test_stream) == 2
    assert all(len(e.origin_stream) == 2 for e in stream)
    labels = {int(y) for e in stream for y in e.dataset.targets}
    assert labels == {0, 1, 2, 3}
    assert scenario.n_classes == 10  # the head is the same


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["train.experiences=6", "scenario.experiences=5"],
            "train.experiences=6: the scenario has 5; lower it, or set it to null for all",
        ),
        (
            ["train.experiences=1", "scenario=online_digits"],
            "train.experiences=1: this scenario is one stream, one sequence or a series of tasks, "
            "of which no first experiences can be taken; set train.experiences=null",
        ),
    ],
)
def test_what_has_no_first_experiences_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        build_scenario(composed(*arguments), [])
    assert str(caught.value) == message


def test_the_count_is_checked_before_anything_is_built():
    with pytest.raises(InputError) as caught:
        composed("train.experiences=0")
    assert str(caught.value) == (
        "train.experiences=0: expected a whole number of at least 1, or null; for example "
        "train.experiences=1"
    )
