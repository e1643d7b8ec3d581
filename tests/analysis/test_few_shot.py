"""Few-shot accuracy on held-out classes against naive loops, and that it leaves no trace."""

import inspect
import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from torch import nn

import clplat.conf
from clplat.analysis.few_shot import FewShot, episode_accuracy, held_out
from clplat.errors import InputError
from clplat.pretraining import draw_episode
from clplat.several import Several
from strategies.fast_slow import FastSlow
from strategies.joint import Joint
from strategies.replay import Replay
from tests.analysis.test_recurrent import same, trace

CONF = Path(clplat.conf.__file__).parent / "analysis"
SMALL = {"experiences": 2, "ways": 3, "shots": 2, "queries": 4, "episodes": 9}


def analysis(**settings: Any) -> FewShot:
    return FewShot(**{**SMALL, **settings})


def test_an_episode_is_told_by_the_nearest_mean():
    generator = torch.Generator().manual_seed(0)
    support = torch.randn(5, 3, 7, generator=generator, dtype=torch.float64)
    query = support.mean(1, keepdim=True) + torch.randn(5, 11, 7, generator=generator)
    right = 0
    for way in range(5):
        for q in query[way]:
            distances = [sum((q - s.sum(0) / 3) ** 2).item() for s in support]
            right += distances.index(min(distances)) == way
    assert 15 < right < 50
    assert float(episode_accuracy(support, query)) == pytest.approx(right / 55)


def naive(model: nn.Module, stream: Any, settings: dict[str, int], classes: list[int]) -> float:
    """Sample by sample in float64, on the same draws."""
    points: dict[int, list] = {c: [] for c in classes}
    with torch.no_grad():
        for experience in stream:
            for x, y, _ in experience.dataset:
                if y in points:
                    points[y].append(model.encoder(x[None])[0].double())  # type: ignore[operator]
    every = torch.stack([f for c in classes for f in points[c]])
    first = torch.tensor([0, *(len(points[c]) for c in classes[:-1])]).cumsum(0).tolist()
    members = [torch.arange(f, f + len(points[c])) for f, c in zip(first, classes, strict=True)]
    generator, right, asked = torch.Generator().manual_seed(settings["seed"]), 0, 0
    for _ in range(settings["episodes"]):
        sizes = settings["ways"], settings["shots"], settings["queries"]
        support, query = draw_episode(members, *sizes, generator)
        means = [sum(every[i] for i in row) / len(row) for row in support.tolist()]
        for way, row in enumerate(query.tolist()):
            for i in row:
                distances = [((every[i] - m) ** 2).sum().item() for m in means]
                right, asked = right + (distances.index(min(distances)) == way), asked + 1
    return right / asked


@pytest.mark.parametrize("experiences", [1, 3])
def test_the_accuracy_is_that_of_a_naive_loop(clusters, mlp, make_learner, experiences):
    stream = clusters(experiences=4, classes=3, samples=9).train_stream
    settings = {**SMALL, "experiences": experiences, "seed": 3}
    model = mlp(width=5)
    model.head = nn.Linear(5, 12)
    learner = make_learner(model, eval_batch_size=7)
    learner.train(stream[0])
    found = FewShot(**settings).after_experience(learner, 0)
    model.eval()
    classes = list(range(12 - 3 * experiences, 12))
    expected = naive(model, stream[-experiences:], settings, classes)
    assert 0.4 < expected < 1
    assert found == {"few_shot": pytest.approx(expected)}


def stream_of(*classes: set[int]) -> list[Any]:
    return [SimpleNamespace(classes_in_this_experience=c) for c in classes]


def test_what_an_earlier_experience_has_is_not_held_out():
    stream = stream_of({0, 1}, {2, 3}, {1, 6, 4}, {5, 8, 6, 2})
    assert held_out(stream, 1, 2) == [5, 8]
    assert held_out(stream, 2, 4) == [4, 5, 6, 8]
    with pytest.raises(InputError, match="the last 1 experiences have 2 classes that no earlier"):
        held_out(stream, 1, 3)


def test_the_same_classes_are_asked_for_until_they_are_trained_on(clusters, mlp, make_learner):
    stream = clusters(experiences=5).train_stream
    model, one = mlp(), analysis()
    model.head = nn.Linear(12, 10)
    learner = make_learner(model, lr=0.0)  # the encoder stays, and so must the accuracy
    values = []
    for index, experience in enumerate(stream):
        learner.train(experience)
        values.append(one.after_experience(learner, index))
    assert values[:3] == [values[0]] * 3
    assert values[3:] == [{}, {}]
    curves = one.at_end(learner, None)
    rows = [[k + 1, pytest.approx(values[0]["few_shot"])] for k in range(3)]
    assert {name: curve.tolist() for name, curve in curves.items()} == {
        "few_shot/by_experiences": rows
    }


class Constant(nn.Module):
    def forward(self, x):
        assert self.training or not torch.is_grad_enabled()
        return x.new_ones(len(x), 12)


def test_an_encoder_that_tells_nothing_is_at_chance(clusters, mlp, make_learner):
    model = mlp()
    model.encoder = Constant()
    learner = make_learner(model)
    learner.train(clusters().train_stream[0])
    assert analysis().after_experience(learner, 0) == {"few_shot": pytest.approx(1 / 3)}


