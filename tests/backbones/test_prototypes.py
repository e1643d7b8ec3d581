"""Prototypes against plain loops in float64, and what the loop makes of the head."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import MASKED, NearestMeanFit
from clplat.backbones.prototypes import Prototypes, squared_distances
from clplat.evaluation import Evaluator
from clplat.footprint import memory_bytes
from clplat.prepare import Prepare
from scenarios.streams import make_scenario

FEATURES, CLASSES = 5, 7


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def head() -> Prototypes:
    torch.manual_seed(0)
    return Prototypes(FEATURES, CLASSES)


def naive_logits(queries, features, labels) -> torch.Tensor:
    """Minus the squared distance of each query to the mean of each class, in plain loops."""
    output = torch.full((len(queries), CLASSES), MASKED, dtype=torch.float64)
    for label in sorted(set(labels)):
        members = [f.double() for f, own in zip(features, labels, strict=True) if own == label]
        mean = sum(members[1:], members[0]) / len(members)
        for row, query in enumerate(queries):
            pairs = zip(query.tolist(), mean.tolist(), strict=True)
            output[row, label] = -sum((q - m) ** 2 for q, m in pairs)
    return output


# --- distances -------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(1, 1, 1), (7, 3, 5), (4, 11, 64), (0, 3, 2)])
def test_squared_distances_are_those_of_cdist(sizes):
    rows, others, width = sizes
    one = torch.randn(rows, width, dtype=torch.float64, generator=generator())
    other = torch.randn(others, width, dtype=torch.float64, generator=generator(1))
    expected = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").square()
    assert squared_distances(one, other).shape == (rows, others)
    torch.testing.assert_close(squared_distances(one, other), expected, rtol=1e-12, atol=1e-12)
    single = squared_distances(one.float(), other.float())
    torch.testing.assert_close(single.double(), expected, rtol=1e-4, atol=1e-4)


def test_squared_distances_carry_gradients_to_both():
    one = torch.randn(3, 4, dtype=torch.float64, generator=generator()).requires_grad_()
    other = torch.randn(2, 4, dtype=torch.float64, generator=generator(1)).requires_grad_()
    assert torch.autograd.gradcheck(squared_distances, (one, other))


# --- the head --------------------------------------------------------------------------------


def test_logits_are_minus_squared_distances_to_mean_features_of_known_classes(head):
    features = 3 * torch.rand(11, FEATURES, generator=generator())
    labels = [2, 2, 5, 0, 2, 5, 5, 5, 0, 2, 2]
    queries = 3 * torch.rand(4, FEATURES, generator=generator(1))
    head.fit(features, torch.tensor(labels))
    logits = head.eval()(queries)
    expected = naive_logits(queries, features, labels)
    torch.testing.assert_close(logits.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits == MASKED, expected == MASKED)
    assert torch.equal(logits.argmax(1), expected.argmax(1))


def test_the_prototype_of_a_class_that_comes_again_is_the_mean_of_all_its_samples(head):
    features = torch.randn(12, FEATURES, generator=generator())
    labels = [1, 1, 1, 1, 1, 4, 4, 1, 3, 1, 4, 4]  # class 1: five samples, then one, then one
    for part in (slice(0, 7), slice(7, 9), slice(9, 12)):
        head.fit(features[part], torch.tensor(labels[part]))
    queries = torch.randn(3, FEATURES, generator=generator(1))
    expected = naive_logits(queries, features, labels)
    torch.testing.assert_close(head.eval()(queries).double(), expected, rtol=1e-4, atol=1e-4)


def test_a_prototype_at_the_origin_is_known(head):
    head.fit(torch.zeros(2, FEATURES), torch.tensor([6, 6]))
    logits = head.eval()(torch.ones(1, FEATURES))
    assert logits[0].tolist() == [MASKED] * 6 + [-FEATURES]


def test_it_is_the_linear_layer_in_training_and_until_there_is_a_prototype(head):
    queries = torch.randn(3, FEATURES, generator=generator())
    expected = head.linear(queries)
    assert torch.equal(head.eval()(queries), expected)
    head.fit(queries, torch.tensor([0, 1, 2]))
    assert torch.equal(head.train()(queries), expected)
    assert not torch.equal(head.eval()(queries), expected)


def test_prototypes_are_saved_and_are_no_parameters(head):
    head.fit(torch.randn(3, FEATURES), torch.tensor([0, 1, 1]))
    assert {name for name, _ in head.named_parameters()} == {"linear.weight", "linear.bias"}
    restored, queries = Prototypes(FEATURES, CLASSES), torch.randn(2, FEATURES)
    restored.load_state_dict(head.state_dict())
    assert torch.equal(restored.eval()(queries), head.eval()(queries))
    copied = copy.deepcopy(head)
    copied.fit(torch.ones(1, FEATURES), torch.tensor([1]))
    assert torch.equal(restored(queries), head(queries))
    assert not torch.equal(copied(queries), head(queries))


def test_what_it_remembers_is_a_vector_for_each_class_it_knows(head):
    assert head.memory_bytes == 0
    head.fit(torch.randn(3, FEATURES), torch.tensor([0, 1, 1]))
    assert head.memory_bytes == 2 * FEATURES * 4
    head.fit(torch.randn(2, FEATURES), torch.tensor([1, 3]))
    assert head.memory_bytes == 3 * FEATURES * 4
    strategy, model = SimpleNamespace(memory_bytes=100), SimpleNamespace(head=head)
    assert memory_bytes(strategy, model) == 100 + 3 * FEATURES * 4


def test_half_precision_features_are_summed_in_full(head):
    features = torch.randn(300, FEATURES, generator=generator()).bfloat16()
    head.fit(features, torch.zeros(300, dtype=torch.long))
    assert head.sums.dtype == torch.float32
    torch.testing.assert_close(head.sums[0], features.float().sum(0))


# --- in the loop -----------------------------------------------------------------------------


class Shift(nn.Module):
    """Features of one pixel each; dropout shows whether it was fitted in evaluation."""

    width = FEATURES

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(2 * x.flatten(1))


def test_the_loop_fits_prototypes_to_each_experience_once(make_learner):
    """A class of two experiences, another of one: all of their samples count the same."""
    x = torch.randint(0, 256, (13, 1, 1, FEATURES), dtype=torch.uint8, generator=generator())
    y = torch.tensor([0, 2, 2, 0, 2, 2, 2, 5, 5, 0, 5, 0, 0])
    parts = [(x[:7], y[:7]), (x[7:], y[7:])]
    stream = make_scenario(parts, parts, CLASSES, False, Prepare()).train_stream
    model = classifier(Shift(), Prototypes(FEATURES, CLASSES))
    learner = make_learner(model, NearestMeanFit(), evaluator=Evaluator(), eval_batch_size=4)
    learner.train(stream)
    features = 2 * (x.flatten(1).float() / 255)
    expected = naive_logits(features, features, y.tolist())
    torch.testing.assert_close(model.eval()(x / 255).double(), expected, rtol=1e-4, atol=1e-4)
    right = (expected.argmax(1) == y).double()
    scores = learner.eval(stream)
    assert scores == pytest.approx([right[:7].mean().item(), right[7:].mean().item()])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_close_prototypes_are_told_apart_far_from_the_origin(precision):
    """Classes at (20, 20, ...) plus or minus 1: distances are small beside the features' norms."""
    features, offset = 64, 20.0
    signs = torch.randn(CLASSES, features, generator=generator()).sign()
    head = Prototypes(features, CLASSES)
    head.fit(offset + signs, torch.arange(CLASSES))
    queries = offset + signs + 0.3 * torch.randn(CLASSES, features, generator=generator(1))
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = head.eval()(queries)
    assert torch.equal(logits.argmax(1), torch.arange(CLASSES))
