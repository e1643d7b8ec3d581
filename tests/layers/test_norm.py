"""The norms against their formulas, and where there is next to nothing to divide by."""

import pytest
import torch

from clplat.layers.norm import RMSNorm, unit
from tests.layers.compare import sequence


def test_rms_norm_divides_by_the_root_mean_square():
    norm, x = RMSNorm(8).double(), sequence()
    with torch.no_grad():
        norm.weight.copy_(torch.linspace(-1, 2, 8))
    expected = norm.weight * x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
def test_rms_norm_is_the_same_function_in_every_dtype(scale):
    """What is near nothing too: a bound by the dtype would make 1e-4 differ."""
    wide = (scale * sequence()).requires_grad_()
    narrow = wide.detach().float().requires_grad_()
    for norm, x in ((RMSNorm(8).double(), wide), (RMSNorm(8), narrow)):
        norm(x).square().sum().backward()
    torch.testing.assert_close(
        RMSNorm(8)(narrow).double(), RMSNorm(8).double()(wide), rtol=1e-5, atol=1e-6
    )
    torch.testing.assert_close(narrow.grad.double(), wide.grad, rtol=1e-4, atol=1e-5)


def test_under_autocast_the_norm_takes_half_and_gives_half():
    norm, x = RMSNorm(8), sequence().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, norm(x.float()).bfloat16())


def test_unit_vectors_have_length_one_but_where_there_is_next_to_nothing():
    x = sequence()
    torch.testing.assert_close(unit(x).norm(dim=-1), torch.ones(2, 5).double())
    torch.testing.assert_close(unit(x) * x.norm(dim=-1, keepdim=True), x)
    short = 1e-5 * x / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(unit(short), short / 1e-3)
    nothing = torch.zeros(3, 4, dtype=torch.float64, requires_grad=True)
    unit(nothing).sum().backward()
    torch.testing.assert_close(nothing.grad, torch.full((3, 4), 1e3, dtype=torch.float64))
