"""A frozen network: nothing moves, and heads that fit means are fitted nevertheless."""

import pytest
import torch
from avalanche.core import SupervisedPlugin
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import NearestMean, NearestMeanFit
from clplat.backbones.mlp import MLP
from clplat.backbones.prototypes import Prototypes
from clplat.data import tensors_of
from clplat.evaluation import Evaluator
from strategies.frozen import Frozen


class Hooks(SupervisedPlugin):
    def __init__(self):
        super().__init__()
        self.fired = []

    def before_training_iteration(self, strategy, **kwargs):
        self.fired.append("iteration")

    def after_training_exp(self, strategy, **kwargs):
        self.fired.append("end")


def normed() -> nn.Module:
    """A network with running statistics, which a forward pass in training would move."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.BatchNorm2d(1), MLP((1, 4, 4), [8]))
    return classifier(encoder, nn.Linear(8, 6))


@pytest.mark.parametrize("loop", ["make_learner", "make_template"])
def test_no_weight_and_no_statistic_moves_however_long_it_trains(request, clusters, weights, loop):
    model, hooks = normed(), Hooks()
    before = weights(model)
    make = request.getfixturevalue(loop)
    options = {"epochs": 3} if loop == "make_learner" else {"train_epochs": 3}
    make(model, Frozen(), hooks, **options).train(clusters().train_stream)
    after = weights(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert hooks.fired == ["end"] * 3  # one for each experience, and no iteration


@pytest.mark.parametrize("make_head", [NearestMean, Prototypes])
def test_heads_of_means_are_those_of_the_frozen_features(clusters, make_learner, make_head):
    torch.manual_seed(0)
    scenario, encoder = clusters(samples=30), MLP((1, 4, 4), [8])
    model = classifier(encoder, make_head(8, 6))
    learner = make_learner(model, Frozen(), NearestMeanFit(), evaluator=Evaluator())
    learner.train(scenario.train_stream)
    scores = learner.eval(scenario.test_stream)

    def normalised(features):
        unit = make_head is NearestMean
        return nn.functional.normalize(features, dim=1) if unit else features

    def features(x):
        return normalised(encoder((x / 255).flatten(1)).detach()).double()

    means = torch.zeros(6, 8, dtype=torch.float64)
    for experience in scenario.train_stream:
        x, y, _ = tensors_of(experience.dataset)
        for label in y.unique():
            means[label] = normalised(features(x[y == label]).mean(0, keepdim=True))[0]
    for score, experience in zip(scores, scenario.test_stream, strict=True):
        x, y, _ = tensors_of(experience.dataset)
        predicted = torch.cdist(features(x), means).argmin(1)
        assert score == pytest.approx((predicted == y).double().mean().item())
    assert min(scores) > 0.4  # of six classes


def test_it_holds_nothing():
    assert Frozen().memory_bytes == 0


def test_it_needs_to_be_told_where_an_experience_ends(command):
    outcome = command("scenario=online_digits strategy=frozen")
    assert outcome.status == 2
    assert "strategy: Frozen acts where an experience begins or ends, and this" in outcome.err
