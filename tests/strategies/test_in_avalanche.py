"""Every strategy in a plain Avalanche script: its template, its models, its tensor benchmark."""

import copy
from itertools import product

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.models import IncrementalClassifier, MTSimpleMLP, SimpleMLP
from avalanche.training.templates import SupervisedTemplate
from torch import nn

from strategies.a_gem import AGEM
from strategies.cumulative import Cumulative
from strategies.der import DER
from strategies.er_ace import ERACE
from strategies.ewc import EWC
from strategies.expert_gate import ExpertGate
from strategies.fast_slow import FastSlow
from strategies.finetune import FineTune
from strategies.gdumb import GDumb
from strategies.gss import GSS
from strategies.icarl import ICaRL
from strategies.joint import Joint
from strategies.lwf import LwF
from strategies.mas import MAS
from strategies.mir import MIR
from strategies.replay import Replay
from strategies.rwalk import RWalk
from strategies.si import SynapticIntelligence

STRATEGIES = {
    "finetune": FineTune,
    "joint": Joint,
    "cumulative": Cumulative,
    "replay": lambda: Replay(20),
    "replay, reservoir": lambda: Replay(20, "reservoir", batch_size=5),
    "EWC": lambda: EWC(5.0),
    "EWC, online": lambda: EWC(5.0, "empirical", online=True, decay=0.9),
    "EWC, batch": lambda: EWC(5.0, "batch"),
    "LwF": lambda: LwF(2.0),
    "DER": lambda: DER(30, alpha=1.0, beta=0.0),
    "fast_slow": lambda: FastSlow(0.05, 12, 5, 0.05),
    "DER++": lambda: DER(30, alpha=1.0, beta=0.5),
    "GDumb": lambda: GDumb(20, 2),
    "Expert Gate": lambda: ExpertGate(0.5, hidden=4, epochs=20),
    "MAS": lambda: MAS(0.05),
    "SI": lambda: SynapticIntelligence(0.5),
    "RWalk": lambda: RWalk(0.5),
    "MIR": lambda: MIR(20, candidates=12, batch_size=5),
    "GSS": lambda: GSS(20, 2, batch_size=5),
    "ER-ACE": lambda: ERACE(20, batch_size=5),
    "A-GEM": lambda: AGEM(20, batch_size=5),
}


class IncrementalMLP(nn.Module):
    """A model with Avalanche's growing head, and neither `encoder` nor `head`."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU())
        self.grows = IncrementalClassifier(12, initial_out_features=2)

    def forward(self, x):
        return self.grows(self.body(x))


class MultiTaskMLP(MTSimpleMLP):
    """Avalanche's, without dropout; it takes flat inputs."""

    def __init__(self):
        super().__init__(input_size=16, hidden_size=12)
        self.features[2].p = 0.0

    def forward(self, x, task_labels):
        return super().forward(x.flatten(1), task_labels)


MODELS = {
    "plain": lambda: SimpleMLP(6, input_size=16, hidden_size=12, drop_rate=0.0),
    "growing": IncrementalMLP,
    "multi-task": MultiTaskMLP,
}


def make(model):
    torch.manual_seed(0)
    return MODELS[model]()


def accuracies(model, stream):
    """Of each experience, one sample at a time."""
    model, found = copy.deepcopy(model).eval(), []
    for experience in stream:
        hits = 0
        for x, y, task in experience.dataset:
            inputs = (task,) if isinstance(model, MTSimpleMLP) else ()
            hits += int(model(x[None], *inputs).argmax()) == int(y)
        found.append(hits / len(experience.dataset))
    return found


@pytest.mark.parametrize(
    ("name", "model"),
    # Expert Gate finds the task itself, and refuses heads for each.
    sorted({*product(STRATEGIES, MODELS)} - {("Expert Gate", "multi-task")}),
)
def test_a_strategy_gives_the_weights_in_avalanches_template_that_it_gives_in_our_learner(
    assert_same_in_avalanche, name, model
):
    assert_same_in_avalanche(lambda: make(model), STRATEGIES[name], model == "multi-task")


