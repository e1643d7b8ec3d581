"""MIR against copies of the model that really step, in float64, Replay and Avalanche's plugin."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import MIRPlugin
from torch import nn

from clplat.batches import experience_batches
from clplat.errors import InputError
from clplat.modes import in_evaluation
from clplat.prepare import Prepare
from strategies.mir import MIR, interference
from strategies.replay import Replay
from tests.handed_over import HandedOver
from tests.strategies.test_ewc import some_batches
from tests.strategies.test_mas import train_in_float64


def naive_interference(model, rates, incoming, candidates):
    """One sample at a time; a copy of the model makes the step."""
    multi = hasattr(getattr(model, "head", None), "linears")

    def loss(net, sample, label, task):
        logits = net(sample[None], *([task[None]] if multi else []))[0]
        return logits.exp().sum().log() - logits[label]

    stepped = copy.deepcopy(model).eval()
    now = copy.deepcopy(model).eval()
    total = sum(loss(stepped, *one) for one in zip(*incoming, strict=True)) / len(incoming[1])
    total.backward()
    with torch.no_grad():
        for name, parameter in stepped.named_parameters():
            if name in rates and parameter.grad is not None:
                parameter -= rates[name] * parameter.grad
        rises = [loss(stepped, *c) - loss(now, *c) for c in zip(*candidates, strict=True)]
    return torch.stack(rises)


def parted(batch, fresh):
    return [c[:fresh] for c in batch], [c[fresh:] for c in batch]


def test_the_interference_is_what_losses_rise_by_when_a_copy_steps():
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, 3)
    model = nn.Sequential(nn.Linear(5, 5).requires_grad_(False), *layers).double()
    model[2].running_mean.normal_()
    model[3].eval()  # stays as it is, in a model that trains
    (batch,) = some_batches([12], [5], 3)
    incoming, candidates = parted(batch, 5)
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    rates = {name: 0.3 + 0.1 * i for i, name in enumerate(names) if name != "5.bias"}
    moving = {name: (model.get_parameter(name), rate) for name, rate in rates.items()}
    expected = naive_interference(model, rates, incoming, candidates)
    before = copy.deepcopy(model.state_dict())
    with in_evaluation(model):
        found = interference(model, moving, incoming, candidates)

    torch.testing.assert_close(found, expected)
    assert found.min() < 0 < found.max()
    assert [m.training for m in model] == [True, True, True, False, True, True]
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Naive(SupervisedPlugin):
    """Draws the candidates as Replay does, and picks of them by naive losses."""

    def __init__(self, capacity, policy, candidates, chosen):
        super().__init__()
        self.replay, self.chosen = Replay(capacity, policy, candidates), chosen
        self.differed = 0

    def before_training_exp(self, strategy, **kwargs):
        self.replay.before_training_exp(strategy)

    def before_forward(self, strategy, **kwargs):
        fresh = getattr(strategy.dataloader, "fresh", len(strategy.mb_y))
        incoming, candidates = parted(strategy.mbatch, fresh)
        if len(candidates[1]) > self.chosen:
            rates = {name: 0.1 for name, _ in strategy.model.named_parameters()}
            scores = naive_interference(strategy.model, rates, incoming, candidates).tolist()
            worst = sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[: self.chosen])
            self.differed += worst != list(range(self.chosen))
            strategy.mbatch = [
                torch.cat([own, c[worst]]) for own, c in zip(incoming, candidates, strict=True)
            ]

    def after_training_iteration(self, strategy, **kwargs):
        self.replay.after_training_iteration(strategy)

    def after_training_exp(self, strategy, **kwargs):
        self.replay.after_training_exp(strategy)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_trains_as_by_naive_choices(clusters, mlp, make_learner, head, accumulate):
    stream = clusters(task_labels=head == "multi").train_stream
    naive = Naive(20, "class_balanced", 9, 3)
    models = [
        train_in_float64(make_learner(mlp(head), plugin, accumulate=accumulate), stream).model
        for plugin in (MIR(20, "class_balanced", 9, 3), naive)
    ]
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other)
    assert naive.differed > 6


def as_stream(scenario):
    """Its first experience as a stream without boundaries."""
    experience = scenario.train_stream[0]
    experience.ordered = True
    return experience


@pytest.mark.parametrize("candidates", [4, 9])
def test_a_stream_without_boundaries_trains_as_by_naive_choices(
    clusters, mlp, make_learner, candidates
):
    models, memories = [], []
    both = MIR(20, candidates=candidates, batch_size=3), Naive(20, "reservoir", candidates, 3)
    for plugin in both:
        experience = as_stream(clusters(experiences=1, classes=6))
        learner = make_learner(mlp(), plugin, epochs=1)
        models.append(train_in_float64(learner, [experience]).model)
        memories.append(getattr(plugin, "replay", plugin).memory.all())
    for one, other in zip(*(m.parameters() for m in models), strict=True):
        torch.testing.assert_close(one, other)
    assert plugin.differed > 3
    assert all(torch.equal(a, b) for a, b in zip(*memories, strict=True))
    assert len(memories[0][1]) == 20
    assert memories[0][0].dtype == torch.uint8


@pytest.mark.parametrize("ordered", [False, True])
def test_with_no_candidates_to_choose_among_it_is_replay_to_the_bit(
    clusters, mlp, make_learner, weights, ordered
):
    models = []
    for plugin in (MIR(20, "ring", candidates=5, batch_size=5), Replay(20, "ring", 5)):
        scenario = clusters(experiences=1, classes=6) if ordered else clusters()
        stream = [as_stream(scenario)] if ordered else scenario.train_stream
        learner = make_learner(mlp(), plugin, epochs=1)
        torch.manual_seed(0)
        learner.train(stream)
        models.append(weights(learner.model))
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())


class Theirs(MIRPlugin):
    """Avalanche's choice, among draws of our memory; of its sum of two means, the mean."""

    def __init__(self, capacity, candidates, batch_size):
        super().__init__(batch_size, capacity, candidates)
        self.memory = Replay(capacity, "reservoir").memory

    def before_backward(self, strategy, **kwargs):
        if len(self.memory):
            x, y, task = self.memory.sample(self.subsample)
            self.replay_loader = iter([(strategy.prepare(x, False), y, task)])
            super().before_backward(strategy, **kwargs)
            strategy.loss = strategy.loss / 2

    def after_training_exp(self, strategy, **kwargs):
        for columns in experience_batches(strategy):
            self.memory.add(*columns)


