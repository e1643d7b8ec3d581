"""Fast and slow weights against a naive loop in float64; what they lend, keep and remember."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.memory import Memory
from strategies.fast_slow import FastSlow, weights_of
from tests.strategies.test_mas import naive_sensitivity, train_in_float64
from tests.strategies.test_si import hand_over_and_compare

SETTINGS = {"strength": 0.05, "capacity": 11, "refit_steps": 5, "refit_lr": 0.05}


def make(**settings):
    return FastSlow(**{**SETTINGS, **settings})


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(v, other[n]) for n, v in one.items())


def train(learner, stream, seed=1):
    torch.manual_seed(seed)
    for experience in stream:
        learner.train(experience)
    return learner


class Naive(SupervisedPlugin):
    """The docstring entry by entry: the penalty in the graph, the momentum by hand."""

    def __init__(self, strength, capacity, refit_steps, refit_lr):
        super().__init__()
        self.strength, self.steps, self.rate = strength, refit_steps, refit_lr
        self.held, self.slow, self.importance = Memory(capacity, "class_balanced"), {}, {}

    def before_backward(self, strategy, **kwargs):
        for name, values in self.importance.items():
            old = tuple(slice(n) for n in values.shape)
            moved = strategy.model.get_parameter(name)[old] - self.slow[name]
            strategy.loss = strategy.loss + self.strength * (values * moved**2).sum()

    def after_training_exp(self, strategy, **kwargs):
        stored, y, task = strategy.adapted_dataset._flat_data._datasets[0].columns
        x, model = stored.double() / 255, strategy.model
        multi = hasattr(model.head, "linears")
        evaluated = copy.deepcopy(model).eval()
        parts = zip(*(column.split(strategy.train_mb_size) for column in (x, y, task)), strict=True)
        new = naive_sensitivity(
            evaluated,
            list(parts),
            "batch",
            lambda x, task: evaluated(x[None], *([task] if multi else []))[0],
        )
        first = not self.slow
        for name, parameter in model.named_parameters():
            fast, j = parameter.detach().flatten().tolist(), new[name].flatten().tolist()
            i, s = torch.zeros_like(parameter), parameter.detach().clone()
            if name in self.slow:
                old = tuple(slice(n) for n in self.slow[name].shape)
                i[old], s[old] = self.importance[name], self.slow[name]
            i, s = i.flatten().tolist(), s.flatten().tolist()
            rows = list(zip(i, s, j, fast, strict=True))
            means = [(a * u + b * v) / (a + b) if a + b > 0 else v for a, u, b, v in rows]
            sums = [a + b for a, _, b, _ in rows]
            like = torch.zeros_like(parameter)
            self.slow[name] = torch.tensor(means, dtype=torch.float64).view_as(like)
            self.importance[name] = torch.tensor(sums, dtype=torch.float64).view_as(like)
        self.held.add(stored, y, task)
        if not first:
            self._refit(strategy, multi)

    def _refit(self, strategy, multi):
        parameters = dict(strategy.model.named_parameters())
        for name, parameter in parameters.items():
            parameter.data = self.slow[name].clone()
        speed = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for _ in range(self.steps):
            x, y, task = self.held.sample(strategy.train_mb_size)
            output = strategy.model(x.double() / 255, *([task] if multi else []))
            loss = nn.functional.cross_entropy(output, y)
            gradients = torch.autograd.grad(loss, [*parameters.values()], allow_unused=True)
            for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
                if gradient is not None:
                    speed[name] = 0.9 * speed[name] + gradient
                    parameter.data -= self.rate * speed[name]


@pytest.mark.parametrize(
    ("head", "accumulate", "dropout"),
    [("single", 1, 0.0), ("single", 3, 0.5), ("growing", 1, 0.0), ("multi", 2, 0.0)],
)
def test_three_experiences_train_as_by_a_naive_loop(
    clusters, mlp, make_learner, head, accumulate, dropout
):
    stream = clusters(samples=13, task_labels=head == "multi").train_stream
    ours, naive = make(), Naive(**SETTINGS)
    learners = [
        train_in_float64(make_learner(mlp(head, dropout=dropout), s, accumulate=accumulate), stream)
        for s in (ours, naive)
    ]
    for kind in ("slow", "importance"):
        found, expected = getattr(ours, kind), getattr(naive, kind)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value)
    for one, other in zip(*(item.model.parameters() for item in learners), strict=True):
        torch.testing.assert_close(one, other)
    last = [torch.stack(item.losses)[accumulate - 1 :: accumulate] for item in learners]
    torch.testing.assert_close(*last)


def test_the_first_experience_is_fine_tuning_to_the_bit(clusters, mlp, make_learner, weights):
    stream, strategy = clusters().train_stream, make()
    learner, plain = (make_learner(mlp(), *plugins) for plugins in ((strategy,), ()))
    for item in (learner, plain):
        item.train(stream[0])
    assert same(weights(learner.model), weights(plain.model))
    assert same(strategy.slow, weights(plain.model))


def test_without_a_refit_the_fast_weights_are_the_slow_ones(clusters, mlp, make_learner, weights):
    strategy = make(refit_steps=0)
    learner = train(make_learner(mlp(), strategy), clusters().train_stream)
    assert same(strategy.slow, weights(learner.model))


def test_at_strength_0_nothing_holds_the_fast_weights(clusters, mlp, make_learner, weights):
    stream, strategy = clusters().train_stream, make(strength=0.0)
    learner = train(make_learner(mlp(), strategy), stream[:2])
    plain = make_learner(copy.deepcopy(learner.model))
    plain.order.set_state(learner.order.get_state())
    fast = []

    class Watch(SupervisedPlugin):
        def after_training_epoch(self, strategy, **kwargs):
            fast[:] = [weights(strategy.model)]

    watched = make_learner(learner.model, strategy, Watch())
    watched.order.set_state(learner.order.get_state())
    for item in (watched, plain):
        item.train(stream[2])
    assert same(fast[0], weights(plain.model))


def test_the_slow_weights_are_lent_and_the_fast_ones_given_back(
    clusters, mlp, make_learner, weights
):
    stream, strategy = clusters(task_labels=True).train_stream, make()
    learner = make_learner(mlp("multi"), strategy)
    untrained = weights(learner.model)
    with strategy.slow_weights(learner.model):  # there are none yet
        assert same(weights(learner.model), untrained)
    train(learner, stream[:2])
    learner.experience = stream[2]
    learner.model_adaptation()  # a head that has no slow weights
    fast = weights(learner.model)
    assert not same(weights_of(learner.model, strategy.slow), strategy.slow)
    with strategy.slow_weights(learner.model):
        assert same(weights_of(learner.model, strategy.slow), strategy.slow)
        assert torch.equal(learner.model.head.linears["2"].weight, fast["head.linears.2.weight"])
    assert same(weights(learner.model), fast)
    with pytest.raises(ZeroDivisionError), strategy.slow_weights(learner.model):
        raise ZeroDivisionError
    assert same(weights(learner.model), fast)


def test_what_a_head_has_grown_by_has_no_slow_weights(clusters, mlp, make_learner, weights):
    stream, strategy = clusters().train_stream, make()
    learner = train(make_learner(mlp("growing"), strategy), stream[:2])
    learner.experience = stream[2]
    learner.model_adaptation()
    fast = weights(learner.model)["head.linear.weight"]
    with strategy.slow_weights(learner.model):
        lent = learner.model.head.linear.weight
        assert torch.equal(lent[:4], strategy.slow["head.linear.weight"])
        assert torch.equal(lent[4:], fast[4:])
    assert torch.equal(learner.model.head.linear.weight, fast)


def test_a_frozen_parameter_stays_and_has_no_slow_weight(clusters, mlp, make_learner):
    model, strategy = mlp(), make()
    frozen = model.head.bias.requires_grad_(False).clone()
    train(make_learner(model, strategy), clusters().train_stream)
    assert torch.equal(model.head.bias, frozen)
    assert strategy.slow.keys() == dict(model.named_parameters()).keys() - {"head.bias"}


def test_the_refit_is_no_part_of_the_loop(clusters, mlp, make_learner):
    """Neither the optimizer's moments, nor the batch, nor a rate that has decayed to 0."""
    strategy = make()

    def decayed(groups):
        return torch.optim.Adam(groups, lr=0.0)

    learner = make_learner(mlp(), strategy, optimizer=decayed)
    train(learner, clusters().train_stream[:2])
    assert {float(s["step"]) for s in learner.optimizer.state.values()} == {12.0}
    assert len(learner.mb_y) == 8
    assert all(p.grad is None for p in learner.model.parameters())
    assert not same(weights_of(learner.model, strategy.slow), strategy.slow)


