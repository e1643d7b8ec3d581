"""The local similarity head against loops over single proxies, and as a head that grows."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clplat.backbones.classifier import Classifier, classifier
from clplat.backbones.heads import MASKED
from clplat.backbones.local_similarity import LocalSimilarity, local_similarity
from clplat.errors import InputError
from clplat.optimizer import follow, make_optimizer

FEATURES, CLASSES = 5, 9
ORDER = [[7, 2], [0, 5, 2], [8]]  # classes of each experience; 2 comes twice, 1, 3, 4, 6 never


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def unit(row):
    length = math.sqrt(sum(v * v for v in row))
    return [v / length for v in row]


def naive_similarity(feature, proxies):
    """One feature to the proxies of one class, in plain Python."""
    f, scores = unit(feature.tolist()), []
    for proxy in proxies.tolist():
        scores.append(-sum((a - b) ** 2 for a, b in zip(f, unit(proxy), strict=True)))
    weights = [math.exp(s) for s in scores]
    return sum(s * w for s, w in zip(scores, weights, strict=True)) / sum(weights)


def experience(classes):
    return SimpleNamespace(classes_in_this_experience=classes)


def grown(experiences=3, **settings):
    torch.manual_seed(0)
    head = LocalSimilarity(FEATURES, CLASSES, **settings)
    for classes in ORDER[:experiences]:
        head.adaptation(experience(classes))
    return head


@pytest.mark.parametrize("proxies", [1, 3, 10])
def test_similarities_are_those_of_a_loop_over_proxies(proxies):
    features, weights = drawn(7, FEATURES), drawn(4, proxies, FEATURES, seed=1)
    expected = [[naive_similarity(f, w) for w in weights] for f in features]
    found = local_similarity(features, weights)
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=1e-12)


def test_similarities_have_the_gradients_of_finite_differences():
    inputs = [drawn(3, 4).requires_grad_(), drawn(2, 3, 4, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(local_similarity, inputs)


def test_logits_are_scaled_similarities_at_the_classes_columns_and_masked_elsewhere():
    head = grown(proxies=3, scale=2.5).double()
    features = drawn(6, FEATURES)
    logits = head(features)
    assert logits.shape == (6, CLASSES)
    proxies = dict(zip([2, 7, 0, 5, 8], torch.cat([*head.groups]), strict=True))
    for label in range(CLASSES):
        for feature, logit in zip(features, logits[:, label].tolist(), strict=True):
            if label in proxies:
                assert logit == pytest.approx(2.5 * naive_similarity(feature, proxies[label]))
            else:
                assert logit == MASKED


def test_classes_that_come_together_are_one_parameter_and_old_ones_are_left_alone():
    head = grown(2)
    before = [group.clone() for group in head.groups]
    held = list(head.groups)
    head.adaptation(experience(ORDER[2]))
    head.adaptation(experience(ORDER[1]))  # nothing new
    assert [tuple(group.shape) for group in head.groups] == [(2, 10, 5), (2, 10, 5), (1, 10, 5)]
    assert head.columns.tolist() == [2, 7, 0, 5, 8]
    assert all(a is b for a, b in zip(held, head.groups, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(before, head.groups, strict=False))


def test_proxies_of_a_class_differ_at_first():
    drawn_once = torch.cat([*grown().groups]).flatten(0, 1)
    assert len({tuple(row) for row in drawn_once.tolist()}) == 50
    assert drawn_once.norm(dim=1).mean().item() == pytest.approx(1.0, abs=0.2)


def test_evaluation_does_not_make_it_grow_but_for_a_first_time():
    head = LocalSimilarity(FEATURES, CLASSES).eval()
    with pytest.raises(RuntimeError, match="no classes before its first experience"):
        head(torch.randn(2, FEATURES))
    head.adaptation(experience(ORDER[0]))
    head.adaptation(experience(ORDER[1]))
    assert head.columns.tolist() == [2, 7]
    head.train().adaptation(experience(ORDER[1]))
    assert head.columns.tolist() == [2, 7, 0, 5]


def test_a_copy_grows_without_the_original():
    head = grown(2)
    copied = copy.deepcopy(head)
    features = torch.randn(3, FEATURES)
    assert torch.equal(copied(features), head(features))
    copied.adaptation(experience(ORDER[2]))
    assert (head.columns.tolist(), len(head.groups)) == ([2, 7, 0, 5], 2)


def test_an_optimizer_follows_and_keeps_what_it_had():
    head = grown(1)
    optimizer, held = make_optimizer(lambda groups: torch.optim.SGD(groups, 0.1, 0.9), head)
    head(torch.randn(4, FEATURES))[:, 2].sum().backward()
    optimizer.step()
    momentum = optimizer.state[head.groups[0]]["momentum_buffer"].clone()
    head.adaptation(experience(ORDER[1]))
    follow(optimizer, head, held)
    assert momentum.any()
    assert torch.equal(optimizer.state[head.groups[0]]["momentum_buffer"], momentum)
    assert {id(p) for p in optimizer.param_groups[0]["params"]} == {
        id(p) for p in head.parameters()
    }


def test_it_needs_no_task_labels():
    model = classifier(nn.Flatten(), LocalSimilarity(FEATURES, CLASSES))
    assert type(model) is Classifier


def test_no_proxies_are_refused():
    with pytest.raises(InputError) as caught:
        LocalSimilarity(FEATURES, CLASSES, proxies=0)
    assert str(caught.value) == "head.proxies=0: expected at least 1; raise it"
