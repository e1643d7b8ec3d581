"""EWC against naive per-sample loops in float64, closed forms and Avalanche's plugin."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import EWCPlugin
from torch import nn

from clplat.errors import InputError
from strategies import importance
from strategies.ewc import EWC, fisher
from tests.strategies.test_quadratic import naive_penalty

KINDS = ("exact", "empirical", "batch")


def naive_fisher(model, batches, kind, logits_of):
    """As the docstrings define it, one sample and one class at a time."""
    names, parameters = zip(
        *((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True
    )

    def squares(value):
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        zero = (torch.zeros_like(p) for p in parameters)
        return [z if g is None else g.square() for z, g in zip(zero, gradients, strict=True)]

    total, count = [torch.zeros_like(p) for p in parameters], 0
    for x, y, tasks in batches:
        count += len(x)
        if kind == "batch":
            for task in sorted(set(tasks.tolist())):
                rows = [i for i in range(len(x)) if tasks[i] == task]
                losses = [-logits_of(x[i], task).log_softmax(0)[y[i]] for i in rows]
                terms = squares(torch.stack(losses).mean())
                total = [a + len(rows) * t for a, t in zip(total, terms, strict=True)]
            continue
        for sample, label, task in zip(x, y, tasks.tolist(), strict=True):
            log_p = logits_of(sample, task).log_softmax(0)
            classes = range(len(log_p)) if kind == "exact" else [int(label)]
            for c in classes:
                weight = log_p[c].exp().item() if kind == "exact" else 1.0
                total = [a + weight * t for a, t in zip(total, squares(log_p[c]), strict=True)]
    return {name: value / count for name, value in zip(names, total, strict=True)}


def some_batches(sizes, features, classes, tasks=1):
    generator = torch.Generator().manual_seed(0)
    for size in sizes:
        task = torch.randint(tasks, (size,), generator=generator)
        x = torch.randn(size, *features, generator=generator, dtype=torch.float64)
        y = torch.randint(classes, (size,), generator=generator) + classes * task
        yield x, y, task


@pytest.fixture
def odd_model():
    """Batch norm, dropout and a frozen layer, of odd sizes; in training mode, in float64."""
    torch.manual_seed(0)
    layers = nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.5), nn.Linear(7, 3)
    model = nn.Sequential(nn.Linear(5, 5).requires_grad_(False), *layers).double()
    model[2].running_mean.normal_()
    model[2].running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_bytes", [1, 1000, 2**28])
def test_the_fisher_information_is_that_of_a_naive_loop(odd_model, kind, chunk_bytes, monkeypatch):
    monkeypatch.setattr(importance, "CHUNK_BYTES", chunk_bytes)
    batches = list(some_batches([4, 4, 3], [5], 3))
    evaluated = copy.deepcopy(odd_model).eval()
    expected = naive_fisher(evaluated, batches, kind, lambda x, task: evaluated(x[None])[0])
    before = copy.deepcopy(odd_model.state_dict())
    found = fisher(odd_model, batches, kind)

    assert found.keys() == expected.keys()
    assert "0.weight" not in found
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
        assert found[name].max() > 0
    assert odd_model.training
    assert all(torch.equal(v, before[n]) for n, v in odd_model.state_dict().items())
    assert all(p.grad is None for p in odd_model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_with_a_head_for_each_task_a_sample_counts_in_its_own(clusters, mlp, kind):
    model = mlp("multi")
    for experience in clusters(task_labels=True).train_stream:
        model.head.adaptation(experience)
    model.double()
    batches = list(some_batches([5, 4], [1, 4, 4], 2, tasks=2))  # tasks mixed in each batch
    heads = {t: model.head.linears[str(t)] for t in (0, 1)}
    expected = naive_fisher(
        model,
        [(x, y - 2 * task, task) for x, y, task in batches],
        kind,
        lambda x, task: heads[task](model.encoder(x[None]))[0],
    )
    found = fisher(model, batches, kind)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])
    assert not found["head.linears.2.weight"].any()
    assert found["head.linears.1.weight"].any()


def test_an_untrained_linear_softmax_has_the_fisher_information_of_its_closed_form():
    model = nn.Linear(4, 5).double()
    nn.init.zeros_(model.weight)
    nn.init.zeros_(model.bias)
    ((x, y, task),) = some_batches([9], [4], 5)
    found = fisher(model, [(x, y, task)], "exact")
    variance = 1 / 5 * (1 - 1 / 5)  # of a class's indicator
    torch.testing.assert_close(found["bias"], torch.full((5,), variance).double())
    torch.testing.assert_close(found["weight"], variance * x.square().mean(0).expand(5, 4))


# --- the penalty ---------------------------------------------------------------------------------


class Added(SupervisedPlugin):
    """What the strategy beside it adds to the loss of each iteration."""

    def __init__(self, strategy):
        super().__init__()
        self.strategy, self.amounts, self.models = strategy, [], []

    def before_update(self, strategy, **kwargs):
        before = strategy.loss.detach().clone()
        self.strategy.before_update(strategy, **kwargs)
        self.amounts.append(float(strategy.loss.detach() - before))
        self.models.append(copy.deepcopy(strategy.model).double())

    def after_training_exp(self, strategy, **kwargs):
        self.strategy.after_training_exp(strategy, **kwargs)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("online", [False, True])
def test_the_loss_gains_half_the_strength_times_the_penalty(
    clusters, mlp, make_learner, head, online
):
    stream = clusters(task_labels=head == "multi").train_stream
    added = Added(EWC(strength=30.0, fisher="empirical", online=online, decay=0.5))
    learner = make_learner(mlp(head), added)
    penalties, expected = [], []
    for experience in [*stream, stream[0]]:
        start = len(added.amounts)
        learner.train(experience)
        expected += [15.0 * naive_penalty(m, penalties).item() for m in added.models[start:]]

        model = copy.deepcopy(learner.model).double().eval()
        x, y, task = (
            torch.stack([torch.as_tensor(v) for v in c])
            for c in zip(*experience.dataset, strict=True)
        )

        def logits_of(sample, task, model=model):
            inputs = (task,) if head == "multi" else ()
            return model(sample[None], *inputs)[0]

        new = naive_fisher(model, [(x.double(), y, task)], "empirical", logits_of)
        at = {name: p.detach() for name, p in model.named_parameters()}
        if online:
            for name, old in penalties[0][0].items() if penalties else ():
                new[name][tuple(slice(n) for n in old.shape)] += 0.5 * old
            penalties = [(new, at)]
        else:
            penalties.append((new, at))
    assert added.amounts[:6] == [0.0] * 6
    assert added.amounts == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert max(added.amounts) > 1e-4


@pytest.mark.parametrize("online", [False, True])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_with_batch_fisher_it_is_avalanches_plugin_at_half_the_strength(
    clusters, mlp, make_learner, weights, online, head
):
    scenario, models = clusters(task_labels=head == "multi"), []
    theirs = EWCPlugin(10.0, mode="online", decay_factor=0.5) if online else EWCPlugin(10.0)
    for plugin in (EWC(20.0, "batch", online=online, decay=0.5), theirs):
        learner = make_learner(mlp(head), plugin)
        learner.eval(scenario.test_stream)  # makes the heads: their data loader draws numbers
        for experience in scenario.train_stream:
            learner.train(experience)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


def test_strength_0_is_fine_tuning_to_the_bit(clusters, mlp, make_learner, bare_loop, weights):
    stream = clusters().train_stream
    learner = make_learner(mlp(), EWC(strength=0.0))
    for experience in stream:
        learner.train(experience)
    bare = weights(bare_loop(mlp(), stream))
    assert all(torch.equal(v, bare[name]) for name, v in weights(learner.model).items())


def test_weights_that_an_earlier_experience_needs_move_less(clusters, mlp, make_learner, weights):
    stream, moved = clusters(experiences=2, samples=30).train_stream, []
    for strength in (0.0, 10.0):
        strategy = EWC(strength)
        learner = make_learner(mlp(), strategy, epochs=5)
        learner.train(stream[0])
        needed, before = strategy.importance, weights(learner.model)
        learner.train(stream[1])
        after = weights(learner.model)
        moved.append(sum(float((needed[n] * (after[n] - before[n]) ** 2).sum()) for n in needed))
    assert moved[1] < 0.5 * moved[0]


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("online", [False, True])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head, online):
    strategy, _ = resume_and_compare(lambda: EWC(20.0, online=online, decay=0.9), head)
    assert strategy.importance


def test_an_unknown_kind_of_fisher_information_is_refused():
    with pytest.raises(InputError) as caught:
        EWC(1.0, fisher="full")
    assert str(caught.value) == "strategy.fisher=full: choose one of exact, empirical, batch"
