"""Rotary embedding against a product of complex numbers."""

import pytest
import torch

from clplat.layers.rotary import positions, rotate
from tests.layers import naive


def vectors(width: int, seed: int, time: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, time, 3, width, dtype=torch.float64, generator=generator)


def at(x: torch.Tensor, position: int) -> torch.Tensor:
    return rotate(x, torch.full(x.shape[:2], position))


@pytest.mark.parametrize("width", [1, 2, 5, 8])
@pytest.mark.parametrize("start", [0, 1000])
def test_turns_pairs_as_complex_numbers(width, start):
    x = vectors(width, 0).requires_grad_()
    position, _ = positions(x, torch.full((2,), start))
    expected = torch.stack([naive.rotated(x[:, t], start + t) for t in range(6)], 1)
    ours = rotate(x, position)
    torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    weight = vectors(width, 1)
    gradients = [torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("width", [5, 8])
def test_a_product_depends_on_the_distance_alone(width):
    q, k = vectors(width, 0, 1), vectors(width, 1, 1)
    products = [(at(q, 7 + shift) * at(k, 3 + shift)).sum(-1) for shift in (0, 1, 50, 5000)]
    for other in products[1:]:
        torch.testing.assert_close(other, products[0], rtol=1e-9, atol=1e-9)
    assert not torch.allclose((at(q, 7) * at(k, 4)).sum(-1), products[0])


def test_keeps_lengths_the_start_and_an_odd_last_channel():
    x = vectors(7, 0)
    position, _ = positions(x, None)
    y = rotate(x, position)
    torch.testing.assert_close(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-12, atol=0)
    assert torch.equal(y[:, 0], x[:, 0])
    assert torch.equal(y[..., -1], x[..., -1])


def test_the_base_sets_the_slowest_turn():
    x = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64).reshape(1, 1, 1, 4)
    turned = rotate(x, torch.tensor([[3]]), base=16.0)
    expected = torch.tensor([3.0, 3 / 4], dtype=torch.float64)  # 16^(-1/2) = 1/4
    torch.testing.assert_close(turned.flatten(), torch.cat([expected.cos(), expected.sin()]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_far_positions_keep_their_angle_at_any_precision(dtype):
    x = vectors(8, 0, 1)
    exact = at(x, 12345)
    torch.testing.assert_close(
        at(x.to(dtype), 12345).double(), exact, rtol=0, atol=16 * torch.finfo(dtype).eps
    )


def test_positions_go_on_from_the_count_of_each_sequence():
    x = torch.zeros(2, 3, 4)
    position, taken = positions(x, None)
    assert position.tolist() == [[0, 1, 2]] * 2
    position, taken = positions(x, taken + torch.tensor([0, 7]))
    assert position.tolist() == [[3, 4, 5], [10, 11, 12]]
    assert taken.tolist() == [6, 13]
