"""Silent units, held against a loop over steps that sets their activity to 0."""

from functools import partial

import pytest
import torch
from torch.nn.functional import leaky_relu

from clplat.analysis.ablation import ablation_curve, silenced
from clplat.backbones.recurrent import Recurrent
from clplat.layers.recurrent import GRU, LSTM, SLSTM, LeakyRNN

UNITS = torch.tensor([5, 0, 2])
SUM = partial(LeakyRNN, activation="leaky_relu", activates="sum")


def encoder_of(layer) -> Recurrent:
    torch.manual_seed(0)
    return Recurrent((9, 2), layer, width=7).double()


def strings() -> torch.Tensor:
    return torch.randn(3, 9, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def leaky_steps(encoder: Recurrent, x: torch.Tensor) -> torch.Tensor:
    """The paper's equation, unit after unit, with some silent."""
    layer: LeakyRNN = encoder.layer  # type: ignore[assignment]
    tau, h = layer.tau.clamp(min=1), x.new_zeros(len(x), 7)
    for t in range(x.shape[1]):
        z = layer.input(encoder.input(x[:, t])) + h @ layer.recurrent[0, 0]
        if layer.activates == "sum":
            h = leaky_relu((1 - 1 / tau) * h + z / tau)
        else:
            h = (1 - 1 / tau) * h + torch.tanh(z) / tau
        h = h.index_fill(1, UNITS, 0)
    return h


def gated_steps(encoder: Recurrent, x: torch.Tensor) -> torch.Tensor:
    """The layer step by step; h comes first in its state."""
    state, y = None, torch.empty(0)
    for t in range(x.shape[1]):
        y, state = encoder.layer.step(encoder.input(x[:, t]), state)
        h = state if state.ndim == 2 else state[:, 0]
        h[:, UNITS] = 0
    return y.index_fill(1, UNITS, 0)


@pytest.mark.parametrize(
    ("layer", "steps"),
    [(LeakyRNN, leaky_steps), (SUM, leaky_steps), (GRU, gated_steps), (LSTM, gated_steps)],
    ids=["input", "sum", "gru", "lstm"],
)
@torch.no_grad()
def test_silent_units_are_0_at_every_step(layer, steps):
    encoder, x = encoder_of(layer), strings()
    expected, whole = steps(encoder, x), encoder(x)
    with silenced(encoder, UNITS):
        found = encoder(x)
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found, whole.index_fill(1, UNITS, 0))  # the others miss them
    assert torch.equal(encoder(x), whole)


def test_no_unit_silenced_changes_nothing():
    encoder, x = encoder_of(LSTM), strings()
    with silenced(encoder, UNITS[:0]):
        found = encoder(x)
    assert torch.equal(found, encoder(x))


@torch.no_grad()
def test_in_a_compiled_encoder_they_are_silent_too():
    encoder, x = encoder_of(LeakyRNN), strings()
    expected = leaky_steps(encoder, x)
    encoder.compile(backend="eager")
    whole = encoder(x)
    for units in (torch.tensor([1, 3, 4]), UNITS, torch.tensor([6])):
        with silenced(encoder, units):
            found = encoder(x)
        assert (found == 0).all(0).nonzero()[:, 0].tolist() == units.sort().values.tolist()
        if units is UNITS:
            torch.testing.assert_close(found, expected)
    assert torch.equal(encoder(x), whole)


def test_after_an_error_all_units_are_heard_again():
    encoder, x = encoder_of(GRU), strings()
    before, weights = encoder(x), encoder.layer.recurrent.clone()  # type: ignore[operator]

    def fail() -> None:
        with silenced(encoder, UNITS):
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(encoder(x), before)
    assert torch.equal(encoder.layer.recurrent, weights)  # type: ignore[arg-type]


def test_layers_without_weights_from_unit_to_unit_are_refused():
    encoder = encoder_of(partial(SLSTM, heads=1))
    with (
        pytest.raises(ValueError, match="SLSTM has no recurrent weights from unit to unit; expec"),
        silenced(encoder, UNITS),
    ):
        pass


def test_a_curve_silences_a_share_of_the_units_in_their_order():
    encoder, x, order = encoder_of(LeakyRNN), strings(), torch.tensor([3, 6, 1, 0, 5, 2, 4])
    silent = []

    def accuracy() -> float:
        features = encoder(x)
        silent.append(set((features == 0).all(0).nonzero()[:, 0].tolist()))
        return 1 - len(silent[-1]) / 10

    curve = ablation_curve(encoder, accuracy, order, [0, 0.05, 0.4, 1])
    assert silent == [set(), set(), {3, 6, 1}, set(range(7))]  # of 7 units 0.05 is none
    torch.testing.assert_close(curve, torch.tensor([[0, 1], [0.05, 1], [0.4, 0.7], [1, 0.3]]))
