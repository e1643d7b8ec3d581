"""Series of tasks against hand-run ones: scores, what is counted, what is refused, whole runs."""

import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from clplat import series
from clplat.build import build_scenario
from clplat.data import tensors_of
from clplat.errors import InputError
from clplat.keeper import Keeper
from clplat.report.__main__ import main as report
from clplat.scenario import seed_of_task
from clplat.series import SeriesRun, across_task_memory, cross_entropy, over_tasks, seeds_of_task

FEW = "scenario=cfsl/classes_and_samples_4"
SMALL = (FEW, "device=cpu", "scenario.ways=3", "scenario.tasks=3", "backbone.hidden=[9,7]")


def composed(*overrides: str) -> dict:
    with initialize_config_module("clplat.conf", version_base="1.3"):
        config = OmegaConf.to_container(compose("config", [*overrides]), resolve=True)
    assert isinstance(config, dict)
    return config


class Watch:
    """A record and a progress bar that remember what they were told."""

    def __init__(self):
        self.tasks, self.rows, self.shown, self.begun = [], [], [], []

    def start(self, *what):
        self.begun.append(what)

    def task(self, *what):
        (self.tasks if len(what) == 3 else self.shown).append(what)

    def experience(self, index, matrix):
        self.rows.append((index, matrix[index].tolist()))


def run_series(config, weights=None):
    """The run, its matrix and what was told of it."""
    watch = Watch()
    run = SeriesRun(config, build_scenario(config, []), watch, weights)
    keeper = Keeper(Path("nowhere"), None, "seconds", dict)
    return run, run.learn(watch, "it", keeper), watch  # type: ignore[arg-type]


# --- a task by hand --------------------------------------------------------------------------


def data(stream):
    return [tensors_of(experience.dataset)[:2] for experience in stream]


def by_hand(config, task, seed, weights=None, kept=0, drawn=0):
    """The accuracy matrix and the final cross-entropy of one task, in plain torch.

    `kept` and `drawn`: each batch is joined by so many samples of so many support sets before.
    """
    torch.manual_seed(seed)
    sizes = (256, *config["backbone"]["hidden"])
    layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
    head = nn.Linear(sizes[-1], task.n_classes)
    if weights is not None:
        for k, layer in enumerate(layers):
            layer.weight.data.copy_(weights[f"layers.{1 + 2 * k}.weight"])
            layer.bias.data.copy_(weights[f"layers.{1 + 2 * k}.bias"])
    hidden = [module for layer in layers for module in (layer, nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), *hidden, head)
    optimizer = torch.optim.Adam(model.parameters(), lr=config["optimizer"]["lr"])
    torch.manual_seed(seed)  # of the draws from what is kept
    order = torch.Generator().manual_seed(seed)
    support, targets = data(task.train_stream), data(task.test_stream)

    @torch.no_grad()
    def row():
        return [float((model(x / 255).argmax(1) == y).float().mean()) for x, y in targets]

    untrained, rows = row(), []
    for k, (x, y) in enumerate(support):
        for _ in range(config["train"]["epochs"]):
            for index in torch.randperm(len(y), generator=order).split(
                config["train"]["batch_size"]
            ):
                batch, labels = x[index], y[index]
                if kept and k:
                    old = support[max(0, k - kept) : k]
                    place = torch.randperm(sum(len(part) for _, part in old))[:drawn]
                    batch = torch.cat([batch, torch.cat([part for part, _ in old])[place]])
                    labels = torch.cat([labels, torch.cat([part for _, part in old])[place]])
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(batch / 255), labels).backward()
                optimizer.step()
        rows.append(row())
    with torch.no_grad():
        losses = []
        for x, y in targets:
            log = model(x / 255).double().log_softmax(1)
            losses.append(-sum(float(log[i, label]) for i, label in enumerate(y)) / len(y))
    return np.array([*rows, untrained]), float(np.mean(losses))