class Lends:
    """A strategy whose slow weights tell nothing."""

    @contextmanager
    def slow_weights(self, model):
        encoder, model.encoder = model.encoder, Constant()
        yield
        model.encoder = encoder


def test_slow_weights_are_measured_beside(clusters, mlp, make_learner):
    stream = clusters(experiences=3).train_stream
    learner, plain = make_learner(mlp(), Lends()), make_learner(mlp())
    one = analysis()
    for item in (learner, plain):
        item.train(stream[0])
    found = one.after_experience(learner, 0)
    assert found["few_shot_slow"] == pytest.approx(1 / 3)
    assert found["few_shot"] == analysis().after_experience(plain, 0)["few_shot"] > 0.5
    assert one.at_end(learner, None).keys() == {
        "few_shot/by_experiences",
        "few_shot_slow/by_experiences",
    }


def test_after_the_first_experience_slow_and_fast_are_one(clusters, mlp, make_learner):
    stream = clusters(experiences=4).train_stream
    model, one = mlp(), analysis()
    model.head = nn.Linear(12, 8)
    learner = make_learner(model, *Several(a=Replay(8), b=FastSlow(0.01, 8)).parts.values())
    found = []
    for index in range(2):
        learner.train(stream[index])
        found.append(one.after_experience(learner, index))
    assert found[0]["few_shot"] == found[0]["few_shot_slow"]
    assert found[1]["few_shot"] != found[1]["few_shot_slow"]


def test_trained_on_everything_at_once_no_class_is_yet_to_come(clusters, mlp, make_learner):
    learner = make_learner(mlp(), Joint())
    learner.train(clusters().train_stream[0])
    assert analysis().after_experience(learner, 0) == {}


@pytest.mark.parametrize("head", ["single", "multi"])
def test_it_leaves_the_learner_and_all_generators_as_they_were(clusters, mlp, make_learner, head):
    scenario = clusters(task_labels=head == "multi")
    one, *others = (analysis(shots=1, queries=6, seed=seed) for seed in range(4))
    learner = make_learner(mlp(head, width=3, dropout=0.5), FastSlow(0.01, 8))
    learner.train(scenario.train_stream[0])
    learner.eval(scenario.test_stream)
    learner.model.head.eval()
    before, experience = trace(learner), learner.experience
    first = one.after_experience(learner, 0)
    assert same(trace(learner), before)
    assert learner.experience is experience
    torch.manual_seed(7)
    assert one.after_experience(learner, 0) == first
    assert any(other.after_experience(learner, 0) != first for other in others)


# --- what it refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiences": 0}, "analysis.experiences=0: expected at least 1; raise it"),
        ({"ways": 1}, "analysis.ways=1: expected at least 2; raise it"),
        ({"shots": 0}, "analysis.shots=0: expected at least 1; raise it"),
        ({"queries": 0}, "analysis.queries=0: expected at least 1; raise it"),
        ({"episodes": 0}, "analysis.episodes=0: expected at least 1; raise it"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError) as caught:
        analysis(**settings)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"experiences": 3},
            "analysis.experiences=3: the classes of so many experiences are held out, and the "
            "scenario has 3; lower it, or choose a scenario with more",
        ),
        (
            {"ways": 5},
            "analysis.ways=5: the last 2 experiences have 4 classes that no earlier one has; "
            "lower it, raise analysis.experiences, or choose a scenario of ever new classes, such "
            "as split_digits",
        ),
        (
            {"shots": 10},
            "analysis.shots=10, analysis.queries=4: a class that is held out has 12 samples; "
            "lower one of them",
        ),
    ],
)
def test_what_the_scenario_cannot_serve_is_told(clusters, mlp, make_learner, settings, message):
    learner = make_learner(mlp())
    learner.train(clusters(samples=12).train_stream[0])
    with pytest.raises(InputError) as caught:
        analysis(**settings).after_experience(learner, 0)
    assert str(caught.value) == message


def test_a_model_without_features_is_refused(mlp):
    analysis().check(mlp())
    with pytest.raises(InputError) as caught:
        analysis().check(nn.Linear(2, 3))
    assert str(caught.value) == (
        "analysis=few_shot: Linear has no features to tell classes by; choose another strategy, "
        "or analysis=none"
    )


# --- config ----------------------------------------------------------------------------------


def test_the_config_has_the_defaults():
    config = yaml.safe_load((CONF / "few_shot.yaml").read_text())
    assert config.pop("_target_") == "clplat.analysis.few_shot.FewShot"
    assert config.pop("seed") == "${seed}"
    parameters = inspect.signature(FewShot).parameters
    assert config == {name: p.default for name, p in parameters.items() if name != "seed"}


def test_a_run_records_it(command):
    outcome = command("strategy=fast_slow analysis=few_shot out=runs/a train.epochs=1")
    assert outcome.status == 0, outcome.err
    measured = json.loads(Path("runs/a/result.json").read_text())["measured"]
    assert set(measured) == {"few_shot", "few_shot_slow"}
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    of_analysis = [line["analysis"] for line in lines if line.get("analysis")]
    assert [set(values) for values in of_analysis[:3]] == [set(measured)] * 3
    curve = of_analysis[-1]["few_shot_slow/by_experiences"]
    assert [x for x, _ in curve] == [1, 2, 3]
    assert curve[-1][1] == pytest.approx(measured["few_shot_slow"])
