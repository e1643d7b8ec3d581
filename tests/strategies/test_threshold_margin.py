"""Thresholds, the margin loss and the losses it is compared with, against plain loops."""

import math

import pytest
import torch

from strategies.threshold_margin import divergence, l1, l2, threshold_margin, thresholds


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def holes(*shape):
    """A mask with tokens and padding, one row all padding."""
    mask = torch.rand(*shape, generator=torch.Generator().manual_seed(5)) < 0.6
    mask[0] = False
    return mask


def tokens(shape, mask):
    """Places of (B, T) that count."""
    return [(b, t) for b in range(shape[0]) for t in range(shape[1]) if mask is None or mask[b, t]]


def relu(value):
    return value if value > 0 else 0 * value


def naive_margin(states, stored, low, high, mask):
    """The definition, entry by entry."""
    terms = []
    for b, t in tokens(states.shape, mask):
        for d in range(states.shape[2]):
            p, h = states[b, t, d], float(stored[b, t, d])
            if h <= float(low[d]):
                term = relu(p - low[d])
            elif h >= float(high[d]):
                term = relu(high[d] - p)
            else:
                term = relu(p - high[d]) + relu(low[d] - p)
            if float(term.detach()) != 0:
                terms.append(term)
    return sum(terms) / len(terms) if terms else 0 * states.sum()


MASKS = [None, holes(3, 5)]


@pytest.mark.parametrize("mask", MASKS)
def test_thresholds_are_one_deviation_from_the_mean_of_all_tokens(mask):
    states = 2 * normal(3, 5, 7) + 1
    low, high = thresholds(states, mask)
    for d in range(7):
        values = [float(states[b, t, d]) for b, t in tokens(states.shape, mask)]
        mean = math.fsum(values) / len(values)
        std = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / len(values))
        assert float(low[d]) == pytest.approx(mean - std, rel=1e-12)
        assert float(high[d]) == pytest.approx(mean + std, rel=1e-12)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("drift", [0.1, 1.0, 5.0])
def test_the_margin_has_the_value_and_gradient_of_its_definition(mask, drift):
    stored = normal(3, 5, 7)
    low, high = -0.8 + 0.1 * normal(7, seed=1), 0.8 + 0.1 * normal(7, seed=2)
    states = (stored + drift * normal(3, 5, 7, seed=3)).requires_grad_()
    loss = threshold_margin(states, stored, low, high, mask)
    expected = naive_margin(states, stored, low, high, mask)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert loss.item() > 0
    gradients = [torch.autograd.grad(value, states)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=1e-15)


def test_the_margin_of_each_range_by_hand():
    low, high = torch.tensor([-1.0]), torch.tensor([2.0])
    cases = [  # stored, present, how far it has left
        (-1.5, -1.2, 0.0),
        (-1.0, -0.5, 0.5),  # at the threshold itself
        (-3.0, 4.0, 5.0),
        (2.0, 1.75, 0.25),
        (2.5, 9.0, 0.0),
        (5.0, -3.0, 5.0),
        (0.0, 1.9, 0.0),
        (0.0, 2.5, 0.5),
        (1.0, -1.5, 0.5),
    ]
    for stored, present, left in cases:
        pair = (torch.full((1, 1, 1), v) for v in (present, stored))
        assert float(threshold_margin(*pair, low, high)) == left
    present, stored = (torch.tensor([[[case[i]] for case in cases]]) for i in (1, 0))
    loss = threshold_margin(present, stored, low, high)
    assert float(loss) == pytest.approx((0.5 + 5 + 0.25 + 5 + 0.5 + 0.5) / 6)  # of 9 entries


def test_a_dimension_that_never_changed_may_only_fall():
    """With a deviation of 0 a state is at both thresholds, and the lower one is asked first."""
    level = torch.ones(1, 1, 1)
    low = high = torch.ones(1)
    assert float(threshold_margin(level - 3, level, low, high)) == 0
    assert float(threshold_margin(level + 3, level, low, high)) == 3


@pytest.mark.parametrize("mask", MASKS)
def test_states_that_have_not_moved_cost_nothing_and_pull_nowhere(mask):
    stored = normal(3, 5, 7)
    low, high = thresholds(stored, mask)
    for loss_of in (
        lambda states: threshold_margin(states, stored, low, high, mask),
        lambda states: l1(states, stored, mask),
        lambda states: l2(states, stored, mask),
    ):
        states = stored.clone().requires_grad_()
        loss = loss_of(states)
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, states)[0].any()
    assert float(divergence(stored, stored, mask)) == 0


def test_what_padding_holds_does_not_count():
    mask = holes(3, 5)
    stored, states = normal(3, 5, 7), normal(3, 5, 7, seed=1)
    low, high = -torch.ones(7), torch.ones(7)
    for loss_of in (
        lambda p, h: threshold_margin(p, h, low, high, mask),
        lambda p, h: l1(p, h, mask),
        lambda p, h: l2(p, h, mask),
        lambda p, h: divergence(p, h, mask),
    ):
        kept = loss_of(states, stored)
        assert float(kept) > 0
        changed = torch.where(mask[..., None], states, 100 * states)
        assert torch.equal(loss_of(changed, stored), kept)


def test_texts_of_nothing_but_padding_cost_nothing():
    stored, states = normal(3, 5, 7), normal(3, 5, 7, seed=1).requires_grad_()
    mask, low, high = torch.zeros(3, 5, dtype=torch.bool), -torch.ones(7), torch.ones(7)
    for loss in (
        threshold_margin(states, stored, low, high, mask),
        l1(states, stored, mask),
        l2(states, stored, mask),
        divergence(states, stored, mask),
    ):
        assert float(loss.detach()) == 0
        assert not torch.autograd.grad(loss, states)[0].any()


@pytest.mark.parametrize("mask", MASKS)
def test_the_compared_losses_are_means_over_tokens(mask):
    stored, states = normal(3, 5, 7), normal(3, 5, 7, seed=1)
    rows = tokens(states.shape, mask)
    pairs = [(states[place].tolist(), stored[place].tolist()) for place in rows]
    absolute = sum(abs(p - h) for new, old in pairs for p, h in zip(new, old, strict=True))
    squared = sum((p - h) ** 2 for new, old in pairs for p, h in zip(new, old, strict=True))
    assert float(l1(states, stored, mask)) == pytest.approx(absolute / (7 * len(rows)), rel=1e-12)
    assert float(l2(states, stored, mask)) == pytest.approx(squared / (7 * len(rows)), rel=1e-12)


@pytest.mark.parametrize("mask", MASKS)
def test_the_divergence_is_from_the_old_answers_at_temperature_2(mask):
    logits, stored = 3 * normal(3, 5, 7), 3 * normal(3, 5, 7, seed=1)
    total, rows = 0.0, tokens(logits.shape, mask)
    for place in rows:
        new, old = ([math.exp(z / 2) for z in row[place].tolist()] for row in (logits, stored))
        p, q = ([e / math.fsum(row) for e in row] for row in (new, old))
        total += sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True))
    assert float(divergence(logits, stored, mask)) == pytest.approx(total / len(rows), rel=1e-10)
