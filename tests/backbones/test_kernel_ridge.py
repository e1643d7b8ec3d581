"""Random Fourier features and ridge regression against closed forms and loops in float64."""

import math

import pytest
import torch

from clplat.backbones.kernel_ridge import random_features, ridge


def drawn(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=dtype, generator=generator)


@pytest.mark.parametrize("count", [1, 7])
def test_random_features_are_those_of_a_loop(count):
    z, omega, b = drawn(5, 3), drawn(count, 3, seed=1), drawn(count, seed=2)
    expected = [
        [
            math.sqrt(2 / count)
            * math.cos(sum(o * v for o, v in zip(row, sample, strict=True)) + c)
            for row, c in zip(omega.tolist(), b.tolist(), strict=True)
        ]
        for sample in z.tolist()
    ]
    torch.testing.assert_close(random_features(z, omega, b), torch.tensor(expected).double())


@pytest.mark.parametrize("bandwidth", [0.5, 2.0])
def test_products_of_random_features_come_near_the_gaussian_kernel(bandwidth):
    z = 0.5 * drawn(6, 4)
    omega = drawn(20000, 4, seed=1) / bandwidth
    generator = torch.Generator().manual_seed(2)
    phases = 2 * math.pi * torch.rand(20000, dtype=torch.float64, generator=generator)
    phi = random_features(z, omega, phases)
    gaussian = (-torch.cdist(z, z).square() / (2 * bandwidth**2)).exp()
    torch.testing.assert_close(phi @ phi.T, gaussian, rtol=0, atol=0.04)


def test_features_and_coefficients_have_the_gradients_of_finite_differences():
    z, omega, b = drawn(4, 3), drawn(5, 3, seed=1), drawn(5, seed=2)
    assert torch.autograd.gradcheck(random_features, [t.requires_grad_() for t in (z, omega, b)])
    half, targets = drawn(4, 5, seed=3), drawn(4, 2, seed=4)
    strength = torch.tensor(0.3, dtype=torch.float64)
    inputs = [t.requires_grad_() for t in (half, targets, strength)]
    assert torch.autograd.gradcheck(lambda a, y, s: ridge(a @ a.T, y, s), inputs)


@pytest.mark.parametrize("samples", [1, 3, 9])
def test_coefficients_are_those_of_an_inverse(samples):
    phi, targets = drawn(samples, 4), drawn(samples, 2, seed=1)
    kernel, strength = phi @ phi.T, torch.tensor(0.11, dtype=torch.float64)
    expected = (kernel + 0.11 * torch.eye(samples, dtype=torch.float64)).inverse() @ targets
    torch.testing.assert_close(ridge(kernel, targets, strength), expected)


def test_dual_and_primal_agree():
    """phi^T (phi phi^T + s I)^-1 Y = (phi^T phi + s I)^-1 phi^T Y."""
    phi, targets = drawn(9, 4), drawn(9, 2, seed=1)
    dual = phi.T @ ridge(phi @ phi.T, targets, torch.tensor(0.5).double())
    primal = torch.linalg.lstsq(phi.T @ phi + 0.5 * torch.eye(4).double(), phi.T @ targets)
    torch.testing.assert_close(dual, primal.solution)


def test_twins_in_the_coreset_are_solved_for_in_float64():
    """So near to singular that float32 alone would lose half of the digits."""
    phi = drawn(3, 4, dtype=torch.float32).repeat(8, 1)
    kernel, targets = phi @ phi.T, drawn(24, 2, seed=1, dtype=torch.float32)
    strength = torch.tensor(1e-4)
    found = ridge(kernel, targets, strength)
    assert found.dtype == torch.float32
    exact = (kernel.double() + strength.double() * torch.eye(24).double()).inverse()
    expected = (exact @ targets.double()).float()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
