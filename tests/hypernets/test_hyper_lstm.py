"""HyperLSTM against its equations, sample by sample and gate by gate; and as an LSTM at first."""

import pytest
import torch
from torch import Tensor, nn

from clplat.errors import InputError
from hypernets.hyper_lstm import HyperLSTM, NormalisedCell
from tests.layers.compare import (
    CHECKS,
    assert_equal_results,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    made,
    results,
    sequence,
)
from tests.layers.naive import sigmoid

LAYERS = {
    "wide": lambda: HyperLSTM(7, 3, 2),
    "smallest": lambda: HyperLSTM(5, 2, 1),
    "small LSTM the larger": lambda: HyperLSTM(3, 11, 4),
}


def normalised(v: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """One vector, by the formula."""
    mean = sum(v) / len(v)
    variance = sum((entry - mean) ** 2 for entry in v) / len(v)
    return gain * (v - mean) / (variance + 1e-3) ** 0.5 + bias


def naive_cell(cell: NormalisedCell, sums: list[Tensor], c: Tensor) -> tuple[Tensor, Tensor]:
    """One sample: the four gates' sums, each (width,), and c -> h and c."""
    i, f, o, g = (normalised(sums[k], cell.gain[k, 0], cell.bias[k, 0]) for k in range(4))
    c = sigmoid(f) * c + sigmoid(i) * torch.tanh(g)
    return sigmoid(o) * torch.tanh(normalised(c, cell.cell_gain, cell.cell_bias)), c


def naive_token(layer: HyperLSTM, x: Tensor, h: Tensor, c: Tensor, s: Tensor, d: Tensor):
    """One token of one sample, each (width,): what h, c and the small LSTM's s, d become."""
    both = torch.cat([x, h])
    sums = [
        layer.hyper_input[k].T @ both + layer.hyper_recurrent[k].T @ s + layer.hyper_bias[k, 0]
        for k in range(4)
    ]
    s, d = naive_cell(layer.hyper_cell, sums, d)
    sums = []
    for k in range(4):
        z_x = layer.embed[k].T @ s + layer.embed_bias[k, 0]
        z_h = layer.embed[4 + k].T @ s + layer.embed_bias[4 + k, 0]
        z_b = layer.embed[8 + k].T @ s
        W = torch.diag(layer.scale[k].T @ z_x) @ layer.input[k].T  # rows scaled, as in the paper
        R = torch.diag(layer.scale[4 + k].T @ z_h) @ layer.recurrent[k].T
        sums.append(W @ x + R @ h + layer.shift[k].T @ z_b + layer.bias[k, 0])
    return *naive_cell(layer.cell, sums, c), s, d


def naive_hyper_lstm(layer: HyperLSTM, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    width, outputs, finals = layer.width, [], []
    for row, tokens in enumerate(x):
        packed = x.new_zeros(2, width + layer.hyper_width) if state is None else state[row]
        h, s, c, d = packed[0, :width], packed[0, width:], packed[1, :width], packed[1, width:]
        y = []
        for token in tokens:
            h, c, s, d = naive_token(layer, token, h, c, s, d)
            y.append(h)
        outputs.append(torch.stack(y))
        finals.append(torch.stack([torch.cat([h, s]), torch.cat([c, d])]))
    return torch.stack(outputs), torch.stack(finals)


def test_a_normalised_cell_is_an_lstm_between_norms_and_forgets_slowly_at_first():
    torch.manual_seed(0)
    cell, z, c = (
        NormalisedCell(5).double(),
        torch.randn(4, 1, 5).double(),
        torch.randn(1, 5).double(),
    )
    norm = nn.LayerNorm(5, eps=1e-3).double()
    i, f, o, g = norm(z).unbind()
    expected = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
    h, after = cell(z, c)
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(h, o.sigmoid() * norm(expected).tanh(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", LAYERS)
def test_equals_its_equations(name):
    assert_matches_twice(made(LAYERS[name]), naive_hyper_lstm)


def test_equals_its_equations_from_any_state_and_for_one_sample():
    layer = made(LAYERS["wide"])
    state = torch.randn(1, 2, 10, generator=torch.Generator().manual_seed(1)).double()
    assert_matches(layer, naive_hyper_lstm, sequence(7, 3)[:1], state)


def test_gradients_are_those_of_finite_differences():
    layer = made(lambda: HyperLSTM(3, 2, 1))
    x, state = sequence(3, 2), sequence(5, 2, seed=1)
    names, parameters = zip(*layer.named_parameters(), strict=True)

    def run(x: Tensor, state: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(names, values, strict=True))
        return torch.func.functional_call(layer, named, (x, state))

    leaves = [part.detach().requires_grad_() for part in (x, state, *parameters)]
    assert torch.autograd.gradcheck(run, leaves)


def test_is_at_first_a_normalised_lstm_whose_variance_bound_is_100_times_as_large():
    """LN(0.1 u) with 0.001 = LN(u) with 0.1: all scales are 0.1, whatever the small LSTM says."""
    torch.manual_seed(0)
    layer = HyperLSTM(7, 3, 4).double()

    def plain(layer, x, state):
        h, c = x.new_zeros(2, len(x), 7)
        y = []
        for token in x.unbind(1):
            u = [token @ layer.input[k] + h @ layer.recurrent[k] for k in range(4)]
            i, f, o, g = (nn.functional.layer_norm(part, (7,), eps=0.1) for part in u)
            c = (f + 1).sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * nn.functional.layer_norm(c, (7,), eps=1e-3).tanh()
            y.append(h)
        return torch.stack(y, 1), layer(x, state)[1].detach()

    def whole(layer, x, state):
        y, after = layer(x, state)
        return y, after.detach()

    x = sequence(7, 9)
    found, expected = (results(run, layer, x, None) for run in (whole, plain))
    shared = {"y", "gradient of x", "gradient of input", "gradient of recurrent"}
    ours, theirs = ({key: r[key] for key in shared} for r in (found, expected))
    assert_equal_results(ours, theirs, 1e-6)  # 0.1 is stored in float32
    assert found["gradient of embed"].any()  # so it does not stay one


def test_begins_as_the_paper_says():
    torch.manual_seed(0)
    layer = HyperLSTM(6, 5, 4)
    for weights in (layer.input, layer.recurrent, layer.hyper_input, layer.hyper_recurrent):
        for weight in weights:  # of inputs by outputs, at least as many
            torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]))
    assert not torch.equal(layer.input[0], layer.input[1])
    assert not layer.embed[:8].any()
    assert 0.005 < layer.embed[8:].std() < 0.015
    assert layer.embed_bias.eq(1).all()
    assert layer.scale.eq(0.1 / 4).all()
    for bias in (layer.shift, layer.bias, layer.hyper_bias):
        assert not bias.any()
    for cell in (layer.cell, layer.hyper_cell):
        assert cell.gain.eq(1).all()
        assert cell.bias[:, 0].mean(1).tolist() == [0, 1, 0, 0]


def test_the_small_lstm_changes_weights_by_what_it_has_read():
    """Two pasts that leave the same h and c, but not the same s, answer the next token unlike."""
    layer, x = made(LAYERS["wide"]), sequence(7, 1)
    state = sequence(10, 2, seed=1)
    other = state.clone()
    other[:, :, 7:] += 1
    assert not torch.allclose(layer(x, state)[0], layer(x, other)[0], atol=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_has_the_documented_state_and_size(name):
    layer = LAYERS[name]().double()
    width, H, E = layer.width, layer.hyper_width, layer.scale.shape[1]
    assert_state(layer, (2, 2, width + H))
    sizes = 8 * width * (width + H) + 4 * H**2
    assert count(layer) == sizes + (12 * E + 14) * (width + H) + 8 * E
    y, state = layer(sequence(width))
    torch.testing.assert_close(y[:, -1], state[:, 0, :width], rtol=0, atol=0)


def test_holds_its_state_in_float32_at_least():
    layer = HyperLSTM(7, 3, 2)
    for dtype, least in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        y, state = layer.to(dtype)(sequence(7).to(dtype))
        assert (y.dtype, state.dtype) == (dtype, least)


def test_autocast_lowers_what_is_read_and_no_more():
    torch.manual_seed(0)
    layer = HyperLSTM(7, 3, 2)
    with torch.no_grad():  # products with x are 0, in any precision
        layer.input.zero_()
        layer.hyper_input[:, :7] = 0
    x, state = sequence(7, 9).float(), sequence(10, 2, seed=1).float()
    with torch.autocast("cpu", torch.bfloat16):
        y, after = layer(x, state)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(after, layer(x, state)[1], rtol=0, atol=0)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(LAYERS[name])


def test_draws_and_answers_the_same_from_the_same_seed():
    answers = []
    for _ in range(2):
        torch.manual_seed(3)
        answers.append(HyperLSTM(7, 3, 2)(sequence(7).float())[0])
    assert torch.equal(*answers)


def test_bad_arguments_are_named():
    for given in (0, 1):
        text = f"backbone.layer.hyper_width={given}: expected at least 2; raise it"
        with pytest.raises(InputError, match=text):
            HyperLSTM(7, given)
    text = "backbone.layer.embedding=-1: expected at least 1; raise it"
    with pytest.raises(InputError, match=text):
        HyperLSTM(7, 3, -1)
    text = r"HyperLSTM: the state has shape \(2, 2, 9\); expected \(2, 2, 10\)"
    with pytest.raises(ValueError, match=text):
        HyperLSTM(7, 3)(torch.zeros(2, 1, 7), torch.zeros(2, 2, 9))
