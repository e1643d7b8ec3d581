"""The analysis of a learner: what it returns, what it refuses, and that it leaves no trace."""

import inspect
import random
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

import clplat.conf
from clplat.analysis import nothing
from clplat.analysis.recurrent import RecurrentAnalysis
from clplat.backbones.classifier import classifier
from clplat.backbones.heads import single
from clplat.backbones.levels import Levels
from clplat.backbones.mlp import MLP
from clplat.backbones.recurrent import Recurrent
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.layers.gated import MinGRU
from clplat.layers.recurrent import GRU, LSTM, LeakyRNN
from clplat.learner import Learner
from scenarios.curriculum import curriculum

CONF = Path(clplat.conf.__file__).parent / "analysis"
WIDTH, SAMPLES = 11, 80
SUM = partial(LeakyRNN, activation="leaky_relu", activates="sum")
NETWORK = {"network_time_constant", "mean_network_time_constant"}
CURVES = {"ablation/random", "ablation/slowest_first", "perturbation"}
END = {
    *("levels_solved_at_end", "level_analysed"),
    *("generalisation/length", "generalisation/longest", "generalisation/decoding"),
}


def analysis(**settings: Any) -> RecurrentAnalysis:
    return RecurrentAnalysis(
        **{"steps": 200, "trials": 2, "lags": 10, "draws": 2, "samples": SAMPLES, **settings}
    )


def scenario(**settings: Any) -> Any:
    return curriculum(
        **{"task": "match", "experiences": 3, "samples": 64, "test_samples": 200, **settings}
    )


def learner(layer: Any = SUM, kind: str = "multi_head") -> Learner:
    """Untrained; its batches of evaluation are those that the analysis takes."""
    torch.manual_seed(0)
    encoder = Recurrent((20, 1), layer, width=WIDTH)
    head = Levels(WIDTH, 2, levels=3, curriculum=kind, window=2)
    return Learner(
        classifier(encoder, head),
        partial(torch.optim.SGD, lr=0.1),
        evaluator=Evaluator(scenario().score),
        criterion=scenario().criterion,
        eval_batch_size=SAMPLES // 8,
    )


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(
        torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])) for name in one
    )


# --- what it returns -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "more"),
    [
        (SUM, {"tau", "mean_tau", "mean_recurrent_weight"}),
        (GRU, {"mean_recurrent_weight"}),
        (LSTM, {"mean_recurrent_weight"}),
        (MinGRU, set()),
    ],
)
def test_what_is_measured_of_each_layer(layer, more):
    subject, curves = learner(layer), CURVES if more else set()
    after = analysis().after_experience(subject, 0)
    assert set(after) == NETWORK | more
    end = analysis().at_end(subject, scenario())
    assert set(end) == NETWORK | more | END | curves
    for name, value in {**end, **after}.items():
        if isinstance(value, Tensor):
            assert value.isfinite().all()
            assert value.device.type == "cpu"
            assert value.ndim == (1 if name in ("tau", "network_time_constant") else 2)
            if value.ndim == 2:
                assert value.shape[1] == 2
                assert ((value[:, 1] >= 0) & (value[:, 1] <= 1)).all()
        else:
            assert isinstance(value, float)


def test_tau_and_weights_are_the_layers():
    subject = learner()
    layer: Any = subject.model.encoder.layer  # type: ignore[union-attr]
    with torch.no_grad():
        layer.tau[0] = 0.3
    found: Any = analysis().after_experience(subject, 0)
    expected = layer.tau.detach().clone()
    expected[0] = 1  # what the layer makes of anything less
    assert torch.equal(found["tau"], expected)
    assert found["mean_tau"] == pytest.approx(float(expected.mean()))
    weights = layer.recurrent[0, 0].detach()
    off = (weights.sum() - weights.trace()) / (WIDTH * (WIDTH - 1))
    assert found["mean_recurrent_weight"] == pytest.approx(float(off), abs=1e-6)


def test_units_without_a_time_constant_are_left_out():
    subject = learner(partial(LeakyRNN, activation="relu", activates="input"))
    layer: Any = subject.model.encoder.layer  # type: ignore[union-attr]
    with torch.no_grad():
        layer.input.weight[:4], layer.input.bias[:4], layer.recurrent[0, 0, :, :4] = 0, -1, 0
    found = analysis().after_experience(subject, 0)
    constants: Any = found["network_time_constant"]
    assert 0 < len(constants) <= WIDTH - 4
    assert found["mean_network_time_constant"] == pytest.approx(float(constants.mean()))
    with torch.no_grad():
        layer.input.bias.fill_(-9)
        layer.recurrent.zero_()
    assert not NETWORK & set(analysis().after_experience(subject, 0))  # no unit is active


