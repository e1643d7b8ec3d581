"""GSS against backward passes sample by sample and lists in float64, and Avalanche's cosines."""

import copy
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import GSS_greedyPlugin
from torch import nn
from torch.nn.functional import cosine_similarity, linear

from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.modes import in_evaluation
from strategies import gss, importance
from strategies.gss import (
    GSS,
    of_linear_layers,
    of_samples,
    one_by_one,
    pick_products,
    replacements,
    vectorised,
)
from tests.strategies.test_ewc import some_batches
from tests.strategies.test_mas import Opaque, train_in_float64
from tests.strategies.test_mir import as_stream, hand_over_and_compare
from tests.strategies.test_replay import rows, samples

# --- scalar products of gradients ----------------------------------------------------------------


def naive_gradient(model, batch):
    """Of the mean loss, written out."""
    x, y, task = batch
    multi = hasattr(getattr(model, "head", None), "linears")
    logits = model(x, *([task] if multi else []))
    losses = [logits[i].exp().sum().log() - logits[i, y[i]] for i in range(len(y))]
    parameters = [p for p in model.parameters() if p.requires_grad]
    g = torch.autograd.grad(
        sum(losses) / len(y), parameters, allow_unused=True, materialize_grads=True
    )
    return torch.cat([each.flatten() for each in g])


def naive_products(model, batch, memory, size):
    model = copy.deepcopy(model).eval()
    of_batches = [
        naive_gradient(model, [c[k : k + size] for c in memory])
        for k in range(0, len(memory[1]), size)
    ]
    g = [naive_gradient(model, [c[i : i + 1] for c in batch]) for i in range(len(batch[1]))]
    products = torch.tensor([[float(a @ b) for b in of_batches] for a in g])
    norms, lengths = ([float(v.norm()) for v in vectors] for vectors in (g, of_batches))
    return products, torch.tensor(norms), torch.tensor(lengths)


def assert_products(model, batch, memory, size, way):
    with in_evaluation(model):
        picked = pick_products(model, batch)
        if way is of_linear_layers:
            assert picked is of_linear_layers
        else:
            assert picked.keywords == {"per_sample": way}
        found = picked(model, batch, memory, size)
    expected = naive_products(model, batch, memory, size)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other.double(), rtol=1e-5, atol=1e-7)
    assert all(p.grad is None for p in model.parameters())


