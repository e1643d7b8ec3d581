"""Softmax attention written out, token by token; its recurrence against softmax over prefixes."""

import pytest
import torch
from torch import Tensor

from clplat.layers.attention import Aaren, CausalAttention, SlidingWindowAttention
from clplat.layers.layer import State
from tests.layers import naive
from tests.layers.compare import (
    CHECKS,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    made,
    sequence,
)

LAYERS = {
    "causal": lambda: CausalAttention(12, 2),
    "causal of odd heads": lambda: CausalAttention(12, 4),
    "window": lambda: SlidingWindowAttention(12, 2, 3),
    "window of one": lambda: SlidingWindowAttention(12, 2, 1),
    "window longer than the sequence": lambda: SlidingWindowAttention(12, 4, 30),
    "window with persistent tokens": lambda: SlidingWindowAttention(12, 2, 3, persistent=5),
    "aaren": lambda: Aaren(12, 2),
}


def naive_causal(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Its keys are held rotated, so those that a state brings are not turned again."""
    keys, values = ([], []) if state is None else (list(part.unbind(1)) for part in state)
    outputs = []
    for x_t in x.unbind(1):
        q, k, v = (naive.heads(p, layer.heads) for p in naive.linear(layer.input, x_t).chunk(3, 1))
        keys.append(naive.rotated(k, len(keys)))
        values.append(v)
        y = naive.attended(naive.rotated(q, len(keys) - 1), keys, values)
        outputs.append(naive.linear(layer.output, y.flatten(1)))
    return torch.stack(outputs, 1), (torch.stack(keys, 1), torch.stack(values, 1))


def prefixes(layer, x: Tensor) -> Tensor:
    """Aaren by the softmax of all scores up to each token."""
    k, v = (naive.heads(part, layer.heads) for part in naive.linear(layer.input, x).chunk(2, 2))
    scores = (k * layer.query).sum(-1) / layer.query.shape[1] ** 0.5  # (B, T, heads)
    outputs = []
    for t in range(1, x.shape[1] + 1):
        weight = scores[:, :t].softmax(1)
        outputs.append((weight[..., None] * v[:, :t]).sum(1).flatten(1))
    return naive.linear(layer.output, torch.stack(outputs, 1))


def naive_aaren(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    """Sums of exp(score) v and exp(score) as they are; the state holds exp(-m) of them."""
    if state is None:
        zero = x.new_zeros(len(x), layer.heads, layer.width // layer.heads + 1)
        state = zero, zero[..., 0] - torch.inf
    sums, m = state
    sums = sums * m.exp()[..., None]
    outputs = []
    for x_t in x.unbind(1):
        k, v = (naive.heads(p, layer.heads) for p in naive.linear(layer.input, x_t).chunk(2, 1))
        score = (k * layer.query).sum(-1) / layer.query.shape[1] ** 0.5
        sums = sums + score.exp()[..., None] * torch.cat([v, torch.ones_like(v[..., :1])], 2)
        outputs.append(naive.linear(layer.output, (sums[..., :-1] / sums[..., -1:]).flatten(1)))
        m = torch.maximum(m, score.detach())
    return torch.stack(outputs, 1), (sums * (-m).exp()[..., None], m)


def equations(name: str):
    if name.startswith("causal"):
        return naive_causal
    return naive_aaren if name == "aaren" else naive.window


@pytest.mark.parametrize("time", [1, 3, 7])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_the_softmax_written_out(name, time):
    assert_matches_twice(made(LAYERS[name]), equations(name), time, 5)


@pytest.mark.parametrize("name", ["causal", "window", "aaren"])
def test_from_any_state(name):
    generator = torch.Generator().manual_seed(1)
    keys, values = torch.randn(2, 2, 4, 2, 6, dtype=torch.float64, generator=generator)
    state = {
        "causal": (keys, values),
        "window": (keys[:, :2], values[:, :2], torch.tensor([1, 1000])),  # one real key, and two
        "aaren": (
            values[:, 0].new_ones(2, 2, 7) + values[:, :1, :, :1].transpose(1, 2)[..., 0] ** 2,
            torch.tensor([[0.5, -1.0], [3.0, 0.0]], dtype=torch.float64),
        ),
    }[name]
    assert_matches(made(LAYERS[name]), equations(name), sequence(12), state)


def test_aaren_is_softmax_over_each_prefix():
    layer, x = made(LAYERS["aaren"]), sequence(12, 9)
    torch.testing.assert_close(layer(x)[0], prefixes(layer, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("time", [1, 6, 7, 11])
@pytest.mark.parametrize("window", [1, 2, 3, 6, 20])
def test_a_window_is_a_masked_softmax(window, time):
    """By one mask over all pairs of tokens, of the projections that causal attention makes."""
    layer, x = made(lambda: SlidingWindowAttention(12, 2, window)), sequence(12, time)
    q, k, v = layer.input(x).unflatten(2, (3, 2, 6)).unbind(2)
    q, k = (torch.stack([naive.rotated(p[:, t], t) for t in range(time)], 1) for p in (q, k))
    distance = torch.arange(time)[:, None] - torch.arange(time)
    scores = torch.einsum("bthp,bshp->bhts", q, k) / 6**0.5
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    y = torch.einsum("bhts,bshp->bthp", scores.softmax(-1), v).flatten(2)
    torch.testing.assert_close(layer(x)[0], layer.output(y), rtol=1e-10, atol=1e-10)


def test_a_window_at_least_as_long_as_the_sequence_is_causal_attention():
    window, causal = (
        made(LAYERS["window longer than the sequence"]),
        made(lambda: CausalAttention(12)),
    )
    causal.load_state_dict(window.state_dict())
    x = sequence(12, 9)
    torch.testing.assert_close(window(x)[0], causal(x)[0], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["causal", "window"])
def test_only_distances_count(name):
    """Tokens that are not seen, put before a sequence, shift its positions and nothing else."""
    layer, x = made(LAYERS[name]), sequence(12)
    y, (keys, values, *_) = layer(x)
    if name == "window":
        shifted = layer(x, (0 * keys, 0 * values, torch.tensor([0, 0])))[0]
        torch.testing.assert_close(shifted, y, rtol=1e-10, atol=1e-10)
        front = sequence(12, 4, seed=1)
        later = layer(torch.cat([front, x], 1))[0][:, 4 + 2 :]
        torch.testing.assert_close(later, y[:, 2:], rtol=1e-10, atol=1e-10)
    else:
        with torch.no_grad():
            layer.input.weight[:12] = 0  # all scores alike: the mean of the values so far
        v = naive.linear(layer.input, x)[..., 24:]
        mean = v.cumsum(1) / torch.arange(1, 6)[:, None]
        expected = layer.output(mean)
        torch.testing.assert_close(layer(x)[0], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["window", "aaren"])
def test_has_a_state_that_does_not_grow(name):
    layer = made(LAYERS[name])
    expected = {"window": [(2, 2, 2, 6)] * 2 + [(2,)], "aaren": [(2, 2, 7), (2, 2)]}[name]
    assert_state(layer, *expected)


def test_has_the_documented_state_and_size():
    layer = made(LAYERS["causal"])
    assert_state(layer, (2, 1, 2, 6), (2, 1, 2, 6), time=1)
    _, state = layer(sequence(12, 4), layer(sequence(12))[1])
    assert [tuple(part.shape) for part in state] == [(2, 9, 2, 6)] * 2
    assert count(layer) == 4 * 12**2
    assert count(made(LAYERS["window"])) == 4 * 12**2
    assert count(made(LAYERS["window with persistent tokens"])) == 4 * 12**2 + 5 * 12
    assert count(made(LAYERS["aaren"])) == 3 * 12**2 + 12


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(LAYERS[name])


@pytest.mark.parametrize("kind", [CausalAttention, SlidingWindowAttention, Aaren])
def test_bad_arguments_are_named(kind):
    text = "heads=5 do not divide the width 12; choose a divisor of it"
    with pytest.raises(ValueError, match=text):
        kind(12, 5)
    with pytest.raises(ValueError, match="SlidingWindowAttention: window=0; expected at least 1"):
        SlidingWindowAttention(12, 2, 0)
