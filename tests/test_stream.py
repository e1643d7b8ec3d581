"""A stream without boundaries: its order in the loop, replay, what is refused, a whole run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.nn.functional import cross_entropy

from clplat.data import tensors_of
from clplat.prepare import Prepare
from scenarios.streams import make_stream
from strategies.der import DER
from strategies.replay import Replay


@pytest.fixture
def stream(clusters):
    """The clusters as a stream of 3 groups, 24 samples each."""
    scenario = clusters()
    pairs = [
        [tensors_of(experience.dataset)[:2] for experience in part]
        for part in (scenario.train_stream, scenario.test_stream)
    ]
    x, y = (torch.cat(column) for column in zip(*pairs[0], strict=True))
    return make_stream((x, y), pairs[1], 6, [24, 48, 72], Prepare())


class Inputs(SupervisedPlugin):
    """The stored inputs of every batch."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_forward(self, strategy, **kwargs):
        self.seen.append(strategy.stored_x.clone())


def test_samples_come_once_and_in_order_as_in_a_bare_loop(stream, mlp, make_learner):
    x, y, _ = tensors_of(stream.train_stream[0].dataset)
    learner = make_learner(mlp(), epochs=1, batch_size=10)
    learner.train(stream.train_stream)

    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for k in range(0, 72, 10):
        loss = cross_entropy(model(x[k : k + 10].float() / 255), y[k : k + 10])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    torch.testing.assert_close(torch.stack(learner.losses), torch.stack(losses))


def test_replay_joins_each_batch_by_a_draw_from_those_before(stream, mlp, make_learner):
    x, y, _ = tensors_of(stream.train_stream[0].dataset)
    inputs, replay = Inputs(), Replay(1000, "reservoir", batch_size=5)
    make_learner(mlp(), replay, inputs, epochs=1, batch_size=10).train(stream.train_stream)
    assert torch.equal(inputs.seen[0], x[:10])
    for k, batch in enumerate(inputs.seen):
        fresh = x[10 * k : 10 * k + 10]
        assert torch.equal(batch[: len(fresh)], fresh)
        drawn = batch[len(fresh) :]
        assert len(drawn) == (5 if k else 0)
        before = {tuple(row.flatten().tolist()) for row in x[: 10 * k]}
        assert all(tuple(row.flatten().tolist()) in before for row in drawn)
    # Each sample of the stream was taken in once: those that were drawn were not again.
    held_x, held_y, _ = replay.memory.all()
    assert torch.equal(held_x, x)
    assert torch.equal(held_y, y)


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "ring"])
def test_every_policy_of_replay_that_needs_no_features_runs(stream, mlp, make_learner, policy):
    replay = Replay(12, policy)
    make_learner(mlp(), replay, epochs=1).train(stream.train_stream)
    _, y, _ = replay.memory.all()
    assert len(y) == 12
    if policy != "reservoir":
        assert y.bincount(minlength=6).tolist() == [2] * 6


def test_der_runs_in_a_stream_as_anywhere(stream, mlp, make_learner):
    strategy = DER(20)
    learner = make_learner(mlp(), strategy, epochs=1)
    learner.train(stream.train_stream)
    assert len(strategy.memory) == 20


def test_a_run_over_a_stream_fills_the_matrix_and_the_anytime_curve(command):
    outcome = command("scenario=online_digits strategy=replay optimizer=sgd out=runs/a")
    assert outcome.status == 0, outcome.err
    result = json.loads(Path("runs/a/result.json").read_text())
    matrix = np.load("runs/a/accuracy_matrix.npy")
    assert matrix.shape == (6, 5)
    assert np.isfinite(matrix).all()
    # A group that has not come yet is not known; the one that has just ended is.
    assert matrix[np.triu_indices(5, 1)].max() < 0.1
    assert np.diag(matrix[:5]).min() > 0.8
    assert result["experiences"] == 5

    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    points = [line for line in lines if "samples" in line]
    samples = [point["samples"] for point in points]
    rows = [line["scores"] for line in lines if "forgetting" in line]
    assert rows == matrix[:5].tolist()
    assert set(range(100, 1437, 100)) <= set(samples)
    assert samples[-1] == 1437
    widths = np.diff([0, *samples])
    area = sum(w * point["accuracy"] for w, point in zip(widths, points, strict=True)) / 1437
    assert result["anytime_accuracy"] == pytest.approx(area)
    assert 0 < result["stability_gap"] <= 1

    events = EventAccumulator("runs/a", size_guidance={"scalars": 0})
    events.Reload()
    scalars = events.Scalars("anytime/accuracy")
    assert [scalar.step for scalar in scalars] == samples
    recorded = [point["accuracy"] for point in points]
    np.testing.assert_allclose([scalar.value for scalar in scalars], recorded, rtol=1e-6)


def test_rows_do_not_depend_on_how_often_the_curve_is_taken(command):
    for out, every in (("a", "null"), ("b", "7")):
        command(f"scenario=online_digits eval.every={every} out=runs/{out}")
    a, b = (np.load(f"runs/{out}/accuracy_matrix.npy") for out in "ab")
    np.testing.assert_array_equal(a, b)
    assert json.loads(Path("runs/a/result.json").read_text())["anytime_accuracy"] is None


def test_experiences_with_evaluations_inside_have_an_anytime_curve_too(command):
    quick = "train.epochs=2 scenario.experiences=2 out=runs/a"
    assert command(f"scenario=split_digits eval.every=10 {quick}").status == 0
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    points = [line for line in lines if "samples" in line]
    assert [point["samples"] for point in points][:2] == [320, 640]
    ends = [line for line in lines if "forgetting" in line]  # where an experience does
    by_scores = {tuple(point["scores"]): point["accuracy"] for point in points}
    assert [by_scores[tuple(end["scores"])] for end in ends] == [end["accuracy"] for end in ends]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "strategy=ewc",
            "strategy: EWC acts where an experience begins or ends, and this scenario",
        ),
        ("strategy=joint", "strategy: Joint acts where an experience begins or ends"),
        ("strategy=avalanche/gdumb", "strategy: GDumbPlugin acts where an experience begins"),
        ("strategy=avalanche/er_ace", "strategy: ER_ACE acts where an experience begins or ends"),
        (
            "strategy=lwf",
            "finetune, replay, der, derpp, er_ace, mir, gss or a_gem, or a scenario with",
        ),
        ("head=nearest_mean", "the means of nearest_mean and prototypes are computed where an exp"),
        ("strategy=replay strategy.memory=herding", "choose reservoir, class_balanced or ring"),
        ("train.epochs=2", "train.epochs=2: this scenario is a stream that is seen once; set"),
        ("scenario.task_labels=true", "a stream without boundaries has no tasks to label"),
    ],
)
def test_what_needs_boundaries_is_refused(command, arguments, message):
    outcome = command(f"scenario=online_digits out=runs/a {arguments}")
    assert outcome.status == 2
    assert message in outcome.err
    assert not Path("runs/a").exists()