def check_against_hand(config, by_task):
    run, matrix, watch = run_series(config)
    matrices = [m for m, _ in by_task]
    losses = [loss for _, loss in by_task]
    np.testing.assert_allclose(matrix, sum(matrices) / len(matrices), atol=1e-6)
    scores = [float(m[-2].mean()) for m in matrices]  # the row after the last set
    assert [number for number, _, _ in watch.tasks] == list(range(len(matrices)))
    np.testing.assert_allclose([score for _, score, _ in watch.tasks], scores, atol=1e-6)
    np.testing.assert_allclose([loss for _, _, loss in watch.tasks], losses, rtol=1e-4)
    np.testing.assert_allclose([score for (score,) in watch.shown], scores, atol=1e-6)

    count, summary = len(scores), run.summary()
    mean, loss_mean = sum(scores) / count, sum(losses) / count
    deviation = (sum((score - mean) ** 2 for score in scores) / (count - 1)) ** 0.5
    loss_deviation = (sum((loss - loss_mean) ** 2 for loss in losses) / (count - 1)) ** 0.5
    assert deviation > 0
    assert summary["tasks"] == count
    assert summary["accuracy_deviation"] == pytest.approx(deviation, rel=1e-4)
    assert summary["accuracy_interval"] == pytest.approx(1.96 * deviation / count**0.5, rel=1e-4)
    assert summary["cross_entropy"] == pytest.approx(loss_mean, rel=1e-4)
    assert summary["cross_entropy_deviation"] == pytest.approx(loss_deviation, rel=1e-3)

    size = matrix.shape[1]
    assert [index for index, _ in watch.rows] == [-1, *range(size)]
    assert all(row == matrix[index].tolist() for index, row in watch.rows)
    assert watch.begun == [("it", config["seed"], count, "tasks", 0)]
    return run


@pytest.mark.parametrize(
    "more",
    [(), ("train.batch_size=2", "seed=3"), ("scenario.overwrite=true", "seed_init=5")],
    ids=["plain", "batches", "overwritten"],
)
def test_fine_tuning_is_the_mean_over_bare_loops(more):
    config = composed(*SMALL, "optimizer.lr=0.01", "seed_train=${seed_init}", *more)
    tasks = build_scenario(config, []).tasks
    seeds = [seed_of_task(config["seed_init"], k) for k in range(3)]
    hand = [by_hand(config, t, s) for t, s in zip(tasks, seeds, strict=True)]
    run = check_against_hand(config, hand)
    assert run.summary()["across_task_memory"] == 0


@pytest.mark.parametrize(("kept", "drawn"), [(1, 2), (2, 10)])
def test_latest_replay_is_the_mean_over_bare_loops_that_begin_with_nothing_kept(kept, drawn):
    chosen = ("strategy=latest_replay", f"strategy.experiences={kept}", f"strategy.samples={drawn}")
    config = composed(*SMALL, "optimizer.lr=0.01", *chosen)
    tasks = build_scenario(config, []).tasks
    hand = [by_hand(config, t, seed_of_task(0, k), None, kept, drawn) for k, t in enumerate(tasks)]
    check_against_hand(config, hand)


def pretrained(config):
    """Some weights of an encoder."""
    sizes, draws = (256, *config["backbone"]["hidden"]), torch.Generator().manual_seed(8)
    weights = {}
    for k, (a, b) in enumerate(pairwise(sizes)):
        weights[f"layers.{1 + 2 * k}.weight"] = torch.randn(b, a, generator=draws) / a**0.5
        weights[f"layers.{1 + 2 * k}.bias"] = torch.randn(b, generator=draws)
    return weights


def test_every_task_begins_with_the_weights_that_were_given():
    config = composed(*SMALL, "optimizer.lr=0.01")
    weights = pretrained(config)
    given = {name: value.clone() for name, value in weights.items()}
    hand = [
        by_hand(config, task, seed_of_task(0, k), weights)
        for k, task in enumerate(build_scenario(config, []).tasks)
    ]
    _, matrix, watch = run_series(config, weights)
    np.testing.assert_allclose(matrix, np.mean([m for m, _ in hand], axis=0), atol=1e-6)
    np.testing.assert_allclose([x for _, _, x in watch.tasks], [x for _, x in hand], rtol=1e-4)
    assert all(torch.equal(weights[name], given[name]) for name in given)  # training copied them


