"""Output regularisation against its five steps, written out with two optimizers in float64."""

import copy

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn
from torch.func import functional_call

from clplat.backbones.classifier import classifier
from clplat.backbones.convnet import ConvNet
from clplat.backbones.mlp import MLP as Perceptron
from clplat.footprint import memory_bytes
from clplat.prepare import Prepare
from hypernets.generated import Generated
from hypernets.rnn import RNN
from hypernets.separate import Separate, own_values
from strategies.finetune import FineTune
from strategies.hypernet import Hypernet, normalised, regulariser
from strategies.replay import Replay

CLASSES = 6


def rnn(layout):
    return RNN(layout, 3, 2, 5, 41)


def model_of(encoder=None, width=7, generator=rnn, labels=True, tasks=(), **settings):
    torch.manual_seed(0)
    target = classifier(encoder or Perceptron((1, 4, 4), [width]), nn.Linear(width, CLASSES))
    model = Generated(target, generator, task_labels=labels, classes=CLASSES, **settings)
    for task in tasks:  # so that their embeddings are drawn before all else
        model.add_task(task)
    return model


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def to_double(x, training):
    return Prepare()(x).double()


OPTIMIZERS = {
    "Adam": lambda p: torch.optim.Adam(p, 5e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, 5e-3, weight_decay=0.1),
    "SGD": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.01),
}


# --- the reference -------------------------------------------------------------------------------


