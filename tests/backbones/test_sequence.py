"""The sequence model against its blocks written out; what it reads, in which order, and pools."""

import pytest
import torch
from torch import Tensor, nn

from clplat.backbones.sequence import Block, SequenceModel
from clplat.errors import InputError
from clplat.layers.attention import SlidingWindowAttention
from clplat.layers.gated import MinGRU
from clplat.layers.layer import Layer, State
from clplat.layers.linear_attention import MLSTM, RetNet
from clplat.layers.ssm import LRU

LAYERS = [MinGRU, lambda width: SlidingWindowAttention(width, 2, 3), lambda width: MLSTM(width, 2)]


class Named(Layer):
    """A layer that shows which one it is: adds its number, and counts tokens in its state."""

    def __init__(self, width: int, number: float):
        super().__init__(width)
        self.number = number

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        taken = 0 if state is None else state
        return torch.full_like(x, self.number), taken + x.shape[1]


def model(shape: tuple[int, ...] = (7, 3), layer=MinGRU, **settings) -> SequenceModel:
    torch.manual_seed(0)
    return SequenceModel(shape, layer, width=8, **settings).double()


def series(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, *shape, dtype=torch.float64, generator=generator)


def normed(norm: nn.RMSNorm, x: Tensor) -> Tensor:
    return norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()


# --- what it reads -----------------------------------------------------------------------------


def test_an_images_pixels_are_read_in_rows_from_the_top():
    encoder, x = model((3, 2, 4), pooling="none"), series(3, 2, 4)
    pixels = [x[:, :, row, column] for row in range(2) for column in range(4)]
    expected = torch.stack([encoder.input(pixel) for pixel in pixels], 1)
    torch.testing.assert_close(encoder.embed(x), expected, rtol=0, atol=1e-12)
    assert encoder(x).shape == (2, 8, 8)  # (B, H * W, width)


def test_a_series_of_numbers_is_one_of_vectors_of_one():
    numbers, vectors = model((7,)), model((7, 1))
    x = series(7)
    assert torch.equal(numbers(x), vectors(x[..., None]))


def test_tokens_are_looked_up():
    encoder = model((5,), vocabulary=4)
    x = torch.tensor([[0, 3, 1, 1, 2]])
    for tokens in (x, x.to(torch.uint8), x.double()):
        assert torch.equal(encoder.embed(tokens)[0], encoder.input.weight[x[0]])


@pytest.mark.parametrize(("shape", "vocabulary"), [((7, 3), None), ((7,), None), ((7,), 5)])
@pytest.mark.parametrize("time", [1, 12])
def test_a_series_or_tokens_may_be_of_any_length(shape, vocabulary, time):
    encoder = model(shape, vocabulary=vocabulary)
    x = series(time, *shape[1:])
    x = x if vocabulary is None else x.abs().long()
    assert encoder(x).shape == (2, 8)


# --- blocks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("expansion", [0, 3])
def test_equals_its_blocks_written_out(expansion):
    encoder, x = model(layer=LAYERS, depth=4, expansion=expansion, pooling="none"), series(7, 3)
    h = x @ encoder.input.weight.T + encoder.input.bias
    for block in encoder.blocks:
        h = h + block.layer(normed(block.norm, h))[0]
        if expansion:
            norm, up, _, down, _ = block.perceptron
            inner = normed(norm, h) @ up.weight.T + up.bias
            assert inner.shape[-1] == expansion * 8
            inner = inner * (1 + torch.erf(inner / 2**0.5)) / 2
            h = h + inner @ down.weight.T + down.bias
        else:
            assert block.perceptron is None
    torch.testing.assert_close(encoder(x), normed(encoder.norm, h), rtol=1e-10, atol=1e-10)


def test_layers_are_gone_through_in_turn_and_over_again():
    encoder = model(layer=LAYERS, depth=5)
    kinds = [type(block.layer) for block in encoder.blocks]
    assert kinds == [MinGRU, SlidingWindowAttention, MLSTM, MinGRU, SlidingWindowAttention]
    assert encoder.blocks[0].layer is not encoder.blocks[3].layer


def test_a_block_adds_what_its_layer_gives():
    x = series(4, 8).float()
    y, state = Block(Named(8, 2.5), 8, 0, 0.0)(x, 3)
    assert torch.equal(y, x + 2.5)
    assert state == 7