@pytest.mark.parametrize("strategy", ["latest_replay", "replay", "ewc", "derpp", "lwf", "frozen"])
def test_nothing_goes_from_one_task_to_the_next(strategy):
    chosen = [*SMALL, f"strategy={strategy}", "train.epochs=2"]
    chosen += ["head=prototypes"] if strategy == "frozen" else []
    config = composed(*chosen)
    weights = pretrained(config)
    _, _, all_three = run_series(config, weights)
    # Alone, as the first task of a run with the third's seeds.
    alone = composed(*chosen, "scenario.tasks=1", f"seed={seed_of_task(0, 2)}")
    _, _, watch = run_series(alone, weights)
    assert watch.tasks == [(0, *all_three.tasks[2][1:])]


# --- prototypes ------------------------------------------------------------------------------


def test_frozen_prototypes_are_those_of_all_support_sets_so_far():
    config = composed(*SMALL, "strategy=frozen", "head=prototypes", "scenario.shots=2")
    weights = pretrained(config)
    run, matrix, _ = run_series(config, weights)
    expected = []
    for task in build_scenario(config, []).tasks:
        support, targets = data(task.train_stream), data(task.test_stream)

        def features(x):
            h = x.flatten(1).double() / 255
            for k in (1, 3):
                w, b = weights[f"layers.{k}.weight"], weights[f"layers.{k}.bias"]
                h = (h @ w.T.double() + b.double()).relu()
            return h

        rows = []
        for k in range(len(support)):
            x, y = (torch.cat(c) for c in zip(*support[: k + 1], strict=True))
            known = y.unique()
            means = torch.stack([features(x[y == label]).mean(0) for label in known])
            predicted = [known[torch.cdist(features(x), means).argmin(1)] for x, _ in targets]
            right = [p == y for p, (_, y) in zip(predicted, targets, strict=True)]
            rows.append([float(r.double().mean()) for r in right])
        expected.append(rows)
    np.testing.assert_allclose(matrix[:-1], np.mean(expected, axis=0), atol=1e-6)
    # A vector of 7 floats for each of 6 classes; 4 sets of 6 images of 256 bytes and their labels.
    assert run.summary()["across_task_memory"] == pytest.approx(6 * 7 * 4 / (24 * (256 + 8)))


# --- what is counted -------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [1, 2, 4])
def test_across_task_memory_is_the_share_of_the_support_sets_that_is_kept(kept):
    """1 where all are (Antoniou et al. 2020)."""
    chosen = ("strategy=latest_replay", f"strategy.experiences={kept}", "train.epochs=1")
    run, _, _ = run_series(composed(*SMALL, *chosen))
    assert run.summary()["across_task_memory"] == pytest.approx(kept / 4)


def test_across_task_memory_is_in_bytes_of_the_support_sets():
    task = build_scenario(composed(*SMALL, "scenario.shots=2"), [])
    assert across_task_memory(0, task) == 0
    assert across_task_memory(1234, task) == pytest.approx(1234 / (4 * 6 * (256 + 8)))


def test_a_strategy_that_does_not_say_what_it_holds_has_no_across_task_memory():
    config = composed(*SMALL, "strategy=avalanche/agem", "train.epochs=1", "scenario.tasks=1")
    run, _, _ = run_series(config)
    assert run.summary()["across_task_memory"] is None


