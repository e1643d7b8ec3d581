"""MAS against naive per-sample loops in float64, the penalty's graph and Avalanche's plugin."""

import copy

import pytest
import torch
from avalanche.training.plugins import MASPlugin
from torch import nn

from clplat.errors import InputError
from strategies import importance
from strategies.mas import MAS, sensitivity
from tests.strategies.test_ewc import some_batches

KINDS = ("exact", "batch")


def naive_sensitivity(model, batches, kind, output_of):
    """As the docstring defines it, one sample at a time."""
    names, parameters = zip(
        *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
    )
    total, count = [torch.zeros_like(p) for p in parameters], 0
    for x, _, tasks in batches:
        count += len(x)
        signed: dict = {}
        for sample, task in zip(x, tasks.tolist(), strict=True):
            value = (output_of(sample, task) ** 2).sum()
            g = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)
            if kind == "exact":
                total = [t + each.abs() for t, each in zip(total, g, strict=True)]
            else:
                so_far = signed.get(task, [torch.zeros_like(p) for p in parameters])
                signed[task] = [a + each for a, each in zip(so_far, g, strict=True)]
        for sums in signed.values():
            total = [t + s.abs() for t, s in zip(total, sums, strict=True)]
    return {name: value / count for name, value in zip(names, total, strict=True)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 2**28])
def test_the_importance_is_that_of_a_naive_loop(kind, chunk_bytes, monkeypatch):
    monkeypatch.setattr(importance, "CHUNK_BYTES", chunk_bytes)
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, 3)
    model = nn.Sequential(nn.Linear(5, 5).requires_grad_(False), *layers).double()
    model[2].running_mean.normal_()
    batches = list(some_batches([4, 4, 3], [5], 3))
    evaluated = copy.deepcopy(model).eval()
    expected = naive_sensitivity(evaluated, batches, kind, lambda x, task: evaluated(x[None])[0])
    before = copy.deepcopy(model.state_dict())
    found = sensitivity(model, batches, kind)

    assert found.keys() == expected.keys()
    assert "0.weight" not in found
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
        assert found[name].max() > 0
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_head_for_each_task_a_sample_counts_in_its_own(clusters, mlp, kind):
    model = mlp("multi")
    for experience in clusters(task_labels=True).train_stream:
        model.head.adaptation(experience)
    model.double()
    batches = list(some_batches([5, 4], [1, 4, 4], 2, tasks=2))  # tasks mixed in each batch
    expected = naive_sensitivity(
        model,
        batches,
        kind,
        lambda x, task: model.head.linears[str(task)](model.encoder(x[None]))[0],
    )
    found = sensitivity(model, batches, kind)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    assert not found["head.linears.2.weight"].any()
    assert found["head.linears.1.weight"].any()


def test_a_linear_models_importance_has_its_closed_form():
    model = nn.Linear(4, 3).double()
    ((x, y, task),) = some_batches([9], [4], 3)
    found = sensitivity(model, [(x, y, task)], "exact")
    answers = (x @ model.weight.T + model.bias).detach()
    torch.testing.assert_close(found["bias"], 2 * answers.abs().mean(0))
    expected = 2 * torch.einsum("bc,bd->cd", answers.abs(), x.abs()) / 9
    torch.testing.assert_close(found["weight"], expected)


