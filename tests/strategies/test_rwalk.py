"""RWalk against a naive loop in float64 and against Avalanche's plugin."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import RWalkPlugin

from clplat.errors import InputError
from strategies.rwalk import RWalk, mean_score, normalised, path_score
from tests.strategies.test_mas import train_in_float64
from tests.strategies.test_si import hand_over_and_compare, naive_penalty


def test_the_score_is_the_fall_over_half_the_squared_distance_in_the_metric():
    drop, fisher, moved = torch.tensor([3.0, -1.0, 1.0]), torch.tensor([4.0, 2.0, 0.0]), 0.5
    found = path_score(drop, fisher, torch.full((3,), moved))
    expected = torch.tensor([3 / (2 * 0.25), -1 / 0.25, 2.0**23])
    torch.testing.assert_close(found, expected)


def test_all_is_divided_by_the_largest_of_all_and_what_is_negative_is_0():
    found = normalised({"a": torch.tensor([1.0, -8.0]), "b": torch.tensor([[4.0]])})
    assert {name: value.tolist() for name, value in found.items()} == {"a": [0.25, 0], "b": [[1]]}
    assert normalised({"a": torch.tensor([0.0, -1.0])})["a"].tolist() == [0.0, 0.0]


def test_the_mean_score_is_of_what_a_parameter_had():
    new = torch.tensor([[4.0, 6.0], [8.0, 2.0]])
    assert mean_score(None, new) is new
    assert mean_score(torch.tensor([[2.0, 0.0]]), new).tolist() == [[3.0, 3.0], [8.0, 2.0]]


def widen(old, like):
    """Zeros but for the first entries."""
    wide = torch.zeros_like(like)
    if old is not None:
        wide[tuple(slice(n) for n in old.shape)] = old
    return wide


class Naive(SupervisedPlugin):
    """As the docstring has it: two graphs an iteration, name by name."""

    def __init__(self, strength, alpha, interval):
        super().__init__()
        self.strength, self.alpha, self.interval = strength, alpha, interval
        self.fisher, self.score, self.importance, self.anchor = {}, {}, {}, {}

    def before_training_exp(self, strategy, **kwargs):
        self.gained, self.updates = {}, 0
        self.open(strategy)

    def open(self, strategy):
        self.start = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}
        self.drop = {n: torch.zeros_like(p) for n, p in self.start.items()}

    def close(self, strategy):
        for name, parameter in strategy.model.named_parameters():
            if name in self.fisher:
                moved = parameter.detach() - self.start[name]
                below = self.fisher[name] * moved**2 / 2 + torch.finfo(moved.dtype).eps
                self.gained[name] = self.gained.get(name, 0) + self.drop[name] / below
        self.open(strategy)

    def before_backward(self, strategy, **kwargs):
        self.gradients, self.before = {}, {}
        named = dict(strategy.model.named_parameters())
        grads = torch.autograd.grad(
            strategy.loss, [*named.values()], retain_graph=True, allow_unused=True
        )
        for (name, parameter), gradient in zip(named.items(), grads, strict=True):
            if gradient is None:
                continue
            self.gradients[name], self.before[name] = gradient, parameter.detach().clone()
            old = self.fisher.get(name)
            wide = gradient**2 if old is None else old
            if old is not None and old.shape != gradient.shape:
                new = torch.ones_like(gradient)
                new[tuple(slice(n) for n in old.shape)] = 0
                wide = widen(old, gradient) + new * gradient**2
            self.fisher[name] = (1 - self.alpha) * wide + self.alpha * gradient**2
        if self.importance:
            penalty = naive_penalty(strategy.model, self.importance, self.anchor)
            strategy.loss = strategy.loss + self.strength * penalty

    def after_update(self, strategy, **kwargs):
        for name, gradient in self.gradients.items():
            now = strategy.model.get_parameter(name).detach()
            self.drop[name] -= gradient * (now - self.before[name])
        self.updates += 1
        if self.updates % self.interval == 0:
            self.close(strategy)

    def after_training_exp(self, strategy, **kwargs):
        self.close(strategy)
        for name, new in self.gained.items():
            old = self.score.get(name)
            if old is not None:
                had = tuple(slice(n) for n in old.shape)
                new = new.clone()
                new[had] = (old + new[had]) / 2
            self.score[name] = new
        most_fisher = max(float(f.max()) for f in self.fisher.values())
        most_score = max(float(s.max()) for s in self.score.values())
        for name, fisher in self.fisher.items():
            score = self.score[name].clamp(min=0) / most_score
            self.importance[name] = fisher / most_fisher + score
            self.anchor[name] = strategy.model.get_parameter(name).detach().clone()


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("interval", [1, 4, 100])
def test_three_experiences_train_as_by_a_naive_loop(clusters, mlp, make_learner, head, interval):
    stream = clusters(task_labels=head == "multi").train_stream
    ours, naive = RWalk(0.5, 0.3, interval), Naive(0.5, 0.3, interval)
    learners = [train_in_float64(make_learner(mlp(head), s), stream) for s in (ours, naive)]
    assert ours.importance.keys() == naive.importance.keys()
    for name, value in naive.importance.items():
        torch.testing.assert_close(ours.importance[name], value)
    for one, other in zip(*(item.model.parameters() for item in learners), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(*(torch.stack(item.losses) for item in learners))
    plain = train_in_float64(make_learner(mlp(head)), stream)
    assert not torch.equal(plain.losses[-1], learners[0].losses[-1])


@pytest.mark.parametrize("interval", [1, 3, 6])  # an experience has 6 updates
def test_where_intervals_end_with_experiences_it_is_avalanches_plugin(
    clusters, mlp, make_learner, weights, interval
):
    models = []
    for plugin in (RWalk(0.5, 0.9, interval), RWalkPlugin(0.5, 0.9, interval)):
        learner = make_learner(mlp(), plugin)
        for experience in clusters().train_stream:
            learner.train(experience)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_it_goes_on_from_its_state_in_mid_experience(clusters, mlp, make_learner, head):
    stream = clusters(task_labels=head == "multi").train_stream
    make = lambda: RWalk(0.5, 0.3, 3)  # noqa: E731
    assert hand_over_and_compare(stream, make_learner, mlp, make, head)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, _ = resume_and_compare(lambda: RWalk(0.5, 0.3, 4), head)
    assert strategy.updates == 0
    assert any(value.any() for value in strategy.score.values())


def test_strength_0_is_fine_tuning_to_the_bit(clusters, mlp, make_learner, bare_loop, weights):
    stream = clusters().train_stream
    learner = make_learner(mlp(), RWalk(strength=0.0))
    for experience in stream:
        learner.train(experience)
    bare = weights(bare_loop(mlp(), stream))
    assert all(torch.equal(v, bare[name]) for name, v in weights(learner.model).items())


@pytest.mark.parametrize("doublings", [22, 60])  # some are skipped, or all of them
def test_an_update_that_the_scaler_skips_counts_in_nothing(clusters, mlp, make_learner, doublings):
    strategy = RWalk(0.5, 0.3, 2)
    learner = make_learner(mlp(), strategy, precision="fp16", lr=0.05)
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**doublings)
    for experience in clusters().train_stream:
        learner.train(experience)
    assert learner.scaler.get_scale() < 2.0**doublings
    assert bool(strategy.fisher) == (doublings == 22)
    assert all(value.isfinite().all() for value in strategy.fisher.values())
    assert all(value.isfinite().all() for value in strategy.importance.values())
    assert all(p.isfinite().all() for p in learner.model.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strategy.strength=-1.0: expected 0 or more; raise it"),
        (
            {"alpha": 0.0},
            "strategy.alpha=0.0: expected more than 0 and at most 1; choose a share",
        ),
        ({"alpha": 1.5}, "strategy.alpha=1.5: expected more than 0 and at most 1; choose a share"),
        ({"interval": 0}, "strategy.interval=0: expected at least 1; raise it"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        RWalk(**arguments)
    assert str(caught.value) == message