FORWARD = 256 * 9 + 9 * 7  # multiply-accumulates of the encoder for a sample
HEAD = 7 * 6
# Backward: once more for the weights, and for the inputs of all layers but the first.
TRAINED = 2 * (FORWARD + HEAD) + 9 * 7 + HEAD
SUPPORT, TARGETS = 4 * 3, 4 * 3 * 5


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], 5 * SUPPORT * TRAINED + TARGETS * (FORWARD + HEAD)),
        (["train.epochs=2"], 2 * SUPPORT * TRAINED + TARGETS * (FORWARD + HEAD)),
        (["train.batch_size=2"], 5 * SUPPORT * TRAINED + TARGETS * (FORWARD + HEAD)),
        (
            ["strategy=latest_replay", "strategy.samples=2"],  # with the last three sets
            5 * (SUPPORT + 3 * 2) * TRAINED + TARGETS * (FORWARD + HEAD),
        ),
        (["strategy=frozen"], TARGETS * (FORWARD + HEAD)),
        (
            ["strategy=frozen", "head=prototypes"],
            SUPPORT * FORWARD + TARGETS * FORWARD,  # distances are no product, and not counted
        ),
    ],
)
def test_multiply_accumulates_are_those_of_a_hand_count(more, expected):
    config = composed(*SMALL, "scenario.tasks=1", *more)
    run, _, _ = run_series(config, pretrained(config))
    assert run.summary()["multiply_accumulates"] == expected


def test_counting_changes_no_result(monkeypatch):
    config = composed(*SMALL, "strategy=latest_replay")
    _, matrix, _ = run_series(config)
    monkeypatch.setattr(series, "multiply_accumulates", lambda *what: 0)
    _, uncounted, _ = run_series(config)
    np.testing.assert_array_equal(matrix, uncounted)


def test_cross_entropy_is_of_each_sample():
    output = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    first = np.log(sum(np.exp([2.0, -1.0, 0.5]))) + 1.0
    expected = torch.tensor([first, np.log(3)], dtype=torch.float64)
    torch.testing.assert_close(cross_entropy(output, torch.tensor([1, 2])), expected)


def test_means_and_deviations_over_tasks():
    made = over_tasks([0.5, 0.25, 0.75, 0.9], [1.0, 3.0, 2.0, 2.0])
    deviation = np.std([0.5, 0.25, 0.75, 0.9], ddof=1)
    assert made == {
        "tasks": 4,
        "accuracy_deviation": pytest.approx(deviation),
        "accuracy_interval": pytest.approx(1.96 * deviation / 2),
        "cross_entropy": pytest.approx(2.0),
        "cross_entropy_deviation": pytest.approx((2 / 3) ** 0.5),
    }
    one = over_tasks([0.5], [1.0])
    assert (one["tasks"], one["cross_entropy"]) == (1, 1.0)
    unknown = ("accuracy_deviation", "accuracy_interval", "cross_entropy_deviation")
    assert [one[key] for key in unknown] == [None, None, None]


def test_tasks_have_seeds_of_their_own_for_weights_and_training_and_the_first_the_runs():
    config = {"seed": 1, "seed_data": 2, "seed_init": 3, "seed_train": 4, "other": 5}
    assert seeds_of_task(config, 0) == config
    later = seeds_of_task(config, 9)
    assert {k: v for k, v in later.items() if k not in ("seed_init", "seed_train")} == {
        "seed": 1,
        "seed_data": 2,
        "other": 5,
    }
    seeds = {seed_of_task(seed, task) for seed in range(20) for task in range(600)}
    assert len(seeds) == 20 * 600  # those of runs with neighbouring seeds are others
    assert all(0 <= seed < 2**32 for seed in seeds)


# --- what is refused -------------------------------------------------------------------------


def test_evaluation_inside_a_support_set_is_refused():
    config = composed(*SMALL, "eval.every=5")
    with pytest.raises(InputError) as error:
        SeriesRun(config, build_scenario(config, []), Watch())
    assert str(error.value) == (
        "eval.every=5: tasks as small as these are evaluated after each support set alone; set "
        "eval.every=null"
    )


