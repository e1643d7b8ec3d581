"""The conditional VAE: its terms by torch's distributions, its bound by loops, its samples."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from strategies.conditional_vae import ConditionalVAE, divergence, reconstruction

INPUTS, CLASSES, LATENT = 5, 3, 2


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def made(hidden=7):
    torch.manual_seed(0)
    return ConditionalVAE(INPUTS, CLASSES, hidden, LATENT).double()


def test_the_reconstruction_is_the_density_at_its_likeliest_deviation():
    x, decoded = drawn(6, INPUTS), drawn(6, INPUTS, seed=1)

    def negative_density(deviation):
        return -Normal(decoded, deviation).log_prob(x).sum(1).mean()

    likeliest = (x - decoded).square().mean().sqrt()
    constant = 0.5 * INPUTS * (math.log(2 * math.pi) + 1)
    torch.testing.assert_close(reconstruction(x, decoded) + constant, negative_density(likeliest))
    for factor in (0.9, 1.1):
        assert negative_density(factor * likeliest) > negative_density(likeliest)


def test_samples_met_exactly_have_a_finite_loss_and_gradient():
    x = drawn(4, INPUTS).requires_grad_()
    loss = reconstruction(x, x.detach())
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(0.5 * INPUTS * math.log(1e-6))
    assert not gradient.any()


def test_the_divergence_is_that_of_torchs_distributions():
    mean, log_variance, prior = (drawn(6, LATENT, seed=k) for k in range(3))
    expected = kl_divergence(Normal(mean, (log_variance / 2).exp()), Normal(prior, 1.0))
    torch.testing.assert_close(divergence(mean, log_variance, prior), expected.sum(1).mean())
    assert divergence(prior, 0 * prior, prior) == 0


def test_the_bound_is_that_of_a_loop_over_samples_with_gradients():
    vae, x, noise = made(), drawn(6, INPUTS), drawn(6, LATENT, seed=1)
    labels = torch.tensor([0, 2, 2, 1, 0, 2])
    first, second = vae.encoder[0], vae.encoder[2]
    errors, total, means = [], 0, []
    for row, label, eps in zip(x, labels, noise, strict=True):
        hidden = (first.weight @ row + first.bias).clamp_min(0)
        code = second.weight @ hidden + second.bias
        m, v = code[:LATENT], code[LATENT:]
        z = m + (v.exp() ** 0.5) * eps
        code = torch.cat([z, torch.eye(CLASSES).double()[label]])
        back = (vae.decoder[0].weight @ code + vae.decoder[0].bias).clamp_min(0)
        errors.append((vae.decoder[2].weight @ back + vae.decoder[2].bias - row) ** 2)
        kl = kl_divergence(Normal(m, (v / 2).exp()), Normal(vae.prior[label], 1.0))
        total, means = total + kl.sum() / 6, [*means, m]
    expected = total + INPUTS / 2 * torch.stack(errors).mean().log()
    found, found_means = vae.negative_elbo(x, labels, noise)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found_means, torch.stack(means))
    parameters = list(vae.parameters())
    pairs = zip(
        torch.autograd.grad(found, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    )
    for a, b in pairs:
        assert b.any()
        torch.testing.assert_close(a, b)


def test_samples_are_decoded_from_the_priors_of_their_classes():
    vae, labels, noise = made(), torch.tensor([2, 0, 0]), drawn(3, LATENT)
    found = vae.generate(labels, noise)
    assert not found.requires_grad
    for row, label, eps in zip(found, labels, noise, strict=True):
        code = torch.cat([vae.prior[label] + eps, torch.eye(CLASSES).double()[label]])
        torch.testing.assert_close(row, vae.decoder(code).detach())


def test_fitted_to_three_clusters_it_makes_samples_of_the_class_that_is_asked_for():
    centres = torch.tensor([[1.0, 0, 0, 0, 2], [0, -1, 1, 0, 0], [0, 0, 0, 3, 0]])
    labels = torch.arange(3).repeat(20)
    x = centres[labels] + 0.1 * drawn(60, INPUTS).float()
    vae = made().float()
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.02)
    torch.manual_seed(0)
    for _ in range(300):
        loss, _ = vae.negative_elbo(x, labels, torch.randn(60, LATENT))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    made_up = vae.generate(labels, torch.randn(60, LATENT))
    assert (torch.cdist(made_up, centres).argmin(1) == labels).float().mean() > 0.9