@pytest.mark.parametrize("head", ["single", "multi"])
def test_it_chooses_as_avalanches_plugin(clusters, mlp, make_learner, weights, head):
    models = []
    for plugin in (MIR(30, candidates=20, batch_size=8), Theirs(30, 20, 8)):
        scenario = clusters(task_labels=head == "multi")
        learner = make_learner(mlp(head), plugin)
        torch.manual_seed(0)
        learner.eval(scenario.test_stream)  # makes the heads
        torch.manual_seed(1)
        learner.train(scenario.train_stream)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name])


def test_mixed_precision_trains_nearly_as_full_precision(clusters, mlp, assert_near_in_half):
    stream = clusters().train_stream
    assert_near_in_half(mlp, lambda: MIR(20, candidates=9, batch_size=3), stream, atol=0.05)


def test_the_memory_holds_inputs_before_augmentation(clusters, mlp, make_learner):
    mir = MIR(24, candidates=9, batch_size=3)
    learner = make_learner(mlp(), mir, prepare=Prepare(flip=True, crop=1), epochs=1)
    stream = clusters(experiences=1).train_stream
    learner.train(stream)
    stored = sorted((d[0] * 255).round().byte().flatten().tolist() for d in stream[0].dataset)
    assert sorted(x.flatten().tolist() for x in mir.memory.all()[0]) == stored


@pytest.mark.parametrize("policy", ["reservoir", "herding"])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head, policy):
    strategy, restored = resume_and_compare(lambda: MIR(10, policy, 8, 3), head)
    assert len(strategy.memory) == len(restored.memory) == 10


def draws_from_its_memory(old, new, loop):
    if hasattr(loop.dataloader, "memory"):  # as before_training_exp leaves it
        loop.dataloader.memory = new.memory


def hand_over_and_compare(clusters, mlp, make_learner, make, ordered, head="single"):
    """Whether a new strategy that takes over in mid-experience makes no difference."""
    models = []
    for plugin in (make(), HandedOver(make, 5, draws_from_its_memory)):
        scenario = clusters(classes=3, experiences=2, task_labels=head == "multi")
        if ordered:
            stream = [as_stream(clusters(classes=6, experiences=1))]
        else:
            stream = scenario.train_stream
        learner = make_learner(mlp(head), plugin, epochs=1)
        torch.manual_seed(1)
        learner.train(stream)
        models.append(learner.model)
    assert plugin.seen in (9, 10)
    return all(torch.equal(a, b) for a, b in zip(*(m.parameters() for m in models), strict=True))


@pytest.mark.parametrize("ordered", [False, True])
def test_a_strategy_restored_in_mid_experience_goes_on_to_the_same_bit(
    clusters, mlp, make_learner, ordered
):
    def make():
        return MIR(10, candidates=8, batch_size=3)

    assert hand_over_and_compare(clusters, mlp, make_learner, make, ordered)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"candidates": 0}, "strategy.candidates=0: expected at least 1; raise it"),
        ({"batch_size": 0}, "strategy.batch_size=0: expected at least 1; raise it"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        MIR(10, **arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("batch_size", [None, 8])
def test_fewer_candidates_than_are_chosen_are_refused(clusters, mlp, make_learner, batch_size):
    learner = make_learner(mlp(), MIR(10, candidates=7, batch_size=batch_size))
    with pytest.raises(InputError) as caught:
        learner.train(clusters().train_stream)
    assert str(caught.value) == (
        "strategy.candidates=7: fewer than the 8 samples that are chosen of them for each batch; "
        "raise it to 8 or more, or lower strategy.batch_size"
    )
    assert not learner.losses


def test_as_many_are_replayed_as_a_batch_has(clusters, mlp, make_learner):
    sizes = []

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            sizes.append(len(strategy.mb_y))

    make_learner(mlp(), MIR(20, candidates=12), Look()).train(clusters().train_stream)
    assert sizes == [8] * 6 + [16] * 12


def test_a_memory_that_does_not_fit_the_scenario_is_refused_as_in_replay(clusters):
    MIR(6, "class_balanced").check(clusters())
    with pytest.raises(InputError, match=r"^strategy.capacity=5: .*set strategy.capacity=6"):
        MIR(5, "class_balanced").check(clusters())