def test_it_forgets_less_than_fine_tuning(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    strategy = FastSlow(0.01, capacity=12, refit_steps=50, refit_lr=0.05)
    learner = make_learner(mlp(), strategy, evaluator=Evaluator(), epochs=10)
    train(learner, scenario.train_stream)
    assert min(learner.eval(scenario.test_stream)) > 0.6  # fine-tuning ends at 0 on the first two


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, restored = resume_and_compare(make, head)
    assert same(strategy.slow, restored.slow)
    assert same(strategy.importance, restored.importance)
    held = zip(strategy.memory.all(), restored.memory.all(), strict=True)
    assert all(torch.equal(one, other) for one, other in held)


def test_it_goes_on_from_its_state_in_mid_experience(clusters, mlp, make_learner):
    assert hand_over_and_compare(clusters().train_stream, make_learner, mlp, make, "single")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_trains_nearly_as_full_precision(clusters, mlp, make_learner, precision):
    models = []
    for chosen in ("fp32", precision):
        learner = make_learner(mlp(), make(), precision=chosen, lr=0.05)
        if learner.scaler:
            learner.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # none is skipped
        models.append(train(learner, clusters().train_stream).model)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strength": -1.0}, "strategy.strength=-1.0: expected 0 or more; raise it"),
        ({"refit_steps": -1}, "strategy.refit_steps=-1: expected at least 0; raise it"),
        ({"refit_lr": 0.0}, "strategy.refit_lr=0.0: expected more than 0; raise it"),
        ({"capacity": 0}, "strategy.capacity=0: a memory holds at least 1 sample; raise it"),
    ],
)
def test_bad_input_is_refused(settings, message):
    with pytest.raises(InputError) as caught:
        make(**settings)
    assert str(caught.value) == message


def test_a_memory_without_room_for_each_class_is_refused(clusters):
    make(capacity=6).check(clusters())
    with pytest.raises(InputError) as caught:
        make(capacity=5).check(clusters())
    assert str(caught.value) == (
        "strategy.capacity=5: FastSlow keeps at least one sample of each of the scenario's 6 "
        "classes; set strategy.capacity=6 or more"
    )


def test_it_needs_to_be_told_where_an_experience_ends(command):
    outcome = command("scenario=online_digits strategy=fast_slow")
    assert outcome.status == 2
    assert "strategy: FastSlow acts where an experience begins or ends" in outcome.err