class Tied(nn.Module):
    """A weight that a layer has, and that is used without it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 5)
        self.last = nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.layer(x).tanh() + linear(x, self.layer.weight))


class Twice(Tied):
    def forward(self, x):
        return self.last(self.layer(self.layer(x).tanh()))


class InTime(Tied):
    def forward(self, x):
        return self.last(self.layer(x[:, None].expand(-1, 2, -1)).tanh().mean(1))


class Idle(Tied):
    def forward(self, x):
        self.layer(x)
        return self.last(x)


def frozen(model, *names):
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return model


def perceptron(*between):
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), *between, nn.Linear(7, 3, bias=False))


MODELS = {
    "linear layers": (perceptron, of_linear_layers),
    "first layer frozen": (lambda: frozen(perceptron(), "0.weight", "0.bias"), of_linear_layers),
    "a weight frozen": (lambda: frozen(perceptron(), "0.weight"), of_linear_layers),
    "a bias frozen": (lambda: frozen(perceptron(), "0.bias"), of_linear_layers),
    "dropout": (lambda: perceptron(nn.Dropout(0.5)), of_linear_layers),
    "batch norm": (lambda: perceptron(nn.BatchNorm1d(7)), vectorised),
    "a weight used elsewhere": (Tied, vectorised),
    "a layer used twice": (Twice, vectorised),
    "a layer used over time": (InTime, vectorised),
    "no linear layer": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 3, 5), nn.Flatten()),
        vectorised,
    ),
    "an output changed in place": (
        lambda: nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3)),
        vectorised,
    ),
    "an output that is not used": (Idle, of_linear_layers),
    "an opaque layer": (lambda: perceptron(nn.BatchNorm1d(7), Opaque()), one_by_one),
}


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("name", MODELS)
def test_the_products_are_those_of_naive_gradients(name, size):
    make, way = MODELS[name]
    torch.manual_seed(0)
    model = make().double()
    batch, memory = some_batches([6, 12], [5], 3)
    before = copy.deepcopy(model.state_dict())
    assert_products(model, batch, memory, size, way)
    assert model.training
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("chunk_bytes", [1, 2000])
def test_samples_are_taken_in_chunks(chunk_bytes, monkeypatch):
    monkeypatch.setattr(importance, "CHUNK_BYTES", chunk_bytes)
    model = perceptron(nn.LayerNorm(7)).double()
    batch, memory = some_batches([7, 6], [5], 3)
    assert_products(model, batch, memory, 3, vectorised)
    assert len(list(vectorised(model, batch))) == (7 if chunk_bytes == 1 else 2)


def test_with_a_head_for_each_task_a_sample_counts_in_its_own(clusters, mlp):
    model = mlp("multi")
    for experience in clusters(task_labels=True).train_stream:
        model.head.adaptation(experience)
    model.double()
    batch, memory = some_batches([5, 8], [1, 4, 4], 2, tasks=3)
    assert len(set(batch[2].tolist())) > 1
    assert_products(model, batch, memory, 4, vectorised)


@pytest.mark.parametrize("head", ["single", "growing"])
def test_our_perceptron_needs_one_pass(clusters, mlp, head):
    model = mlp(head)
    if head == "growing":
        model.head.adaptation(clusters(classes=6, experiences=1).train_stream[0])
    batch, memory = some_batches([5, 8], [1, 4, 4], 6)
    assert_products(model.double(), batch, memory, 4, of_linear_layers)


def test_avalanche_finds_the_same_cosines():
    torch.manual_seed(0)
    model = perceptron().double()
    batch, memory = some_batches([6, 12], [5], 3)
    directions = torch.stack(
        [naive_gradient(model, [c[k : k + 4] for c in memory]) for k in (0, 4)]
    )

    class Strategy:
        device = torch.device("cpu")
        _criterion = nn.CrossEntropyLoss()

    strategy = Strategy()
    strategy.model = model
    theirs = GSS_greedyPlugin(8, 2, [5]).get_each_batch_sample_sim(
        strategy, [p.numel() for p in model.parameters()], directions.float(), batch[0], batch[1]
    )
    products, norms, lengths = of_linear_layers(model, batch, [c[:8] for c in memory], 4)
    cosines = (products / norms[:, None] / lengths).amax(1)
    torch.testing.assert_close(cosines.float(), theirs.float())
    assert cosines.max() - cosines.min() > 0.3


# --- what the memory takes in --------------------------------------------------------------------


def naive_replacements(held, new, uniform):
    """Lists; the loop of the docstring."""
    held, taken = list(held), {}
    for sample in range(len(new)):
        if new[sample] >= 1:
            continue
        draw, decision = uniform[sample]
        rest, slot = draw * sum(held), 0
        while rest >= held[slot]:
            rest -= held[slot]
            slot += 1
        if decision < held[slot] / (held[slot] + new[sample]):
            held[slot] = new[sample]
            taken[slot] = sample
    return taken


@pytest.mark.parametrize("seed", range(5))
def test_new_samples_contend_one_after_the_other(seed):
    generator = np.random.default_rng(seed)
    held, new = generator.uniform(0, 2, 4), generator.uniform(0, 1.3, 20)
    uniform = generator.uniform(size=(20, 2))
    before = held.copy()
    taken = replacements(held, new, uniform)
    assert taken == naive_replacements(held, new, uniform)
    assert len(taken) > 1
    assert np.array_equal(held, before)
    assert all(new[sample] < 1 for sample in taken.values())


def test_a_held_sample_is_replaced_as_often_as_its_score_says():
    held, new = np.array([0.2, 1.0, 0.8]), np.array([0.5])
    grid = (np.arange(200) + 0.5) / 200
    counts = Counter()
    for draw in grid:
        for decision in grid:
            counts.update(replacements(held, new, np.array([[draw, decision]])).keys())
    for slot, score in enumerate(held):
        expected = score / held.sum() * score / (score + 0.5)
        assert counts[slot] / 200**2 == pytest.approx(expected, abs=0.005)


class Naive(SupervisedPlugin):
    """A memory of lists that sees what ours sees, and draws as it does."""

    def __init__(self, capacity, comparisons):
        super().__init__()
        self.capacity, self.comparisons = capacity, comparisons
        self.x, self.y, self.task, self.scores = [], [], [], []
        self.replaced = 0

    def columns(self):
        return [torch.stack(c) for c in (self.x, self.y, self.task)]

    def after_training_iteration(self, strategy, **kwargs):
        if strategy.clock.train_exp_epochs:
            return
        fresh, state = strategy.dataloader.fresh, torch.get_rng_state()
        new = [c[:fresh] for c in (strategy.stored_x, strategy.mb_y, strategy.mb_task_id)]
        scores, contends = [1.0] * fresh, False
        if self.x:
            size = min(fresh, len(self.x))
            count = min(self.comparisons, len(self.x) // size) * size
            drawn = torch.randperm(len(self.x))[:count]
            memory = [c[drawn] for c in self.columns()]
            model = copy.deepcopy(strategy.model).eval()
            ready = [[strategy.prepare(c[0], False), *c[1:]] for c in (new, memory)]
            g = [naive_gradient(model, [c[i : i + 1] for c in ready[0]]) for i in range(fresh)]
            others = [
                naive_gradient(model, [c[k : k + size] for c in ready[1]])
                for k in range(0, count, size)
            ]
            scores = [1 + max(float(cosine_similarity(a, b, dim=0)) for b in others) for a in g]
            whole = naive_gradient(model, ready[0])
            contends = all(float(whole @ b) < 0 for b in others)
        uniform = torch.rand(fresh, 2, dtype=torch.float64).tolist()
        room = self.capacity - len(self.x)
        for i in range(min(room, fresh)):
            self.put(len(self.x), new, i, scores)
        if contends:
            for slot, i in naive_replacements(self.scores, scores[room:], uniform[room:]).items():
                self.put(slot, new, room + i, scores)
                self.replaced += 1
        torch.set_rng_state(state)

    def put(self, slot, new, i, scores):
        for held, value in zip(
            (self.x, self.y, self.task, self.scores), (*(c[i] for c in new), scores[i]), strict=True
        ):
            held[slot : slot + 1] = [value]


def assert_same_memory(ours, naive):
    for one, other in zip(ours.memory.all(), naive.columns(), strict=True):
        assert torch.equal(one, other)
    keys = ours.memory.keys[: len(naive.scores)]
    torch.testing.assert_close(keys, torch.tensor(naive.scores, dtype=torch.float64))


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
@pytest.mark.parametrize("comparisons", [1, 3])
def test_the_memory_is_that_of_a_naive_loop(clusters, mlp, make_learner, head, comparisons):
    stream = clusters(samples=20, task_labels=head == "multi").train_stream
    naive, ours = Naive(21, comparisons), GSS(21, comparisons, batch_size=5)
    train_in_float64(make_learner(mlp(head, dropout=0.2), naive, ours), stream)
    assert_same_memory(ours, naive)
    assert naive.replaced > 3
    assert ours.memory.columns[0].dtype == torch.uint8


def test_a_stream_without_boundaries_fills_the_memory_as_a_naive_loop(clusters, mlp, make_learner):
    naive, ours = Naive(21, 2), GSS(21, 2, batch_size=5)
    experience = as_stream(clusters(experiences=1, classes=6, samples=20))
    train_in_float64(make_learner(mlp(), naive, ours, epochs=1), [experience])
    assert_same_memory(ours, naive)
    assert naive.replaced > 3


@pytest.mark.parametrize("way", [vectorised, one_by_one])
def test_other_layers_fill_the_memory_alike(clusters, mlp, make_learner, monkeypatch, way):
    memories = []
    for pick in (pick_products, lambda *_: partial(of_samples, per_sample=way)):
        monkeypatch.setattr(gss, "pick_products", pick)
        ours = GSS(21, 2, batch_size=5)
        train_in_float64(make_learner(mlp(), ours), clusters().train_stream)
        memories.append(ours.memory)
    for one, other in zip(*(m.all() for m in memories), strict=True):
        assert torch.equal(one, other)
    torch.testing.assert_close(memories[0].keys, memories[1].keys)


def test_each_sample_is_offered_once_and_each_batch_joined(clusters, mlp, make_learner):
    stream, ours, sizes = clusters().train_stream, GSS(100, batch_size=5), []

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            sizes.append(len(strategy.mb_y) - strategy.dataloader.fresh)

    make_learner(mlp(), ours, Look(), epochs=3).train(stream)
    expected = sum((Counter(samples(e)) for e in stream), Counter())
    assert Counter(rows(ours.memory.all())) == expected
    assert sizes == [0] + [5] * 26


def test_a_score_is_above_0_where_gradients_are_opposite(clusters, mlp, make_learner, monkeypatch):
    def opposite(model, batch, memory, size):
        ones = torch.ones(len(batch[1]))
        return -ones[:, None], ones, torch.ones(1)

    monkeypatch.setattr(gss, "pick_products", lambda *_: opposite)
    ours = GSS(4)
    make_learner(mlp(), ours).train(clusters().train_stream)
    assert (ours.memory.keys > 0).all()
    assert len(ours.memory) == 4


def test_it_remembers(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    learner = make_learner(mlp(), GSS(60), evaluator=Evaluator(), epochs=10)
    torch.manual_seed(0)
    learner.train(scenario.train_stream)
    assert sum(learner.eval(scenario.test_stream)[:2]) > 0.8  # fine-tuning ends at 0


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_mixed_precision_computes_scores_in_full(clusters, mlp, make_learner, precision):
    ours = GSS(21)
    learner = make_learner(mlp(), ours, precision=precision)
    learner.train(clusters().train_stream)
    assert all(p.isfinite().all() for p in learner.model.parameters())
    assert ((ours.memory.keys > 0) & (ours.memory.keys <= 2)).all()


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, restored = resume_and_compare(lambda: GSS(20), head)
    assert torch.equal(strategy.memory.keys, restored.memory.keys)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_strategy_restored_in_mid_experience_goes_on_to_the_same_bit(
    clusters, mlp, make_learner, ordered
):
    assert hand_over_and_compare(clusters, mlp, make_learner, lambda: GSS(20, 2), ordered)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"comparisons": 0}, "strategy.comparisons=0: expected at least 1; raise it"),
        ({"batch_size": 0}, "strategy.batch_size=0: expected at least 1; raise it"),
        (
            {"capacity": 0},
            "strategy.capacity=0: a memory holds at least 1 sample; raise it",
        ),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        GSS(**{"capacity": 10, **arguments})
    assert str(caught.value) == message
