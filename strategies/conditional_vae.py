"""A variational autoencoder whose prior is a Gaussian for each class (after Kingma et al. 2014).

q(z|x) = N(m(x), diag exp(v(x))), p(z|y) = N(mu_y, I) with mu_y learned,
p(x|z,y) = N(f(z,y), s^2 I) with s^2 the batch's mean squared error, the likeliest (Rybkin et al.
2021). Less a constant, -ELBO = N/2 log s^2 + mean over samples of KL(q(z|x) || p(z|y)).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

LEAST = 1e-6  # of s^2: samples that are all alike have no likeliest one


def reconstruction(x: Tensor, decoded: Tensor) -> Tensor:
    """N/2 log s^2 of inputs (B, N)."""
    return 0.5 * x.shape[1] * (x - decoded).square().mean().clamp(min=LEAST).log()


def divergence(mean: Tensor, log_variance: Tensor, prior: Tensor) -> Tensor:
    """KL of N(mean, diag exp(log_variance)) from N(prior, I), all (B, L); mean over B."""
    terms = log_variance.exp() + (mean - prior).square() - 1 - log_variance
    return 0.5 * terms.sum(1).mean()


class ConditionalVAE(nn.Module):
    """Inputs (B, N) to latents (B, L) and back, each way through one hidden layer."""

    def __init__(self, inputs: int, classes: int, hidden: int, latent: int):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent + classes, hidden), nn.ReLU(), nn.Linear(hidden, inputs)
        )
        self.prior = nn.Parameter(torch.randn(classes, latent))  # mu

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance, (B, L) each."""
        mean, log_variance = self.encoder(x).chunk(2, 1)
        return mean, log_variance

    def decode(self, latents: Tensor, labels: Tensor) -> Tensor:
        """Means of p(x|z,y): (B, L) and (B,) to (B, N)."""
        return self.decoder(torch.cat([latents, one_hot(labels, len(self.prior))], 1))

    def negative_elbo(self, x: Tensor, labels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Of (B, N), (B,) and standard normal noise (B, L); also the means of q (B, L)."""
        mean, log_variance = self.encode(x)
        decoded = self.decode(mean + (0.5 * log_variance).exp() * noise, labels)
        loss = reconstruction(x, decoded) + divergence(mean, log_variance, self.prior[labels])
        return loss, mean

    @torch.no_grad()
    def generate(self, labels: Tensor, noise: Tensor) -> Tensor:
        """An input of each label, the mean of p(x|z,y): (B,) and (B, L) to (B, N)."""
        return self.decode(self.prior[labels] + noise, labels)
