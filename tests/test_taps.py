"""A tap reads what passes, gradients included, and nothing after it is closed."""

import copy

import pytest
import torch
from torch import nn

from clplat.taps import Tap


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))


def test_the_value_is_the_modules_output(model):
    tap, x = Tap(model[1]), torch.randn(4, 3)
    model(x)
    assert torch.equal(tap.take(), model[1](model[0](x)))


def test_gradients_flow_through_the_value(model):
    tap, x = Tap(model[1]), torch.randn(4, 3)
    model(x)
    tap.take().square().sum().backward()
    expected = torch.autograd.grad(model[1](model[0](x)).square().sum(), model[0].parameters())
    assert torch.equal(model[0].weight.grad, expected[0])
    assert torch.equal(model[0].bias.grad, expected[1])
    assert model[2].weight.grad is None


def test_a_tap_does_not_change_what_the_model_computes(model):
    x = torch.randn(4, 3)
    before = model(x)
    Tap(model[1])
    assert torch.equal(model(x), before)


def test_the_latest_of_several_passes_is_kept(model):
    tap, first, second = Tap(model[1]), torch.randn(4, 3), torch.randn(2, 3)
    model(first)
    model(second)
    assert torch.equal(tap.take(), model[1](model[0](second)))


def test_a_value_is_handed_over_once(model):
    tap = Tap(model[1])
    model(torch.randn(4, 3))
    tap.take()
    with pytest.raises(RuntimeError, match="nothing has passed through the tapped module since"):
        tap.take()


def test_before_any_pass_there_is_nothing_to_take(model):
    with pytest.raises(RuntimeError, match="nothing has passed through the tapped module since"):
        Tap(model[1]).take()


def test_a_closed_tap_drops_its_value_and_reads_no_more(model):
    tap = Tap(model[1])
    model(torch.randn(4, 3))
    tap.close()
    assert tap.value is None
    model(torch.randn(4, 3))
    assert tap.value is None


def test_closing_one_tap_leaves_another_on_the_same_module(model):
    one, other, x = Tap(model[1]), Tap(model[1]), torch.randn(4, 3)
    one.close()
    model(x)
    assert one.value is None
    assert torch.equal(other.take(), model[1](model[0](x)))


def test_a_tapped_model_can_be_copied_and_the_copy_does_not_reach_the_tap(model):
    tap, x = Tap(model[1]), torch.randn(4, 3)
    model(x)
    copied = copy.deepcopy(model)
    copied(torch.randn(2, 3))
    assert tap.take().shape == (4, 5)
    assert torch.equal(copied(x), model(x))


def test_the_copy_of_a_tapped_model_keeps_no_activations(model):
    Tap(model[1])
    copied = copy.deepcopy(model)
    copied(torch.randn(4, 3))
    (hook,) = copied[1]._forward_hooks.values()
    assert hook.__self__.value is None
