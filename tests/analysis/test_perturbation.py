"""Noise on weights: how large it is, that draws are averaged, and that nothing of it is left."""

import pytest
import torch
from torch import nn

from clplat.analysis.perturbation import perturbation_curve

SIZES = (0.0, 0.1, 1.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights() -> nn.Parameter:
    return nn.Parameter(3 + 0.2 * torch.randn(1, 1, 80, 80, generator=generator(9)))


def test_noise_is_as_large_as_a_multiple_of_the_weights_deviation():
    parameter = weights()
    trained = parameter.detach().clone()

    def deviation() -> float:
        return float((parameter.detach() - trained).std() / trained.std())

    curve = perturbation_curve(parameter, deviation, SIZES, 3, generator())
    torch.testing.assert_close(curve, torch.tensor([[s, s] for s in SIZES]), rtol=0.02, atol=1e-4)
    assert torch.equal(parameter, trained)


def test_the_curve_is_the_mean_over_draws_each_scaled_to_all_sizes():
    parameter, seen = weights(), []
    trained, answers = parameter.detach().clone(), iter(range(6))

    def accuracy() -> float:
        seen.append((parameter - trained).detach().clone())
        return float(next(answers))

    curve = perturbation_curve(parameter, accuracy, SIZES, 2, generator())
    assert curve[:, 1].tolist() == [(0 + 3) / 2, (1 + 4) / 2, (2 + 5) / 2]
    for draw in (seen[:3], seen[3:]):
        assert not draw[0].any()
        torch.testing.assert_close(10 * draw[1], draw[2], rtol=0, atol=1e-4)
    assert float(torch.corrcoef(torch.stack([seen[2].flatten(), seen[5].flatten()]))[0, 1]) < 0.1


def test_the_generator_alone_draws_the_noise():
    def values(seed: int) -> torch.Tensor:
        parameter = weights()
        return perturbation_curve(
            parameter, lambda: float(parameter.detach()[0, 0, 1, 2]), SIZES, 2, generator(seed)
        )

    before = torch.get_rng_state()
    assert torch.equal(values(1), values(1))
    assert not torch.equal(values(1), values(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_after_an_error_the_weights_are_the_trained_ones():
    parameter = weights()
    trained = parameter.detach().clone()

    def fail() -> float:
        if not torch.equal(parameter, trained):
            raise RuntimeError("inside")
        return 0.0

    with pytest.raises(RuntimeError, match="inside"):
        perturbation_curve(parameter, fail, SIZES, 1, generator())
    assert torch.equal(parameter, trained)
