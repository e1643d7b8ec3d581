"""Which weights are recurrent, their mean, and that others in their place leave no trace."""

import math

import pytest
import torch
from torch import nn

from clplat.analysis.weights import mean_recurrent_weight, recurrent_weights, replaced
from clplat.layers.gated import MinGRU
from clplat.layers.recurrent import GRU, LSTM, SLSTM, LeakyRNN


@pytest.mark.parametrize("gates", [1, 3])
def test_the_mean_leaves_out_what_joins_a_unit_to_itself(gates):
    weights = torch.randn(1, gates, 7, 7, generator=torch.Generator().manual_seed(0))
    values = [
        float(weights[0, g, i, j])
        for g in range(gates)
        for i in range(7)
        for j in range(7)
        if i != j
    ]
    assert mean_recurrent_weight(weights) == pytest.approx(sum(values) / len(values), abs=1e-6)


def test_one_unit_has_no_other():
    assert math.isnan(mean_recurrent_weight(torch.ones(1, 1, 1, 1)))


def test_layers_whose_output_is_what_units_hear_have_recurrent_weights():
    for layer in (LeakyRNN(4), GRU(4), LSTM(4)):
        assert recurrent_weights(layer) is layer.recurrent
    assert recurrent_weights(SLSTM(4, heads=1)) is None  # what it puts out is normalised
    assert recurrent_weights(MinGRU(4)) is None


def test_the_parameter_is_its_own_again_after_the_context_and_after_an_error():
    parameter = nn.Parameter(torch.randn(5, 3))
    before = parameter.detach().clone()
    with replaced(parameter, torch.zeros(5, 3)):
        assert not parameter.any()
    assert torch.equal(parameter, before)

    def fail() -> None:
        with replaced(parameter, parameter.detach() + 0.1):
            assert not torch.equal(parameter, before)
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(parameter, before)
    assert parameter.requires_grad
