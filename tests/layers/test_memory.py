"""Memories that learn while read, against loops with torch's gradient of the inner loss."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clplat.layers.memory import TTTMLP, Gates, Memora, Moneta, TitansMemory, TTTLinear, Yaad
from tests.layers import naive
from tests.layers.compare import (
    CHECKS,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    every_parameter_learns,
    leaves,
    made,
    mapped,
    sequence,
    works_in_half_precision,
)


def huber(threshold: float) -> Callable[[Tensor], Tensor]:
    def loss(e: Tensor) -> Tensor:
        far = threshold * (e.abs() - threshold / 2)
        return torch.where(e.abs() <= threshold, e.square() / 2, far).sum()

    return loss


def power(p: float) -> Callable[[Tensor], Tensor]:
    return lambda e: (e.abs() ** p).sum() / p


def by_norm(q: float) -> Callable[[Tensor], Tensor]:
    """A / ||A||_q^(q - 2), of each matrix."""

    def retain(A: Tensor) -> Tensor:
        norm = (A.abs() ** q).sum((-2, -1), keepdim=True) ** (1 / q)
        return A / norm ** (q - 2)

    return retain


def columns(A: Tensor) -> Tensor:
    """The softmax over the input axis."""
    return A.exp() / A.exp().sum(-2, keepdim=True)


# Of a chunk: the layer, its inner loss, its retention.
LAYERS = {
    "ttt linear": (lambda chunk: TTTLinear(8, 2, chunk), naive.squared, None),
    "ttt mlp": (lambda chunk: TTTMLP(8, 2, chunk, hidden=3), naive.squared, None),
    "titans": (lambda chunk: TitansMemory(8, 2, chunk), naive.squared, None),
    "moneta": (lambda chunk: Moneta(8, 2, chunk), power(3), by_norm(4)),
    "moneta of other powers": (
        lambda chunk: Moneta(8, 1, chunk, p=2.5, q=3.0),
        power(2.5),
        by_norm(3),
    ),
    "yaad": (lambda chunk: Yaad(8, 2, chunk, threshold=0.3), huber(0.3), None),
    "yaad that trusts": (lambda chunk: Yaad(8, 2, chunk, threshold=1e6), naive.squared, None),
    "memora": (lambda chunk: Memora(8, 2, chunk), naive.squared, columns),
}


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_loop_with_the_gradient_of_its_inner_loss(name, chunk):
    make, loss, retain = LAYERS[name]
    equations = lambda layer, x, state: naive.memory(layer, x, state, loss, retain)  # noqa: E731
    assert_matches_twice(made(lambda: make(chunk)), equations, 5, 4)


@pytest.mark.parametrize("name", ["ttt linear", "titans", "moneta", "memora"])
def test_from_any_state(name):
    make, loss, retain = LAYERS[name]
    layer, generator = made(lambda: make(4)), torch.Generator().manual_seed(1)
    _, state = layer(sequence(time=6))
    assert state[1][3] == 2  # two tokens into the second chunk
    draw = lambda p: torch.randn(p.shape, dtype=p.dtype, generator=generator)  # noqa: E731
    equations = lambda layer, x, state: naive.memory(layer, x, state, loss, retain)  # noqa: E731
    assert_matches(layer, equations, sequence(time=5), mapped(state, draw))


def test_with_a_chunk_of_one_ttt_linear_is_the_delta_rule():
    """W - theta k^T (k W - v) = (1 - theta k k^T) W + theta k v^T, with k of unit length."""
    layer, x = made(lambda: TTTLinear(8, 1, 1)), sequence()
    _, (_, (W, *_)) = layer(x)
    inner, _ = naive.convolution(layer.convolution, naive.linear(layer.input, x), None)
    S = layer.weights[0].expand(2, 1, 8, 8)[:, 0]
    for t in range(5):
        _, k, v = inner[:, t].chunk(3, 1)
        k, theta = naive.unit(k), naive.inner_gates(layer, x[:, t])[0][..., None]
        turn = torch.eye(8, dtype=x.dtype) - theta * k[:, :, None] * k[:, None]
        S = turn @ S + theta * k[:, :, None] * v[:, None]
    torch.testing.assert_close(W[0][:, 0], S, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("chunk", [1, 3])
def test_memoras_columns_are_distributions(chunk):
    _, (_, (_, _, anchor, _)) = made(lambda: Memora(8, 2, chunk))(sequence(time=6))
    for matrix in anchor:
        assert (matrix > 0).all()
        torch.testing.assert_close(matrix.sum(-2), torch.ones_like(matrix[..., 0, :]))


def test_monetas_memory_is_normalised_where_a_chunk_ends():
    _, (_, (A, _, anchor, position)) = made(lambda: Moneta(8, 2, 3))(sequence(time=6))
    assert position == 0
    for accumulated, met in zip(A, anchor, strict=True):
        # ||M||_q = ||A||_q^(3 - q)
        norms = [(m.abs() ** 4).sum((-2, -1)) ** (1 / 4) for m in (accumulated, met)]
        torch.testing.assert_close(norms[1], norms[0] ** (3 - 4))


def test_a_token_that_does_not_fit_moves_yaad_no_further_than_its_threshold():
    moved = {}
    for threshold in (0.5, 1e6):
        layer = made(lambda threshold=threshold: Yaad(8, 1, 1, threshold=threshold))
        with torch.no_grad():
            layer.input.weight[16:] *= 1e3  # values far beyond what the memory answers
            layer.gates.decay.bias.fill_(100.0)
            _, (_, (A, *_)) = layer(sequence(time=1))
        moved[threshold] = (A[1] - layer.weights[1]).abs().max().item()
    assert moved[0.5] < 2 < 20 < moved[1e6]


MEMORY_OF = {
    "ttt linear": [(2, 2, 4, 4)],
    "ttt mlp": [(2, 2, 4, 12), (2, 2, 12, 4)],
    "titans": [(2, 2, 4, 8), (2, 2, 8, 4)],
    "moneta": [(2, 2, 4, 8), (2, 2, 8, 4)],
    "yaad": [(2, 2, 4, 8), (2, 2, 8, 4)],
    "memora": [(2, 2, 4, 8), (2, 2, 8, 4)],
}


@pytest.mark.parametrize("name", MEMORY_OF)
def test_has_the_documented_state_and_size(name):
    layer = made(lambda: LAYERS[name][0](3))
    assert_state(layer, (2, 3, 24), *3 * MEMORY_OF[name])
    hidden = {"ttt linear": 0.5, "ttt mlp": 3}.get(name, 2)
    gates = {"ttt linear": 1, "ttt mlp": 1, "titans": 3}.get(name, 2)
    small = 24 * 5 + gates * 2 * 9 + 4  # convolution, gates by head, norm
    assert count(layer) == 5 * 8**2 + 2 * hidden * 8**2 / 2 + small


@pytest.mark.parametrize("check", CHECKS[:-1])  # gates at extremes: one by one, further down
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    # Averages over as few channels as here cancel, and with them what half precision holds.
    wide = name == "memora" and check is works_in_half_precision
    check(lambda: Memora(32, 2, 3) if wide else LAYERS[name][0](3))


@pytest.mark.parametrize("name", LAYERS)
def test_learns_where_each_token_is_a_chunk(name):
    every_parameter_learns(lambda: LAYERS[name][0](1))


GATES = [
    (name, gate)
    for name, (make, *_) in LAYERS.items()
    for gate, linear in make(3).gates.named_children()
]


@pytest.mark.parametrize(("name", "gate"), GATES)
@pytest.mark.parametrize("bias", [-200.0, 200.0])
def test_a_gate_open_or_shut_for_good_gives_no_nan(name, gate, bias):
    layer = made(lambda: LAYERS[name][0](3))
    with torch.no_grad():
        getattr(layer.gates, gate).bias.fill_(bias)
    # Moneta divides by a norm, which a memory that is emptied at each token takes towards zero.
    emptied = name.startswith("moneta") and gate == "decay" and bias < 0
    y, state = layer(sequence(time=8 if emptied else 64))
    y.sum().backward()
    assert y.isfinite().all()
    assert all(part.isfinite().all() for part in leaves(state))
    assert all(p.grad.isfinite().all() for p in layer.parameters() if p.grad is not None)


@pytest.mark.parametrize("chunk", [1, 2, 16])
def test_a_chunks_steps_sum_to_one_at_first_and_to_two_at_most(chunk):
    gates = Gates(8, 2, chunk, momentum=False, decay=True)
    rate, momentum, decay = gates(torch.zeros(1, 1, 8))
    gates.rate.bias.data.fill_(100.0)
    most, *_ = gates(torch.zeros(1, 1, 8))
    assert momentum is None
    assert (decay > 0.98).all()
    # The biases of a linear layer are drawn at random, at most 1 / sqrt(8).
    torch.testing.assert_close(rate, torch.full((1, 1, 2), 1 / chunk), rtol=0.2, atol=0)
    torch.testing.assert_close(most, torch.full((1, 1, 2), 2 / chunk))


@pytest.mark.parametrize("kind", [TTTLinear, TTTMLP, TitansMemory, Moneta, Yaad, Memora])
def test_bad_arguments_are_named(kind):
    with pytest.raises(ValueError, match="heads=3 do not divide the width 8; choose a divisor"):
        kind(8, 3)
    with pytest.raises(ValueError, match="chunk is 65; expected 1 to 64"):
        kind(8, 2, 65)
    with pytest.raises(ValueError, match="chunk is 0; expected 1 to 64"):
        kind(8, 2, 0)
    _, state = kind(8, 2, 16)(sequence(time=6).float())
    with pytest.raises(ValueError, match="at position 6 of a chunk of 4; go on with the chunk"):
        kind(8, 2, 4)(sequence().float(), state)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Moneta(8, 2, p=0.5), "loss_parameter is 0.5; lp takes a power of at least 1"),
        (lambda: Moneta(8, 2, q=0.5), "retention_parameter is 0.5; lq takes a norm of at least 1"),
        (lambda: Yaad(8, 2, threshold=0.0), "huber clamps to a positive number"),
    ],
)
def test_bad_powers_are_named(make, text):
    with pytest.raises(ValueError, match=text):
        make()