# --- in training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_three_experiences_train_as_by_a_loop_with_the_penalty_in_the_loss(
    clusters, mlp, make_learner, head, accumulate
):
    """The importances by naive loops, the penalty through a graph, all in float64."""
    stream = clusters(task_labels=head == "multi").train_stream
    learner, naive = (
        train_in_float64(make_learner(mlp(head), plugin, accumulate=accumulate), stream)
        for plugin in (MAS(0.05), Graph(0.05))
    )
    for one, other in zip(learner.model.parameters(), naive.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    losses = torch.stack(learner.losses)[accumulate - 1 :: accumulate]
    torch.testing.assert_close(losses, torch.stack(naive.losses)[accumulate - 1 :: accumulate])


def train_in_float64(learner, stream):
    learner.model.double()
    learner.prepare = lambda x, training: x.double() / 255
    torch.manual_seed(1)  # of the new heads
    for learner.experience in stream:
        learner.model_adaptation().double()  # the heads that it gains too
        learner.train(learner.experience)
    return learner


class Graph:
    """The penalty of every experience, through autograd, slice by slice where a head grew."""

    def __init__(self, strength):
        self.strength, self.importance, self.anchor = strength, {}, {}

    def before_backward(self, strategy, **kwargs):
        for name, parameter in strategy.model.named_parameters():
            if name in self.importance:
                old = tuple(slice(n) for n in self.importance[name].shape)
                moved = parameter[old] - self.anchor[name]
                amount = self.strength * (self.importance[name] * moved**2).sum()
                strategy.loss = strategy.loss + amount

    def after_training_exp(self, strategy, **kwargs):
        items = [[torch.as_tensor(v) for v in item] for item in strategy.experience.dataset]
        x, y, task = (torch.stack(column) for column in zip(*items, strict=True))
        model = copy.deepcopy(strategy.model).double().eval()

        def output_of(sample, task):
            multi = hasattr(model.head, "linears")
            return model(sample.double()[None], *([task] if multi else []))[0]

        new = naive_sensitivity(model, [(x.double(), y, task)], "exact", output_of)
        for name, old in self.importance.items():
            new[name][tuple(slice(n) for n in old.shape)] += old
        self.importance = new
        self.anchor = {n: p.detach().clone() for n, p in strategy.model.named_parameters()}


@pytest.mark.parametrize("head", ["single", "multi"])
def test_of_batches_it_is_avalanches_plugin(clusters, mlp, make_learner, weights, head):
    scenario, models = clusters(task_labels=head == "multi"), []
    theirs = MASPlugin(0.05, alpha=0.5)
    for plugin in (MAS(0.05, "batch"), theirs):
        learner = make_learner(mlp(head), plugin)
        learner.eval(scenario.test_stream)  # makes the heads: their data loader draws numbers
        for number, experience in enumerate(scenario.train_stream):
            theirs._lambda = 0.1 if number == 2 else 0.05  # the mean of two, ours is their sum
            learner.train(experience)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


def test_strength_0_is_fine_tuning_to_the_bit(clusters, mlp, make_learner, bare_loop, weights):
    stream = clusters().train_stream
    learner = make_learner(mlp(), MAS(strength=0.0))
    for experience in stream:
        learner.train(experience)
    bare = weights(bare_loop(mlp(), stream))
    assert all(torch.equal(v, bare[name]) for name, v in weights(learner.model).items())


def test_mixed_precision_trains_nearly_as_full_precision(clusters, mlp, assert_near_in_half):
    assert_near_in_half(mlp, lambda: MAS(0.05), clusters().train_stream, lr=0.05)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, _ = resume_and_compare(lambda: MAS(0.05), head)
    assert strategy.importance


class Opaque(nn.Module):
    """A layer that torch.func cannot go through."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):  # type: ignore[override]
            return x.clone()

        @staticmethod
        def backward(ctx, g):  # type: ignore[override]
            return g

    def forward(self, x):
        return self.Function.apply(x)


def test_layers_without_gradients_of_samples_are_refused_but_for_batch():
    model = nn.Sequential(nn.Linear(5, 3), Opaque()).double()
    batches = list(some_batches([4], [5], 3))
    with pytest.raises(InputError) as caught:
        sensitivity(model, batches, "exact")
    assert str(caught.value).startswith("strategy.importance: this backbone's layers give no")
    assert str(caught.value).endswith("set strategy.importance=batch")
    assert sensitivity(model, batches, "batch")["0.weight"].any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strength": -1.0}, "strategy.strength=-1.0: expected 0 or more; raise it"),
        ({"importance": "mean"}, "strategy.importance=mean: choose one of exact, batch"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        MAS(**arguments)
    assert str(caught.value) == message