@pytest.mark.parametrize("kind", ["multi_head", "single_head"])
def test_without_ablation_or_noise_the_accuracy_is_the_learners_own(kind):
    subject, data = learner(kind=kind), scenario(curriculum=kind, test_samples=SAMPLES)
    scores = subject.eval(data.test_stream)
    found = analysis(solved=1e-9).at_end(subject, data)
    assert (found["levels_solved_at_end"], found["level_analysed"]) == (3.0, 2.0)
    for name in CURVES:
        curve: Any = found[name]
        assert curve[0].tolist() == pytest.approx([0, scores[2]])
    lengths: Any = found["generalisation/longest"]
    assert lengths[:, 0].tolist() == [0, 1, 2]


def test_where_no_level_is_solved_the_best_is_analysed():
    subject, data = learner(), scenario(test_samples=SAMPLES)
    scores = subject.eval(data.test_stream)
    best = scores.index(max(scores))
    found = analysis(solved=0.999999).at_end(subject, data)
    assert (found["levels_solved_at_end"], found["level_analysed"]) == (0.0, float(best))
    assert float(found["ablation/random"][0, 1]) == pytest.approx(max(scores))  # type: ignore[index]


def test_strings_are_one_two_five_and_ten_times_the_longest():
    subject, data = learner(), scenario()
    longest = max(
        x.shape[1]
        for experience in data.test_stream
        for x, *_ in list(subject.make_batches(experience.dataset, SAMPLES // 8))[:8]
    )
    found: Any = analysis(solved=1e-9).at_end(subject, data)
    times = found["generalisation/length"][:, 0].tolist()
    assert times == [longest, 2 * longest, 5 * longest, 10 * longest]


@pytest.mark.parametrize("layer", [SUM, GRU])
def test_the_slowest_units_are_silenced_first(layer, monkeypatch):
    """By tau, or where there is none by the network's time constant."""
    subject, orders = learner(layer), []

    def record(encoder: Any, accuracy: Any, order: Tensor, shares: Any) -> Tensor:
        orders.append(order)
        return torch.zeros(len(shares), 2)

    monkeypatch.setattr("clplat.analysis.recurrent.ablation_curve", record)
    found: Any = analysis().at_end(subject, scenario())
    constants = found["tau" if layer is SUM else "network_time_constant"]
    assert len(constants) == WIDTH
    assert torch.equal(constants[orders[-1]], constants.sort(descending=True).values)
    assert len(orders) == 3  # two at random before it
    assert all(order.sort().values.tolist() == list(range(WIDTH)) for order in orders)
    assert not torch.equal(orders[0], orders[1])


@pytest.mark.parametrize(("beyond", "levels"), [(0, [0]), (1, [0, 1]), (5, [0, 1, 2])])
def test_levels_beyond_are_read_out_as_far_as_there_are_some(beyond, levels):
    subject = learner()
    heads: Any = subject.model.head  # type: ignore[union-attr]
    data, settings = scenario(), {"solved": 0.999999, "beyond": beyond}
    with torch.no_grad():  # the heads of levels 1 and 2 are always wrong in the mean
        for k in (1, 2):
            heads.linears[k].weight.fill_(0)
    scores = iter([1.0, 0.5, 0.5])
    data.score = scores_that_say(data.score, scores)
    found: Any = analysis(**settings).at_end(subject, data)
    assert found["level_analysed"] == 0
    assert found["generalisation/decoding"][:, 0].tolist() == levels


def scores_that_say(score: Any, firsts: Any) -> Any:
    """The first levels' scores as given, 8 batches each, and then the true ones."""
    given = [first for first in firsts for _ in range(8)]

    def say(output: Tensor, target: Tensor) -> Tensor:
        return torch.full((len(target),), given.pop(0)) if given else score(output, target)

    return say


# --- what it leaves --------------------------------------------------------------------------


def trace(subject: Learner) -> tuple[list[Any], list[Tensor]]:
    model: Any = subject.model
    state = [value.clone() for value in model.state_dict().values()]
    numpy_state: Any = np.random.get_state()  # noqa: NPY002
    plain = [
        [module.training for module in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [len(module._forward_hooks) for module in model.modules()],
        random.getstate(),
        numpy_state[1].tolist(),
        numpy_state[2:],
        torch.is_grad_enabled(),
        subject.order.get_state().tolist(),
    ]
    return plain, [*state, torch.get_rng_state()]


def same(one: tuple[list, list], other: tuple[list, list]) -> bool:
    return one[0] == other[0] and all(
        torch.equal(a, b) for a, b in zip(one[1], other[1], strict=True)
    )


@pytest.mark.parametrize("layer", [SUM, GRU, LSTM])
def test_the_learner_and_all_generators_are_left_as_they_were(layer):
    subject, data = learner(layer), scenario()
    subject.model.train()
    subject.model.head.linears[1].eval()  # type: ignore[union-attr, operator, index]
    before = trace(subject)
    analysis().after_experience(subject, 0)
    assert same(trace(subject), before)
    analysis().at_end(subject, data)
    assert same(trace(subject), before)


@pytest.mark.parametrize("calls", [0, 100, 250])
def test_so_they_are_after_an_error(calls):  # while levels are scored, units silent, weights noisy
    subject, data = learner(), scenario()
    subject.model.train()
    before, left = trace(subject), iter(range(calls))

    def fail(output: Tensor, target: Tensor) -> Tensor:
        if next(left, None) is None:
            raise RuntimeError("inside")
        return output.argmax(2) == target

    data.score = fail
    with pytest.raises(RuntimeError, match="inside"):
        analysis().at_end(subject, data)
    assert same(trace(subject), before)


def test_the_seed_alone_draws_and_each_call_draws_anew():
    subject, data, one = learner(), scenario(), analysis(seed=1)
    torch.manual_seed(5)
    first = {**one.at_end(subject, data), **one.after_experience(subject, 0)}
    torch.manual_seed(6)
    assert equal(first, {**one.at_end(subject, data), **one.after_experience(subject, 1)})
    other = analysis(seed=2)
    assert not equal(first, {**other.at_end(subject, data), **other.after_experience(subject, 0)})


def test_a_tenth_of_the_steps_is_taken_after_an_experience():
    subject = learner()
    few = analysis(steps=2000).after_experience(subject, 0)
    end = analysis(steps=200).at_end(subject, scenario())
    assert equal(few, {name: end[name] for name in few})


# --- what it refuses -------------------------------------------------------------------------


def test_what_is_not_a_recurrent_network_with_levels_is_refused():
    heads = Levels(8, 2, levels=3, curriculum="multi_head", window=2)
    perceptron = classifier(MLP((4, 4), [8]), heads)
    recurrent = classifier(Recurrent((4, 1), LSTM, width=8), single(8, 2))
    for model, message in (
        (perceptron, "analysis: of recurrent networks, and the backbone is MLP; set backbone=rec"),
        (recurrent, "analysis: of the levels of a curriculum, and the head is .*; set scenario=n_"),
    ):
        with pytest.raises(InputError, match=message):
            analysis().check(model)
        subject = Learner(model, partial(torch.optim.SGD, lr=0.1))
        with pytest.raises(InputError, match=message):
            analysis().after_experience(subject, 0)
        with pytest.raises(InputError, match=message):
            analysis().at_end(subject, scenario())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trials": 0}, "analysis.trials=0: expected at least 1; raise it"),
        ({"lags": 2}, "analysis.lags=2: expected at least 3; raise it"),
        ({"lags": 30, "steps": 599}, "analysis.steps=599: expected at least 600; raise it"),
        ({"draws": 0}, "analysis.draws=0: expected at least 1; raise it"),
        ({"samples": 79}, "analysis.samples=79: expected at least 80; raise it"),
        ({"beyond": -1}, "analysis.beyond=-1: expected at least 0; raise it"),
        ({"solved": 1.0}, r"analysis.solved=1.0: expected a score in 0..1; try 0.98"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        analysis(**settings)


# --- config ----------------------------------------------------------------------------------


def test_the_config_has_the_defaults():
    config = yaml.safe_load((CONF / "recurrent.yaml").read_text())
    assert config.pop("_target_") == "clplat.analysis.recurrent.RecurrentAnalysis"
    assert config.pop("seed") == "${seed}"
    parameters = inspect.signature(RecurrentAnalysis).parameters
    assert config == {name: p.default for name, p in parameters.items() if name != "seed"}


def test_no_analysis_is_none():
    config = yaml.safe_load((CONF / "none.yaml").read_text())
    assert config == {"_target_": "clplat.analysis.nothing"}
    assert nothing() is None