class Reference:
    """The five steps of an iteration; one forward pass a task; a copied optimizer's real step."""

    def __init__(self, model, optimizer, beta=0.5, look_ahead=True, subset=None, importance=None,
                 accumulate=1, clip=None):  # fmt: skip
        self.model, self.make = model, optimizer
        self.beta, self.ahead, self.subset, self.kind = beta, look_ahead, subset, importance
        self.accumulate, self.clip = accumulate, clip
        self.generator = model.generator
        self.optimizer = optimizer(list(self.generator.parameters()))
        self.targets, self.fishers, self.terms = [], [], []
        self.order = torch.Generator().manual_seed(0)

    def made(self, task):
        return self.generator(self.model.embeddings[str(task)][None])[0]

    def logits(self, numbers, x, task):
        weights = self.generator.layout.weights(numbers)
        own = torch.arange(CLASSES) // 2 == task
        return functional_call(self.model.target, weights, (x,)).masked_fill(~own, -1e4)

    def serves(self, task):
        label = self.generator.layout.label
        return (label < 0) | (label // 2 == task)

    def weighting(self, task):
        weight = self.serves(task).double()
        return weight * sum(self.fishers) / sum(self.fishers).mean() if self.kind else weight

    def step_of_optimizer(self):
        """What its step would add, from a copy that makes it."""
        generator, optimizer = copy.deepcopy((self.generator, self.optimizer))
        pairs = list(zip(generator.parameters(), self.generator.parameters(), strict=True))
        for copied, own in pairs:
            copied.grad = None if own.grad is None else own.grad.clone()
        optimizer.step()
        return [(copied - own).detach() for copied, own in pairs]

    def regularise(self, task):
        moved = [p.detach().clone() for p in self.generator.parameters()]
        if self.ahead:
            moved = [p + d for p, d in zip(moved, self.step_of_optimizer(), strict=True)]
        names = [n for n, _ in self.generator.named_parameters()]
        moved = [p.requires_grad_() for p in moved]
        chosen = range(task)
        if self.subset is not None:
            chosen = torch.randperm(task)[: self.subset].tolist()
        loss = 0
        for s in chosen:
            embedding = self.model.embeddings[str(s)].detach()[None]
            at = dict(zip(names, moved, strict=True))
            numbers = functional_call(self.generator, at, (embedding,))[0]
            squares = self.weighting(s) * (numbers - self.targets[s]) ** 2
            loss = loss + self.beta / len(chosen) * squares.sum()
        self.terms.append(float(loss.detach()))
        gradients = torch.autograd.grad(loss, moved)
        for p, g in zip(self.generator.parameters(), gradients, strict=True):
            p.grad = g if p.grad is None else p.grad + g

    def train(self, task, x, y, epochs=2, batch=8):
        embedding = self.model.embeddings[str(task)].requires_grad_()
        own = self.make([embedding])
        self.targets = [self.made(s).detach() for s in range(task)]
        for _ in range(epochs):
            batches = torch.randperm(len(y), generator=self.order).split(batch)
            for k in range(0, len(batches), self.accumulate):
                group = batches[k : k + self.accumulate]
                own.zero_grad()
                self.optimizer.zero_grad()
                for index in group:
                    logits = self.logits(self.made(task), x[index], task)
                    (nn.functional.cross_entropy(logits, y[index]) / len(group)).backward()
                if task:
                    self.regularise(task)
                if self.clip:
                    every = [embedding, *self.generator.parameters()]
                    norm = torch.stack([p.grad.square().sum() for p in every]).sum().sqrt()
                    for p in every:
                        p.grad *= min(1.0, self.clip / (float(norm) + 1e-6))
                own.step()
                self.optimizer.step()
        embedding.requires_grad_(False)
        if self.kind:
            self.fishers.append(self.fisher(task, x, y, batch))

    def fisher(self, task, x, y, batch):
        numbers = self.made(task).detach().requires_grad_()
        total = torch.zeros_like(numbers)
        log_p = self.logits(numbers, x, task).log_softmax(1)

        def squared(value):
            return torch.autograd.grad(value, numbers, retain_graph=True)[0].square()

        if self.kind == "batch":
            for index in torch.arange(len(y)).split(batch):
                total += len(index) * squared(-log_p[index, y[index]].mean())
            return total / len(y)
        for row, label in zip(log_p, y, strict=True):
            if self.kind == "empirical":
                total += squared(row[label])
            else:
                for c in (2 * task, 2 * task + 1):
                    total += row[c].exp().detach() * squared(row[c])
        return total / len(y)


class Losses(SupervisedPlugin):
    """What the regulariser adds to the loss that is shown; first and last of the plugins."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def before_update(self, strategy, **kwargs):
        self.seen.append(float(strategy.loss.detach()))

    def after_update(self, strategy, **kwargs):
        self.seen[-1] = float(strategy.loss.detach()) - self.seen[-1]


VARIANTS = {
    "as it is": {},
    "no look-ahead": {"look_ahead": False},
    "recomputed": {"targets": "recomputed"},
    "subset": {"subset": 1},
    "subset, recomputed, weighed": {"subset": 1, "targets": "recomputed", "importance": "batch"},
    "exact": {"importance": "exact"},
    "empirical": {"importance": "empirical"},
    "batch": {"importance": "batch", "beta": 0.2},
    "accumulate": {"accumulate": 2},
    "clip": {"grad_clip": 0.05},
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", VARIANTS)
def test_training_is_the_five_steps(name, optimizer, clusters, make_learner, double):
    settings = {"beta": 0.5, **VARIANTS[name]}
    loop = {k: settings.pop(k) for k in ("accumulate", "grad_clip") if k in settings}
    stream = clusters(task_labels=True).train_stream
    model = model_of(tasks=range(3))
    reference = Reference(
        copy.deepcopy(model),
        OPTIMIZERS[optimizer],
        **{k: v for k, v in settings.items() if k != "targets"},
        accumulate=loop.get("accumulate", 1),
        clip=loop.get("grad_clip"),
    )
    made = {"optimizer": OPTIMIZERS[optimizer], "prepare": to_double, **loop}
    losses = Losses()
    learner = make_learner(model, losses, Hypernet(**settings), **made)
    torch.manual_seed(4)
    learner.train(stream)
    torch.manual_seed(4)
    for task, experience in enumerate(stream):
        x, y, _ = zip(*experience.dataset, strict=True)
        reference.train(task, to_double(torch.stack([*x]), True), torch.tensor([*map(int, y)]))
    ours, theirs = (dict(m.named_parameters()) for m in (model, reference.model))
    for n, p in ours.items():
        torch.testing.assert_close(p, theirs[n], rtol=1e-6, atol=1e-8)
    terms, updates = reference.terms, 4 if "accumulate" in loop else 6
    assert losses.seen == pytest.approx([0.0] * updates + terms, rel=1e-6, abs=1e-12)
    assert len(terms) == 2 * updates
    assert max(terms) > 1e-6


# --- the mathematics -----------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [None, 1, 2])
def test_the_regulariser_is_a_mean_over_tasks_of_sums(axes):
    torch.manual_seed(0)
    numbers = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    targets, weight = torch.randn(3, 5).double(), torch.rand(3, 5).double()
    given = {None: None, 1: weight[0], 2: weight}[axes]
    full = {None: torch.ones(3, 5), 1: weight[0].expand(3, 5), 2: weight}[axes]
    value, expected = regulariser(numbers, targets, given), 0.0
    for k in range(3):
        for i in range(5):
            expected += float(full[k, i] * (numbers[k, i] - targets[k, i]).detach() ** 2) / 3
    assert value.item() == pytest.approx(expected, rel=1e-12)
    (gradient,) = torch.autograd.grad(value, numbers)
    torch.testing.assert_close(gradient, 2 / 3 * full * (numbers - targets).detach())


def test_importances_are_normalised_to_a_mean_of_1():
    assert normalised(torch.tensor([1.0, 0.0, 5.0])).tolist() == [0.5, 0.0, 2.5]
    assert normalised(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]


# --- beside other strategies, and at the edges ---------------------------------------------------


@pytest.mark.parametrize("subset", [None, 1])
def test_beta_0_is_fine_tuning_to_the_bit(clusters, make_learner, weights, subset):
    states = []
    for strategy in (Hypernet(0.0, subset=subset, importance="batch"), FineTune()):
        learner = make_learner(model_of(), strategy)
        learner.train(clusters(task_labels=True).train_stream)
        states.append(dict(learner.model.named_parameters()))
    assert all(torch.equal(p, states[1][n]) for n, p in states[0].items())


def test_beside_replay_the_loss_is_of_earlier_tasks_too(clusters, make_learner):
    seen = []

    class Look(SupervisedPlugin):
        def before_backward(self, strategy, **kwargs):
            rows = [
                strategy.model(strategy.mb_x[k : k + 1], int(strategy.mb_task_id[k]))
                for k in range(len(strategy.mb_x))
            ]
            expected = nn.functional.cross_entropy(torch.cat(rows), strategy.mb_y)
            seen.append(sorted(set(strategy.mb_task_id.tolist())))
            torch.testing.assert_close(strategy.loss, expected)

    learner = make_learner(model_of(), Replay(12), Hypernet(0.1), Look())
    learner.train(clusters(task_labels=True).train_stream)
    assert seen[:6] == [[0]] * 6
    assert all(2 in tasks and len(tasks) > 1 for tasks in seen[-6:])


def test_an_earlier_task_is_remembered(clusters, make_learner):
    stream, scores = clusters(task_labels=True, samples=30), []
    for beta in (0.0, 1.0):
        adam = OPTIMIZERS["Adam"]
        learner = make_learner(model_of(), Hypernet(beta), optimizer=adam, epochs=10)
        learner.train(stream.train_stream)
        hits = [
            int(learner.model.eval()(x[None], int(t)).argmax()) == int(y)
            for x, y, t in stream.test_stream[0].dataset
        ]
        scores.append(sum(hits) / len(hits))
    assert scores[1] >= 0.9
    assert scores[1] > scores[0] + 0.2


def test_a_network_for_each_task_has_nothing_to_keep(clusters, make_learner):
    model = model_of(generator=Separate, layout=own_values)
    learner = make_learner(model, Hypernet(0.1))
    stream = clusters(task_labels=True).train_stream
    learner.train(stream[0])
    before = model.weights(0)
    learner.train(stream[1])
    assert all(torch.equal(v, before[n]) for n, v in model.weights(0).items())


@pytest.mark.parametrize("importance", ["exact", "empirical", "batch"])
def test_importance_is_taken_in_evaluation_mode(clusters, make_learner, importance):
    def batch_norm():
        return ConvNet((1, 4, 4), [7])

    def dropout():
        return Perceptron((1, 4, 4), [7], dropout=0.5)

    for encoder in (dropout, batch_norm):
        strategy = Hypernet(0.1, importance=importance)
        learner = make_learner(model_of(encoder()), strategy)
        learner.train(clusters(task_labels=True).train_stream[0])
        statistics = {n: v.clone() for n, v in learner.model.statistics(0).items()}
        found, strategy.importance = strategy.importance, None
        learner.is_training = False
        learner.model.eval()
        strategy.after_training_exp(learner)
        torch.testing.assert_close(strategy.importance, found)
        assert all(torch.equal(v, statistics[n]) for n, v in learner.model.statistics(0).items())


def test_fp16_skips_a_step_that_overflows(clusters, make_learner):
    learner = make_learner(model_of(), Hypernet(0.1), precision="fp16", lr=0.05)
    stream = clusters(task_labels=True).train_stream
    learner.train(stream[0])
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
    learner.train(stream[1])
    assert learner.scaler.get_scale() < 2.0**40
    assert all(p.isfinite().all() for p in learner.model.parameters())


@pytest.mark.parametrize("targets", ["stored", "recomputed"])
def test_memory_that_is_held(clusters, make_learner, targets):
    strategy, model, found = Hypernet(0.1, targets=targets), model_of(), []
    learner = make_learner(model, strategy)
    for experience in clusters(task_labels=True).train_stream:
        learner.train(experience)
        found.append(memory_bytes(strategy, model))
    size = model.generator.layout.size
    own = sum(p.numel() for p in model.generator.parameters())
    assert found == ([0, 4 * size, 8 * size] if targets == "stored" else [0, 4 * own, 4 * own])