@pytest.mark.parametrize("name", ["replay", "DER++", "EWC", "LwF", "cumulative", "iCaRL"])
def test_our_scenarios_of_uint8_images_are_scaled_once_in_either_loop(
    clusters, mlp, make_learner, make_template, weights, name
):
    models = []
    for make_loop in (make_learner, make_template):
        # Avalanche's models have no `features`, which iCaRL asks for.
        loop = make_loop(mlp(), ICaRL(12) if name == "iCaRL" else STRATEGIES[name]())
        torch.manual_seed(4)
        for experience in clusters().train_stream:
            loop.train(experience)
        models.append(weights(loop.model))
    for parameter in models[0]:
        torch.testing.assert_close(models[0][parameter], models[1][parameter])


# --- the effect, with nothing of ours but the strategy -------------------------------------------


def script(benchmark, strategy, model="plain", epochs=10):
    """A user's script; returns the model after each experience."""
    net = make(model)
    template = SupervisedTemplate(
        model=net,
        optimizer=torch.optim.SGD(net.parameters(), lr=0.1),
        train_mb_size=8,
        train_epochs=epochs,
        evaluator=None,
        plugins=[strategy],
    )
    models = []
    for experience in benchmark.train_stream:
        template.train(experience)
        models.append(copy.deepcopy(template.model))
    return models


@pytest.fixture
def benchmark_of_clusters(avalanche_clusters):
    return avalanche_clusters(samples=30)


def test_fine_tuning_forgets(benchmark_of_clusters):
    models = script(benchmark_of_clusters, FineTune())
    first, second, last = accuracies(models[-1], benchmark_of_clusters.test_stream)
    assert (first, second) == (0.0, 0.0)
    assert last > 0.9


@pytest.mark.parametrize("name", ["replay", "replay, reservoir", "DER", "DER++"])
def test_rehearsal_remembers(benchmark_of_clusters, name):
    models = script(benchmark_of_clusters, STRATEGIES[name]())
    scores = accuracies(models[-1], benchmark_of_clusters.test_stream)
    assert sum(scores[:2]) > 0.5


@pytest.mark.parametrize("name", ["joint", "cumulative"])
def test_training_on_all_data_learns_all_classes(benchmark_of_clusters, name):
    models = script(benchmark_of_clusters, STRATEGIES[name](), epochs=20)
    assert min(accuracies(models[-1], benchmark_of_clusters.test_stream)) > 0.8


def test_joint_training_ends_with_the_first_experience(benchmark_of_clusters):
    first, _, last = script(benchmark_of_clusters, Joint())
    for one, other in zip(first.parameters(), last.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["EWC", "EWC, online", "EWC, batch"])
def test_ewc_holds_the_weights_that_the_first_experience_needs(benchmark_of_clusters, name):
    moved = []
    for strategy in (FineTune(), STRATEGIES[name]()):
        first, second, _ = script(benchmark_of_clusters, strategy)
        before, after = list(first.parameters()), list(second.parameters())
        needed = [torch.zeros_like(p) for p in before]
        for x, y, _ in benchmark_of_clusters.train_stream[0].dataset:
            loss = nn.functional.cross_entropy(first(x[None]), torch.tensor([y]))
            for total, g in zip(needed, torch.autograd.grad(loss, before), strict=True):
                total += g.square() / 60
        triples = zip(needed, before, after, strict=True)
        moved.append(sum((n * (p - q).square()).sum().item() for n, p, q in triples))
    assert moved[1] < 0.5 * moved[0]


def test_lwf_keeps_the_old_answers_on_the_new_data(benchmark_of_clusters):
    divergence = []
    x = torch.stack([d[0] for d in benchmark_of_clusters.train_stream[1].dataset])
    for strategy in (LwF(0.0), LwF(5.0)):
        first, second, _ = script(benchmark_of_clusters, strategy)
        old, new = (m(x)[:, :2].softmax(1) for m in (first, second))
        divergence.append((old * (old / new).log()).sum(1).mean().item())
    assert divergence[1] < 0.2 * divergence[0]


def test_dark_replay_remembers_with_a_head_of_avalanches_that_grows(benchmark_of_clusters):
    models = script(benchmark_of_clusters, STRATEGIES["DER++"](), model="growing")
    scores = accuracies(models[-1], benchmark_of_clusters.test_stream)
    assert sum(scores[:2]) > 0.5


def test_every_strategy_is_an_avalanche_plugin_and_nothing_more():
    for factory in STRATEGIES.values():
        assert type(factory()).__mro__[1] is SupervisedPlugin
