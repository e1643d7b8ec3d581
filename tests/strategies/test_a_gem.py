"""A-GEM against projections written out in float64, its two conditions, and Avalanche's plugin."""

import copy
from itertools import pairwise

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import AGEMPlugin
from torch.nn.functional import cross_entropy

from clplat.errors import InputError
from strategies.a_gem import AGEM, projected
from strategies.replay import Replay
from tests.strategies.test_mas import train_in_float64
from tests.strategies.test_mir import as_stream, hand_over_and_compare


def vectors(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, count, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(6))
def test_the_projection_is_the_nearest_gradient_that_does_not_conflict(seed):
    g, r = vectors(11, seed)
    found = projected(g, r)
    if g @ r >= 0:
        assert torch.equal(found, g)
        return
    assert abs(float(found @ r)) < 1e-12
    torch.testing.assert_close(g - found, r * ((g - found) @ r) / (r @ r))  # along r alone
    generator = torch.Generator().manual_seed(seed)
    for _ in range(20):  # no other that does not conflict is nearer
        other = found + 0.3 * torch.randn(11, generator=generator, dtype=torch.float64)
        assert other @ r < 0 or (other - g).norm() > (found - g).norm()


def test_both_signs_were_among_the_examples():
    assert {float(g @ r) < 0 for g, r in (vectors(11, seed) for seed in range(6))} == {True, False}


def test_the_projection_is_of_the_scale_of_what_it_is_given():
    g, r = vectors(7, seed=0)
    g = g if g @ r < 0 else -g
    torch.testing.assert_close(projected(2.0**16 * g, 2.0**9 * r), 2.0**16 * projected(g, r))


def test_a_memory_without_gradient_changes_nothing():
    g, _ = vectors(7)
    assert torch.equal(projected(g, torch.zeros_like(g)), g)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_what_is_not_finite_stays_so(which, value):
    given = vectors(7)
    given[which, 3] = value
    assert not projected(*given).isfinite().all()


class Naive(SupervisedPlugin):
    """The reference by a copy of the model; parameter by parameter, zeros where there is none."""

    def __init__(self, capacity, policy, batch_size):
        super().__init__()
        self.replay, self.size, self.conflicts = Replay(capacity, policy), batch_size, 0
        self.updates = 0

    def before_update(self, strategy, **kwargs):
        if not len(self.replay.memory):
            return
        x, y, task = self.replay.memory.sample(self.size)
        model = copy.deepcopy(strategy.model)
        model.zero_grad()
        multi = hasattr(model.head, "linears")
        logits = model(strategy.prepare(x, True), *([task] if multi else []))
        total = sum(logits[i].exp().sum().log() - logits[i, y[i]] for i in range(len(y)))
        (total / len(y)).backward()
        pairs = [
            [torch.zeros_like(p) if p.grad is None else p.grad for p in both]
            for both in zip(strategy.model.parameters(), model.parameters(), strict=True)
        ]
        dot = sum(float((g * r).sum()) for g, r in pairs)
        square = sum(float((r * r).sum()) for _, r in pairs)
        self.updates += 1
        if dot < 0:
            self.conflicts += 1
            for p, (g, r) in zip(strategy.model.parameters(), pairs, strict=True):
                p.grad = g - dot / square * r

    def after_training_iteration(self, strategy, **kwargs):
        if getattr(strategy.experience, "ordered", False):
            self.replay.memory.add(strategy.stored_x, strategy.mb_y, strategy.mb_task_id)

    def after_training_exp(self, strategy, **kwargs):
        self.replay.after_training_exp(strategy)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_by_naive_projections(clusters, mlp, make_learner, head, accumulate):
    stream = clusters(task_labels=head == "multi").train_stream
    naive = Naive(20, "class_balanced", 7)
    models = [
        train_in_float64(
            make_learner(mlp(head), plugin, accumulate=accumulate, epochs=4), stream
        ).model
        for plugin in (AGEM(20, batch_size=7), naive)
    ]
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other)
    assert naive.conflicts > 1
    assert naive.conflicts < naive.updates or head != "multi"


def test_a_stream_without_boundaries_trains_as_by_naive_projections(clusters, mlp, make_learner):
    models = []
    for plugin in (AGEM(20, "reservoir", 7), naive := Naive(20, "reservoir", 7)):
        experience = as_stream(clusters(experiences=1, classes=6))
        learner = make_learner(mlp(), plugin, epochs=1)
        models.append(train_in_float64(learner, [experience]).model)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other)
    assert naive.conflicts


def test_before_there_is_a_memory_it_is_fine_tuning_to_the_bit(
    clusters, mlp, make_learner, bare_loop, weights
):
    stream = clusters(experiences=1).train_stream
    learner = make_learner(mlp(), AGEM(20))
    learner.train(stream)
    bare = weights(bare_loop(mlp(), stream))
    assert all(torch.equal(v, bare[name]) for name, v in weights(learner.model).items())


