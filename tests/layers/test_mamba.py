"""Selective state spaces against loops over the papers' equations."""

import pytest
import torch
from torch import Tensor

from clplat.layers.layer import State
from clplat.layers.mamba import Mamba, Mamba2
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
    "mamba": lambda: Mamba(8, 3),
    "mamba wide": lambda: Mamba(20, 2, expansion=1, convolution=2),  # 20 / 16 rounded up: rank 2
    "mamba with negative eigenvalues": lambda: Mamba(8, 3, negative_eigenvalues=True),
    "mamba2": lambda: Mamba2(8, 4, 3),
    "mamba2 of one head": lambda: Mamba2(8, 1, 3, expansion=1, convolution=1),
}


def naive_mamba(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    convolved, h = (None, None) if state is None else state
    inner = layer.output.in_features
    x, z = naive.linear(layer.input, x).split(inner, 2)
    x, convolved = naive.convolution(layer.convolution, x, convolved)
    A = -layer.log_decay.exp()
    size = A.shape[1]
    h = x.new_zeros(len(x), inner, size) if h is None else h
    outputs = []
    for x_t, z_t in zip(x.unbind(1), z.unbind(1), strict=True):
        low, B, C = naive.linear(layer.selection, x_t).split([layer.sizes[0], size, size], 1)
        dt = naive.softplus(naive.linear(layer.step_size, low))
        decay = (dt[:, :, None] * A).exp()  # (B, E, N)
        if layer.negative_eigenvalues:
            decay = 2 * decay - 1
        h = decay * h + (dt * x_t)[:, :, None] * B[:, None]
        y = (h * C[:, None]).sum(2) + layer.skip * x_t
        outputs.append(naive.linear(layer.output, y * naive.silu(z_t)))
    return torch.stack(outputs, 1), (convolved, h)


def naive_mamba2(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    convolved, S = (None, None) if state is None else state
    inner, count = layer.output.in_features, layer.heads
    size = layer.sizes[2]
    projected = naive.linear(layer.input, x)
    z, dt = projected[..., :inner], naive.softplus(projected[..., -count:] + layer.step_bias)
    mixed, convolved = naive.convolution(layer.convolution, projected[..., inner:-count], convolved)
    S = x.new_zeros(len(x), count, size, inner // count) if S is None else S
    outputs = []
    for t in range(x.shape[1]):
        x_t, B, C = mixed[:, t].split([inner, size, size], 1)
        x_t, reads, written = naive.heads(x_t, count), [], []
        for head in range(count):
            decay = torch.exp(-dt[:, t, head] * layer.log_decay[head].exp())
            value = dt[:, t, head, None] * x_t[:, head]
            new = decay[:, None, None] * S[:, head] + torch.einsum("bn,bp->bnp", B, value)
            reads.append(torch.einsum("bnp,bn->bp", new, C) + layer.skip[head] * x_t[:, head])
            written.append(new)
        S = torch.stack(written, 1)
        y = torch.cat(reads, 1) * naive.silu(z[:, t])
        outputs.append(naive.linear(layer.output, naive.rms_norm(layer.norm, y)))
    return torch.stack(outputs, 1), (convolved, S)


def equations(name: str):
    return naive_mamba2 if name.startswith("mamba2") else naive_mamba


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_loop_over_the_equations(name, time):
    assert_matches_twice(made(LAYERS[name]), equations(name), time)


@pytest.mark.parametrize("name", ["mamba", "mamba with negative eigenvalues", "mamba2"])
def test_from_any_state(name):
    layer, generator = made(LAYERS[name]), torch.Generator().manual_seed(1)
    _, state = layer(sequence())
    state = tuple(torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in state)
    assert_matches(layer, equations(name), sequence(), state)


def mamba_size(width: int, state: int, expansion: int = 2, convolution: int = 4) -> int:
    inner, rank = expansion * width, -(-width // 16)
    return 3 * width * inner + inner * (2 * rank + 3 * state + convolution + 3)


def mamba2_size(width: int, heads: int, state: int, expansion: int = 2, taps: int = 4) -> int:
    inner = expansion * width
    projections = width * (3 * inner + 2 * state + heads)
    return projections + (inner + 2 * state) * (taps + 1) + 3 * heads + inner


@pytest.mark.parametrize(
    ("name", "states", "parameters"),
    [
        ("mamba", [(2, 3, 16), (2, 16, 3)], mamba_size(8, 3)),
        ("mamba wide", [(2, 1, 20), (2, 20, 2)], mamba_size(20, 2, 1, 2)),
        ("mamba2", [(2, 3, 16 + 2 * 3), (2, 4, 3, 4)], mamba2_size(8, 4, 3)),
        ("mamba2 of one head", [(2, 0, 8 + 2 * 3), (2, 1, 3, 8)], mamba2_size(8, 1, 3, 1, 1)),
    ],
)
def test_has_the_documented_state_and_size(name, states, parameters):
    layer = made(LAYERS[name])
    assert_state(layer, *states)
    assert count(layer) == parameters


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(LAYERS[name])


@pytest.mark.parametrize("kind", [lambda: Mamba(64), lambda: Mamba2(64, 64)])
def test_step_sizes_begin_in_range(kind):
    torch.manual_seed(0)
    layer = kind()
    bias = layer.step_size.bias if isinstance(layer, Mamba) else layer.step_bias
    dt = naive.softplus(bias.detach().double())
    assert 0.001 * 0.999 <= dt.min() < 0.002
    assert 0.05 < dt.max() <= 0.1 * 1.001


def test_mambas_decays_begin_at_the_integers():
    expected = torch.arange(1.0, 5.0).expand(16, 4)
    torch.testing.assert_close(Mamba(8, 4).log_decay.exp().detach(), expected)


@pytest.mark.parametrize("negative", [False, True])
def test_only_negative_eigenvalues_turn_a_state_over(negative):
    """With large steps the decay is 0, or -1: the sign of a state then alternates."""
    layer = made(lambda: Mamba(8, 3, negative_eigenvalues=negative))
    with torch.no_grad():
        layer.step_size.bias.fill_(100.0)
        layer.selection.weight.zero_()  # nothing is written
    convolved = torch.zeros(2, 3, 16, dtype=torch.float64)
    state = torch.ones(2, 16, 3, dtype=torch.float64)
    for t in range(4):
        _, (convolved, state) = layer.step(sequence()[:, t], (convolved, state))
        expected = torch.full_like(state, (-1.0) ** (t + 1) if negative else 0.0)
        torch.testing.assert_close(state, expected, rtol=0, atol=1e-10)


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="heads=3 do not divide the width 16; choose a divisor"):
        Mamba2(8, 3)
