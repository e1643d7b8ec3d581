"""Synaptic intelligence against a naive loop in float64, and its path against closed forms."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.errors import InputError
from strategies.si import SynapticIntelligence, path_importance
from tests.handed_over import HandedOver
from tests.strategies.test_mas import train_in_float64


def test_the_importance_is_the_fall_over_the_square_of_the_way():
    drop, moved = torch.tensor([3.0, -1.0, 0.0]), torch.tensor([2.0, 0.5, 7.0])
    expected = torch.tensor([3 / 4.1, -1 / 0.35, 0.0])
    torch.testing.assert_close(path_importance(drop, moved, 0.1), expected)


def naive_penalty(model, importance, anchor):
    total = torch.zeros((), dtype=torch.float64)
    for name, values in importance.items():
        old = tuple(slice(n) for n in values.shape)
        total = total + (values * (model.get_parameter(name)[old] - anchor[name]) ** 2).sum()
    return total


class Naive(SupervisedPlugin):
    """As the docstring has it: two graphs an iteration, name by name."""

    def __init__(self, strength, damping):
        super().__init__()
        self.strength, self.damping = strength, damping
        self.importance, self.anchor = {}, {}

    def before_training_exp(self, strategy, **kwargs):
        self.start = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
        self.drop = {n: torch.zeros_like(p) for n, p in self.start.items()}
        self.sums = None

    def before_backward(self, strategy, **kwargs):
        parameters = list(strategy.model.parameters())
        gradients = torch.autograd.grad(
            strategy.loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        before = self.sums or [torch.zeros_like(g) for g in gradients]
        share = 1 / getattr(strategy, "accumulate", 1)
        self.sums = [b + share * g for b, g in zip(before, gradients, strict=True)]
        self.before = [p.detach().clone() for p in parameters]
        if self.importance:
            penalty = naive_penalty(strategy.model, self.importance, self.anchor)
            strategy.loss = strategy.loss + self.strength * penalty

    def after_update(self, strategy, **kwargs):
        rows = zip(strategy.model.named_parameters(), self.sums, self.before, strict=True)
        for (name, parameter), gradient, before in rows:
            self.drop[name] -= gradient * (parameter.detach() - before)
        self.sums = None

    def after_training_exp(self, strategy, **kwargs):
        total, self.anchor = {}, {}
        for name, parameter in strategy.model.named_parameters():
            value = parameter.detach().clone()
            moved = value - self.start[name]
            total[name] = self.drop[name] / (moved**2 + self.damping)
            if name in self.importance:
                old = self.importance[name]
                total[name][tuple(slice(n) for n in old.shape)] += old
            total[name] = total[name].clamp(min=0)
            self.anchor[name] = value
        self.importance = total


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_three_experiences_train_as_by_a_naive_loop(clusters, mlp, make_learner, head, accumulate):
    stream = clusters(task_labels=head == "multi").train_stream
    ours, naive = SynapticIntelligence(2.0, 0.05), Naive(2.0, 0.05)
    learners = [
        train_in_float64(make_learner(mlp(head), s, accumulate=accumulate), stream)
        for s in (ours, naive)
    ]
    assert ours.importance.keys() == naive.importance.keys()
    for name, value in naive.importance.items():
        torch.testing.assert_close(ours.importance[name], value)
    for one, other in zip(*(item.model.parameters() for item in learners), strict=True):
        torch.testing.assert_close(one, other)
    last = [torch.stack(item.losses)[accumulate - 1 :: accumulate] for item in learners]
    torch.testing.assert_close(*last)
    plain = train_in_float64(make_learner(mlp(head), accumulate=accumulate), stream)
    assert not torch.equal(plain.losses[-1], learners[0].losses[-1])


def test_without_a_penalty_the_path_sums_to_what_the_loss_fell_by(clusters, mlp, make_learner):
    """To first order, at a rate so small that one batch is the whole experience."""
    losses, drops, strategy = [], [], SynapticIntelligence(0.0)

    class Watch(SupervisedPlugin):
        def after_training_iteration(self, strategy, **kwargs):
            path = strategy.plugins[0].path
            drops.append(sum(float(d.sum()) for d in path.drop.values()))
            losses.append(float(strategy.loss.detach()))

    learner = make_learner(mlp(), strategy, Watch(), batch_size=24, lr=0.005, epochs=20)
    learner.train(clusters().train_stream[0])
    assert drops[18] == pytest.approx(losses[0] - losses[19], rel=0.02)


def hand_over_and_compare(stream, make_learner, mlp, make, head):
    """Weights with and without a new strategy in the middle of the second experience."""
    models = []
    for plugin in (make(), HandedOver(make, 10)):
        learner = make_learner(mlp(head), plugin)
        torch.manual_seed(1)
        for experience in stream:
            learner.train(experience)
        models.append(learner.model)
    assert plugin.seen == 18
    return all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_it_goes_on_from_its_state_in_mid_experience(clusters, mlp, make_learner, head):
    stream = clusters(task_labels=head == "multi").train_stream
    make = lambda: SynapticIntelligence(2.0)  # noqa: E731
    assert hand_over_and_compare(stream, make_learner, mlp, make, head)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, _ = resume_and_compare(lambda: SynapticIntelligence(2.0), head)
    assert any(value.any() for value in strategy.importance.values())


def test_strength_0_is_fine_tuning_to_the_bit(clusters, mlp, make_learner, bare_loop, weights):
    stream = clusters().train_stream
    learner = make_learner(mlp(), SynapticIntelligence(strength=0.0))
    for experience in stream:
        learner.train(experience)
    bare = weights(bare_loop(mlp(), stream))
    assert all(torch.equal(v, bare[name]) for name, v in weights(learner.model).items())


def test_an_update_that_the_scaler_skips_is_no_part_of_the_path(clusters, mlp, make_learner):
    strategy = SynapticIntelligence(2.0)
    learner = make_learner(mlp(), strategy, precision="fp16", lr=0.05)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    for experience in clusters().train_stream:
        learner.train(experience)
    assert learner.scaler.get_scale() < 2.0**22
    assert all(value.isfinite().all() for value in strategy.importance.values())
    assert strategy.importance["head.weight"].any()
    assert all(p.isfinite().all() for p in learner.model.parameters())


def test_with_a_scaler_the_path_is_that_without(clusters, mlp, make_learner):
    found = []
    for precision in ("fp32", "fp16"):
        strategy = SynapticIntelligence(1.0)
        learner = make_learner(mlp(), strategy, precision=precision, lr=0.05)
        if learner.scaler:
            learner.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        learner.train(clusters().train_stream[0])
        found.append(strategy.importance)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value, rtol=0.05, atol=0.01)


def test_a_model_that_grows_after_the_last_update_is_held_where_it_was(clusters, mlp, make_learner):
    class Widen(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            wider = nn.Linear(12, strategy.model.head.out_features + 1)
            with torch.no_grad():
                wider.weight[:-1], wider.bias[:-1] = (
                    strategy.model.head.weight,
                    strategy.model.head.bias,
                )
            strategy.model.head = wider
            strategy.make_optimizer()

    strategy = SynapticIntelligence(2.0)
    learner = make_learner(copy.deepcopy(mlp()), strategy, Widen())
    for experience in clusters().train_stream:
        learner.train(experience)
        importance = strategy.importance["head.weight"]
        assert importance.shape == learner.model.head.weight.shape
        assert not importance[-1].any()
        assert importance[:6].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strategy.strength=-1.0: expected 0 or more; raise it"),
        ({"strength": float("nan")}, "strategy.strength=nan: expected 0 or more; raise it"),
        ({"damping": 0.0}, "strategy.damping=0.0: expected more than 0; raise it"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        SynapticIntelligence(**arguments)
    assert str(caught.value) == message
