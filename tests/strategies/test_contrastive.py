"""The supervised contrastive loss against loops over anchors, and Avalanche's form of it."""

import math

import pytest
import torch
from avalanche.training.losses import SCRLoss

from strategies.contrastive import supervised_contrastive


def naive_contrastive(features, labels, temperature):
    """The mean over anchors that have a positive, each anchor in turn."""
    units = [row / row.square().sum().sqrt() for row in features]
    losses = []
    for i, anchor in enumerate(units):
        shares = {k: (anchor @ z / temperature).exp() for k, z in enumerate(units) if k != i}
        positives = [k for k in shares if labels[k] == labels[i]]
        if positives:
            total = sum(shares.values())
            losses.append(-sum((shares[k] / total).log() for k in positives) / len(positives))
    return sum(losses) / len(losses)


def drawn(samples, width):
    generator = torch.Generator().manual_seed(0)
    features = 3 * torch.randn(samples, width, dtype=torch.float64, generator=generator)
    return features.requires_grad_()


LABELS = {
    "one class has one sample": [3, 0, 3, 7, 0, 3, 0],
    "pairs": [1, 2, 1, 2],
    "one class": [5, 5, 5],
    "two samples": [4, 4],
}


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
def test_value_and_gradient_are_those_of_loops_over_anchors(labels, temperature):
    features, labels = drawn(len(labels), 5), torch.tensor(labels)
    losses = [f(features, labels, temperature) for f in (supervised_contrastive, naive_contrastive)]
    torch.testing.assert_close(*losses, rtol=1e-10, atol=1e-12)
    gradients = [torch.autograd.grad(loss, features)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_of_two_views_it_is_avalanches_loss_but_for_its_factor():
    features, labels = drawn(14, 5).detach().float(), torch.tensor([3, 0, 3, 7, 0, 3, 0])
    units = torch.nn.functional.normalize(features, dim=1)
    views = torch.stack([units[:7], units[7:]], 1)  # (samples, views, D)
    theirs = SCRLoss(temperature=0.1)(views, labels) * 0.07 / 0.1
    torch.testing.assert_close(supervised_contrastive(features, labels.repeat(2), 0.1), theirs)


def test_the_length_of_features_does_not_matter():
    features, labels = drawn(6, 4).detach(), torch.tensor([0, 1, 0, 1, 1, 2])
    lengths = torch.tensor([0.1, 3.0, 7.0, 1.0, 20.0, 0.5])[:, None]
    losses = [supervised_contrastive(f, labels, 0.5) for f in (features, features * lengths)]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("labels", [[2], [0, 1, 2], []])
def test_where_no_two_samples_share_a_label_it_is_0_and_has_no_gradient(labels):
    features = drawn(len(labels), 4)
    loss = supervised_contrastive(features, torch.tensor(labels, dtype=torch.long), 0.1)
    (gradient,) = torch.autograd.grad(loss, features)
    assert loss == 0
    assert not gradient.any()  # nan would count


def test_a_low_temperature_does_not_overflow():
    opposite = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    loss = supervised_contrastive(opposite, torch.tensor([0, 0, 1]), 1e-3)
    # Two anchors, of which each finds its positive at -1000 and the other sample at 0.
    assert loss.item() == pytest.approx(1000 + math.log1p(math.exp(-1000)))
