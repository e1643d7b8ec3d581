"""Delta-rule layers against loops that multiply by the matrices of their docstrings."""

import pytest
import torch
from torch import Tensor

from clplat.layers.delta import DeltaNet, DeltaProduct, GatedDeltaNet
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
    "deltanet": lambda: DeltaNet(8, 2),
    "deltanet that reflects": lambda: DeltaNet(8, 1, negative_eigenvalues=True, convolution=2),
    "gated": lambda: GatedDeltaNet(8, 2),
    "gated that reflects": lambda: GatedDeltaNet(8, 4, negative_eigenvalues=True),
    "product of two": lambda: DeltaProduct(8, 2),
    "product of three with decay": lambda: DeltaProduct(8, 2, householder=3, decay=True),
    "product of one": lambda: DeltaProduct(8, 2, householder=1, negative_eigenvalues=False),
}
REFLECTS = {"deltanet that reflects", "gated that reflects", "product of two"}
REFLECTS.add("product of three with decay")


def naive_delta(layer, x: Tensor, state: State, doubled: bool) -> tuple[Tensor, State]:
    """With the matrix I - beta k k^T written out, for each of a token's keys and values."""
    convolved, S = (None, None) if state is None else state
    width, n, count = layer.width, layer.householder, layer.heads
    inner, convolved = naive.convolution(layer.convolution, naive.linear(layer.input, x), convolved)
    per = width // count
    S = x.new_zeros(len(x), count, per, per) if S is None else S
    one = torch.eye(per, dtype=x.dtype)
    outputs = []
    for t, x_t in enumerate(x.unbind(1)):
        parts = [naive.heads(part, count) for part in inner[:, t].split(width, 1)]
        q, keys, values = parts[0], parts[1 : 1 + n], parts[1 + n :]
        beta = (2 if doubled else 1) * naive.sigmoid(naive.linear(layer.beta, x_t))
        if layer.decay is not None:
            rate = naive.softplus(naive.linear(layer.decay, x_t))
            S = torch.exp(-layer.log_rate.exp() * rate)[..., None, None] * S
        for i in range(n):
            k, b = naive.unit(keys[i]), beta[:, i * count : (i + 1) * count, None, None]
            turn = one - b * k[..., :, None] * k[..., None, :]
            S = turn @ S + b * k[..., :, None] * values[i][..., None, :]
        y = torch.einsum("bhij,bhi->bhj", S, naive.unit(q))
        y = naive.rms_norm(layer.norm, y).flatten(1)
        if layer.decay is not None:
            y = y * naive.silu(naive.linear(layer.gate, x_t))
        outputs.append(naive.linear(layer.output, y))
    return torch.stack(outputs, 1), (convolved, S)


def equations(name: str):
    return lambda layer, x, state: naive_delta(layer, x, state, name in REFLECTS)


@pytest.mark.parametrize("time", [1, 6])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_loop_over_the_equations(name, time):
    assert_matches_twice(made(LAYERS[name]), equations(name), time)


@pytest.mark.parametrize("name", LAYERS)
def test_from_any_state(name):
    layer, generator = made(LAYERS[name]), torch.Generator().manual_seed(1)
    _, state = layer(sequence())
    state = tuple(torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in state)
    assert_matches(layer, equations(name), sequence(), state)


@pytest.mark.parametrize(
    ("name", "states", "leading"),
    [
        ("deltanet", [(2, 3, 24), (2, 2, 4, 4)], 4 * 8**2 + 3 * 4 * 8),
        ("deltanet that reflects", [(2, 1, 24), (2, 1, 8, 8)], 4 * 8**2 + 3 * 2 * 8),
        ("gated", [(2, 3, 24), (2, 2, 4, 4)], 5 * 8**2 + 3 * 4 * 8),
        ("product of two", [(2, 3, 40), (2, 2, 4, 4)], 6 * 8**2 + 5 * 4 * 8),
        ("product of one", [(2, 3, 24), (2, 2, 4, 4)], 4 * 8**2 + 3 * 4 * 8),
    ],
)
def test_has_the_documented_state_and_size(name, states, leading):
    layer = made(LAYERS[name])
    assert_state(layer, *states)
    small = layer.convolution.width + layer.norm.weight.numel()  # the bias of the convolution
    small += layer.householder * layer.heads * 9  # beta
    small += 0 if layer.decay is None else layer.heads * 10
    assert count(layer) == leading + small


def test_a_products_decay_and_gate_are_the_fifth_square():
    plain, decaying = made(LAYERS["product of two"]), made(lambda: DeltaProduct(8, 2, decay=True))
    assert count(decaying) - count(plain) == 8**2 + 2 * 10


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(LAYERS[name])


# --- what the rule is for ----------------------------------------------------------------------


def written_once(negative: bool, bias: float) -> tuple[Tensor, Tensor, Tensor]:
    """The state before and after a token whose beta is fixed by `bias`, and its unit key."""
    layer = made(lambda: DeltaNet(8, 1, negative_eigenvalues=negative))
    x = sequence(time=2)
    with torch.no_grad():
        layer.beta.weight.zero_()
        layer.beta.bias.fill_(bias)
        layer.convolution.bias[16:] = 0
        layer.input.weight[16:] = 0  # values of 0: the token only turns the state
        _, (convolved, _) = layer.step(x[:, 0])
        state = torch.randn(2, 1, 8, 8, dtype=x.dtype, generator=torch.Generator().manual_seed(3))
        _, (_, after) = layer.step(x[:, 1], (convolved, state))
        inner, _ = naive.convolution(layer.convolution, naive.linear(layer.input, x), None)
    return state[:, 0], after[:, 0], naive.unit(inner[:, 1, 8:16])


def test_with_beta_of_two_a_write_reflects():
    before, after, k = written_once(True, 50.0)
    content = lambda S: torch.einsum("bij,bi->bj", S, k)  # noqa: E731
    torch.testing.assert_close(content(after), -content(before), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(  # a reflection keeps lengths, and what is orthogonal to its key
        after.norm(dim=1), before.norm(dim=1), rtol=1e-10, atol=1e-10
    )
    across = torch.eye(8, dtype=k.dtype) - k[:, :, None] * k[:, None, :]
    torch.testing.assert_close(across @ after, across @ before, rtol=1e-10, atol=1e-10)


def test_with_beta_of_one_a_write_erases_what_its_key_held():
    before, after, k = written_once(False, 50.0)
    held = torch.einsum("bij,bi->bj", after, k)
    torch.testing.assert_close(held, torch.zeros_like(held), rtol=0, atol=1e-10)
    assert not torch.allclose(before, after)


def test_with_beta_of_nought_a_token_changes_nothing():
    before, after, _ = written_once(True, -1000.0)
    torch.testing.assert_close(after, before, rtol=0, atol=1e-10)


def test_a_product_of_one_is_deltanet():
    product, net = made(LAYERS["product of one"]), made(LAYERS["deltanet"], seed=1)
    net.load_state_dict(product.state_dict())
    x = sequence()
    torch.testing.assert_close(product(x), net(x), rtol=0, atol=0)


@pytest.mark.parametrize("kind", [DeltaNet, GatedDeltaNet, DeltaProduct])
def test_bad_arguments_are_named(kind):
    text = "heads=3 do not divide the width 8; choose a divisor of it"
    with pytest.raises(ValueError, match=text):
        kind(8, 3)
    with pytest.raises(ValueError, match="a convolution of size 0; expected at least 1"):
        kind(8, 2, convolution=0)
    with pytest.raises(ValueError, match="householder=0 steps a token; expected at least 1"):
        DeltaProduct(8, 2, householder=0)
