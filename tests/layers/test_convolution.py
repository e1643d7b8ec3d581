"""The short convolution against a loop over time and taps."""

import pytest
import torch

from clplat.layers.convolution import ShortConvolution
from tests.layers import naive
from tests.layers.compare import (
    CHECKS,
    assert_matches_twice,
    assert_state,
    count,
    made,
    sequence,
)


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("time", [1, 2, 7])
def test_equals_a_loop_over_taps(size, time):
    assert_matches_twice(made(lambda: ShortConvolution(5, size)), naive.convolution, time)


def test_is_causal_and_forgets_what_is_older_than_its_size():
    layer, x = made(lambda: ShortConvolution(3, 3)), sequence(3, 8)
    changed = x.clone()
    changed[:, 4] += 1
    differs = (layer(x)[0] != layer(changed)[0]).all(0).all(1)
    assert differs.tolist() == [4 <= t < 7 for t in range(8)]


def test_state_is_the_last_inputs_and_parameters_are_taps_and_a_bias():
    layer, x = made(lambda: ShortConvolution(5, 4)), sequence(5, 6)
    assert_state(layer, (2, 3, 5))
    assert torch.equal(layer(x)[1], x[:, 3:])
    assert count(layer) == 5 * 4 + 5


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="a convolution of size 0; expected at least 1"):
        ShortConvolution(5, 0)


@pytest.mark.parametrize("check", CHECKS)
def test_is_as_every_layer_is(check):
    check(lambda: ShortConvolution(5, 4))