def test_a_memory_of_the_batch_itself_changes_nothing(clusters, mlp, make_learner):
    """Its gradient is the batch's, or nearly: they never conflict."""
    models = []
    for plugins in ([], [AGEM(24, batch_size=24)]):
        experience = clusters(experiences=1).train_stream[0]
        learner = make_learner(mlp(), *plugins, batch_size=24)
        learner.train(experience)
        learner.train(experience)
        models.append(learner.model)
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(one, other)


class Theirs(AGEMPlugin):
    """Avalanche's projection, by draws of our memory."""

    def __init__(self, capacity, batch_size):
        super().__init__(capacity, batch_size)
        self.replay, self.size = Replay(capacity), batch_size

    def sample_from_memory(self):
        x, y, task = self.replay.memory.sample(self.size)
        return x.float() / 255, y, task

    def after_training_exp(self, strategy, **kwargs):
        self.replay.after_training_exp(strategy)
        self.buffers.append(None)


def test_with_one_head_it_projects_as_avalanches_plugin(clusters, mlp, make_learner, weights):
    models = []
    for plugin in (AGEM(20, batch_size=6), Theirs(20, 6)):
        learner = make_learner(mlp(), plugin)
        torch.manual_seed(0)
        learner.train(clusters().train_stream)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


def test_a_small_step_does_not_raise_the_loss_of_the_memory(clusters, mlp, make_learner):
    rises = {}
    for name in ("fine-tuning", "A-GEM"):
        scenario, agem = clusters(), AGEM(24, batch_size=24)
        torch.manual_seed(0)
        learner = make_learner(mlp(), agem, epochs=5)
        learner.train(scenario.train_stream[0])
        x, y, _ = agem.memory.all()
        losses = []

        class Watch(SupervisedPlugin):
            def before_update(self, strategy, x=x, y=y, losses=losses, **kwargs):
                losses.append(cross_entropy(strategy.model(x.float() / 255), y).item())

        plugins = [Watch(), *([agem] if name == "A-GEM" else [])]
        second = make_learner(learner.model, *plugins, lr=0.01, epochs=4)
        second.train(scenario.train_stream[1])
        rises[name] = [after - before for before, after in pairwise(losses)]
    assert max(rises["A-GEM"]) < 0.1 * min(rises["fine-tuning"])


def test_mixed_precision_trains_nearly_as_full_precision(clusters, mlp, assert_near_in_half):
    stream = clusters().train_stream
    assert_near_in_half(mlp, lambda: AGEM(20, batch_size=6), stream, grad_clip=0.5)


def test_small_gradients_of_the_memory_do_not_vanish_in_half_precision(clusters, mlp, make_learner):
    found = {}
    for precision in ("fp32", "fp16"):
        agem = AGEM(24, batch_size=24)
        learner = make_learner(mlp(), agem, precision=precision, lr=0.0)
        learner.train(clusters().train_stream[0])
        with torch.no_grad():
            learner.model.head.weight.mul_(1e-5)
        if learner.scaler:
            learner.scaler = torch.amp.GradScaler("cpu", init_scale=4096.0)
            learner.scaler.scale(torch.ones(()))  # as the loop's loss, which makes it
        weight = learner.model.encoder.get_parameter(
            next(name for name, p in learner.model.encoder.named_parameters() if p.ndim == 2)
        )
        (reference,) = agem._reference(learner, [weight])
        found[precision] = reference / (4096 if learner.scaler else 1)
    error = (found["fp16"] - found["fp32"]).norm() / found["fp32"].norm()
    assert error < 0.1  # half precision knows nothing between 0 and 6e-8


def test_updates_that_are_not_finite_are_left_to_the_scaler(clusters, mlp, make_learner):
    learner = make_learner(mlp(), AGEM(20, batch_size=6), precision="fp16")
    stream = clusters().train_stream
    learner.train(stream[0])
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    learner.train(stream[1])
    assert learner.scaler.get_scale() < 2.0**24
    assert all(p.isfinite().all() for p in learner.model.parameters())


@pytest.mark.parametrize("policy", ["class_balanced", "herding"])
@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head, policy):
    strategy, restored = resume_and_compare(lambda: AGEM(10, policy), head)
    assert len(strategy.memory) == len(restored.memory) == 10


@pytest.mark.parametrize("ordered", [False, True])
def test_a_strategy_restored_in_mid_experience_goes_on_to_the_same_bit(
    clusters, mlp, make_learner, ordered
):
    assert hand_over_and_compare(clusters, mlp, make_learner, lambda: AGEM(10), ordered)


def test_bad_input_is_refused_as_in_replay(clusters):
    with pytest.raises(InputError, match=r"^strategy.batch_size=0: expected a whole number of"):
        AGEM(10, batch_size=0)
    with pytest.raises(InputError, match=r"^strategy.memory=fifo: no such policy; choose one of"):
        AGEM(10, "fifo")
    with pytest.raises(InputError, match=r"^strategy.capacity=5: .*set strategy.capacity=6"):
        AGEM(5).check(clusters())