def test_an_analysis_of_one_network_is_refused(monkeypatch):
    monkeypatch.setattr(series, "build_analysis", lambda *given: SimpleNamespace())
    config = composed(*SMALL)
    with pytest.raises(InputError) as error:
        SeriesRun(config, build_scenario(config, []), Watch())
    assert str(error.value) == (
        "analysis: it looks at one network and these are many, one a task; set analysis=none"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("eval.every=5", "eval.every=5: tasks as small as these are evaluated after each support"),
        ("head=multi", "head=multi: a head for each task needs task labels"),
        ("scenario.task_labels=true", "scenario.task_labels=true: a target set asks for the"),
        ("scenario.tasks=0", "scenario.tasks=0: expected at least 1; raise it"),
        ("scenario.part=all", "scenario.part=all: expected one of evaluation, validation"),
        ("scenario.shots=1.5", "scenario.shots=1.5: expected a whole number, 1 or more"),
    ],
)
def test_bad_settings_are_told_before_anything_is_written(command, arguments, message):
    outcome = command(f"{FEW} out=runs/a {arguments}")
    assert outcome.status == 2
    assert message in outcome.err
    assert not Path("runs/a").exists()


# --- whole runs ------------------------------------------------------------------------------

QUICK = f"{FEW} scenario.tasks=3 backbone.hidden=[9]"


def result(folder: str) -> dict:
    return json.loads(Path(folder, "result.json").read_text())


def lines(folder: str) -> list[dict]:
    return [json.loads(line) for line in Path(folder, "metrics.jsonl").read_text().splitlines()]


def test_a_run_writes_the_results_over_tasks_and_a_line_for_each(command):
    outcome = command(f"{QUICK} strategy=latest_replay out=runs/a")
    assert outcome.status == 0, outcome.err
    made, matrix = result("runs/a"), np.load("runs/a/accuracy_matrix.npy")
    assert matrix.shape == (5, 4)
    assert made["scenario"] == "cfsl/classes_and_samples_4"
    assert (made["tasks"], made["experiences"]) == (3, 4)
    assert made["accuracy"] == pytest.approx(matrix[3].mean())
    assert made["forgetting"] == pytest.approx((matrix[:3, :3].max(0) - matrix[3, :3]).mean())

    of_tasks = [line for line in lines("runs/a") if "task" in line]
    assert [line["task"] for line in of_tasks] == [0, 1, 2]
    scores = [line["score"] for line in of_tasks]
    losses = [line["cross_entropy"] for line in of_tasks]
    assert made["accuracy"] == pytest.approx(np.mean(scores))
    assert made["accuracy_deviation"] == pytest.approx(np.std(scores, ddof=1))
    assert made["accuracy_interval"] == pytest.approx(1.96 * np.std(scores, ddof=1) / 3**0.5)
    assert made["cross_entropy"] == pytest.approx(np.mean(losses))
    assert made["cross_entropy_deviation"] == pytest.approx(np.std(losses, ddof=1))
    assert made["memory_bytes"] == 2 * 5 * (256 + 8)
    assert made["across_task_memory"] == pytest.approx(0.5)
    assert made["multiply_accumulates"] > 0
    rows = [line for line in lines("runs/a") if "experience" in line]
    assert [line["experience"] for line in rows] == [-1, 0, 1, 2, 3]
    assert rows[-1]["scores"] == matrix[3].tolist()

    half = made["accuracy_interval"]
    assert f"accuracy {made['accuracy']:.3f} ± {half:.3f} over 3 tasks" in outcome.err
    events = EventAccumulator("runs/a").Reload()
    np.testing.assert_allclose([e.value for e in events.Scalars("tasks/score")], scores)
    np.testing.assert_allclose([e.value for e in events.Scalars("tasks/cross_entropy")], losses)


def test_what_a_hypernetwork_reports_is_written(command):
    outcome = command(f"{QUICK} strategy=hypernet out=runs/a")
    assert outcome.status == 0, outcome.err
    assert result("runs/a")["measured"]["compression"] > 0