def test_drops_in_training_only():
    encoder, x = model(layer=lambda width: Named(width, 1.0), dropout=0.5), series(7, 3)
    encoder.eval()
    assert torch.equal(encoder(x), encoder(x))
    encoder.train()
    assert not torch.equal(encoder(x), encoder(x))
    given, block = torch.zeros(50, 40, 8), Block(Named(8, 1.0), 8, 0, 0.25)
    added = block.train()(given)[0]  # what is kept makes up for what is not
    torch.testing.assert_close(added.unique(), torch.tensor([0, 4 / 3]))
    assert abs((added == 0).float().mean().item() - 0.25) < 0.02
    assert torch.equal(block.eval()(given)[0], torch.ones_like(given))


def test_dropout_is_also_on_what_the_perceptron_adds():
    block, x = Block(Named(8, 0.0), 8, 2, 0.25), series(50, 8).float()
    kept = (block.eval()(x)[0] - x) / 0.75
    changed = block.train()(x)[0] - x
    dropped = changed == 0
    assert abs(dropped.float().mean().item() - 0.25) < 0.05
    torch.testing.assert_close(changed[~dropped], kept[~dropped], rtol=1e-3, atol=1e-5)


def test_without_dropout_training_changes_nothing():
    encoder, x = model(layer=LAYERS), series(7, 3)
    assert torch.equal(encoder.train()(x), encoder.eval()(x))


# --- pooling and states ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pooling", "pool"),
    [("last", lambda h: h[:, -1]), ("mean", lambda h: h.mean(1)), ("none", lambda h: h)],
)
def test_pools_the_features_of_all_positions(pooling, pool):
    encoder, x = model(layer=LAYERS, pooling=pooling), series(7, 3)
    h, _ = encoder.unroll(x)
    assert h.shape == (2, 7, 8)
    assert torch.equal(encoder(x), pool(h))
    assert encoder(x).shape[-1] == encoder.width


@pytest.mark.parametrize("cut", [1, 4, 6])
def test_unroll_from_states_is_forward(cut):
    layers = [*LAYERS, LRU, lambda width: RetNet(width, 2)]
    encoder, x = model(layer=layers, depth=5, pooling="none"), series(7, 3)
    first, states = encoder.unroll(x[:, :cut])
    assert len(states) == 5
    then, _ = encoder.unroll(x[:, cut:], states)
    torch.testing.assert_close(torch.cat([first, then], 1), encoder(x), rtol=1e-10, atol=1e-10)


def test_every_blocks_state_comes_back_in_order():
    layers = [lambda width, n=n: Named(width, n) for n in (1.0, 2.0)]
    _, states = model(layer=layers).unroll(series(4, 3), [10, 20])
    assert states == [14, 24]


def test_a_gradient_reaches_every_parameter():
    encoder, x = model(layer=LAYERS, depth=3), series(7, 3).requires_grad_()
    encoder(x).square().sum().backward()
    assert x.grad.any()
    unreached = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_works_in_half_precision():
    encoder, x = model(layer=LAYERS, depth=3).float(), series(7, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        y = encoder(x)
    expected = encoder(x)
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.1)
    y.float().square().sum().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters())
    y = encoder.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=0, atol=0.1)


# --- bad arguments -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"pooling": "max"}, "pooling='max'; expected last, mean or none"),
        ({"depth": 0}, "depth=0; expected at least 1"),
        ({"layer": []}, "layer is an empty list; expected at least one layer"),
        ({"shape": ()}, r"input_shape=\(\); expected an image \(C, H, W\), a series \(T, D\) or"),
        ({"shape": (1, 2, 3, 4)}, r"input_shape=\(1, 2, 3, 4\); expected an image \(C, H, W\)"),
        ({"shape": (5, 3), "vocabulary": 4}, r"tokens have the shape \(T,\); got \(5, 3\)"),
        ({"layer": lambda width: MLSTM(width, 3)}, "heads=3 do not divide the width 8; choose"),
        ({"dropout": 1.5}, "dropout probability has to be between 0 and 1"),
    ],
)
def test_bad_arguments_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        model(**settings)


def test_a_vocabulary_too_small_for_the_data_is_told():
    model = SequenceModel((5,), MinGRU, width=8, vocabulary=2)
    with pytest.raises(
        InputError, match=r"backbone.vocabulary=2: the data has tokens from 0 to 4; set backbone.vo"
    ):
        model(torch.arange(5.0)[None])