def test_two_runs_of_one_config_are_identical(command):
    for name in "ab":
        assert command(f"{QUICK} strategy=latest_replay out=runs/{name}").status == 0
    varies = {"seconds", "peak_memory_bytes"}
    a, b = ({k: v for k, v in result(f"runs/{n}").items() if k not in varies} for n in "ab")
    assert a == b
    matrices = [Path(f"runs/{name}/accuracy_matrix.npy").read_bytes() for name in "ab"]
    assert matrices[0] == matrices[1]


def test_each_seed_changes_the_run_by_itself():
    arguments = (*SMALL, "scenario.tasks=2", "train.batch_size=2")
    changes = ((), ("seed_data=7",), ("seed_init=7",), ("seed_train=7",))
    runs = [run_series(composed(*arguments, *change)) for change in changes]
    untrained = [tuple(matrix[-1]) for _, matrix, _ in runs]
    assert untrained[3] == untrained[0] != untrained[1]
    assert len({run.summary()["cross_entropy"] for run, _, _ in runs}) == 4


@pytest.mark.parametrize(
    "arguments",
    [
        "scenario=cfsl/new_classes_3 scenario.tasks=1 strategy=joint",
        "scenario=cfsl/new_samples_3 scenario.tasks=2 strategy=cumulative schedule=cosine",
        "scenario=cfsl/new_classes_overwritten_3 scenario.tasks=2 strategy=avalanche/er_ace",
        "scenario=cfsl/instance_4x5 scenario.tasks=1 backbone=convnet backbone.channels=[4]",
        "scenario=cfsl/instance_20x1 scenario.tasks=1 head=growing",
        "scenario=cfsl/instance_1x20 scenario.tasks=2 head=nearest_mean",
        "scenario=cfsl/ways_100 scenario.tasks=1 strategy=frozen head=prototypes "
        "pretraining=prototypical pretraining.epochs=1 pretraining.episodes=5",
    ],
)
def test_other_strategies_heads_and_settings_run_to_their_end(command, arguments):
    outcome = command(f"{arguments} train.epochs=2 out=runs/a")
    assert outcome.status == 0, outcome.err
    made = result("runs/a")
    tasks = [line["score"] for line in lines("runs/a") if "task" in line]
    assert made["tasks"] == len(tasks)
    assert made["accuracy"] == pytest.approx(np.mean(tasks))
    assert np.isfinite(np.load("runs/a/accuracy_matrix.npy")).all()


def test_a_joint_run_of_the_same_tasks_serves_as_the_reference_of_intransigence(command):
    assert command(f"{QUICK} strategy=joint out=runs/joint").status == 0
    assert command(f"{QUICK} reference=runs/joint out=runs/a").status == 0
    joint, ours = (np.load(f"runs/{name}/accuracy_matrix.npy") for name in ("joint", "a"))
    expected = np.mean([joint[j, j] - ours[j, j] for j in range(4)])
    assert result("runs/a")["intransigence"] == pytest.approx(expected)


def test_the_report_shows_runs_over_tasks(command, capfd):
    arguments = f"{QUICK} train.epochs=1"
    for seed in (0, 1):
        assert command(f"{arguments} seed={seed} out=runs/finetune/seed_{seed}").status == 0
    assert command(f"{arguments} strategy=latest_replay out=runs/replay/seed_0").status == 0
    capfd.readouterr()
    report(["runs"])
    text = capfd.readouterr().out
    assert "cfsl/classes_and_samples_4" in text.splitlines()[0]
    header = next(line for line in text.splitlines() if "strategy" in line)
    for column in ("runs", "accuracy", "over tasks", "cross-entropy", "ATM", "MACs"):
        assert column in header
    both = [result(f"runs/finetune/seed_{seed}") for seed in (0, 1)]
    row = next(line for line in text.splitlines() if "finetune" in line)
    for key in ("accuracy", "accuracy_deviation", "cross_entropy", "across_task_memory"):
        values = [made[key] for made in both]
        assert f"{np.mean(values):.3f} ± {np.std(values, ddof=1):.3f}" in row
    for name in ("accuracy.png", "accuracy_matrix.png"):
        assert Path("runs", name).read_bytes().startswith(b"\x89PNG")
