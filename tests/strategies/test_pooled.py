"""Pooled outputs and their distances against loops over single activations in float64."""

import math

import pytest
import torch

from strategies.pooled import pod_flat, pod_spatial, pooled


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def naive_pooled(one):
    """Of one sample's map (C, H, W): its sums of squares in a list of unit length."""
    channels, height, width = one.shape
    sums = []
    for c in range(channels):
        for row in range(height):
            sums.append(sum(float(one[c, row, k]) ** 2 for k in range(width)))
    for c in range(channels):
        for column in range(width):
            sums.append(sum(float(one[c, k, column]) ** 2 for k in range(height)))
    length = math.sqrt(sum(s * s for s in sums))
    return [s / length for s in sums]


def naive_distance(new, old):
    """Mean over samples of the distance of what is pooled, (B, C, H, W)."""
    total = 0.0
    for a, b in zip(new, old, strict=True):
        pairs = zip(naive_pooled(a), naive_pooled(b), strict=True)
        total += math.sqrt(sum((p - q) ** 2 for p, q in pairs))
    return total / len(new)


SHAPES = [[(3, 5, 7)], [(1, 1, 1)], [(2, 7, 3), (4, 3, 1), (5, 1, 2)]]


@pytest.mark.parametrize("shapes", SHAPES)
def test_maps_are_pooled_over_width_and_over_height(shapes):
    for shape in shapes:
        x = drawn(4, *shape)
        expected = torch.tensor([naive_pooled(one) for one in x], dtype=torch.float64)
        torch.testing.assert_close(pooled(x), expected, rtol=1e-12, atol=1e-14)


def test_sequences_are_pooled_over_width_and_over_time():
    x = drawn(4, 5, 3)  # (B, T, D), as a map of one channel
    expected = torch.tensor([naive_pooled(one[None]) for one in x], dtype=torch.float64)
    torch.testing.assert_close(pooled(x), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("shapes", SHAPES)
def test_the_distance_is_the_mean_over_samples_and_over_stages(shapes):
    new = [drawn(4, *shape, seed=k) for k, shape in enumerate(shapes)]
    old = [drawn(4, *shape, seed=k + 9) for k, shape in enumerate(shapes)]
    expected = [naive_distance(a, b) for a, b in zip(new, old, strict=True)]
    assert pod_spatial(new, old).item() == pytest.approx(sum(expected) / len(expected), rel=1e-12)


def test_the_distances_have_the_gradients_of_finite_differences():
    old = [drawn(2, 2, 3, 2, seed=1), drawn(2, 3, 4, seed=2)]
    new = [drawn(2, 2, 3, 2, seed=3), drawn(2, 3, 4, seed=4)]
    inputs = [x.requires_grad_() for x in new]
    assert torch.autograd.gradcheck(lambda *maps: pod_spatial(maps, old), inputs)
    features = drawn(3, 5, seed=5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pod_flat(x, drawn(3, 5, seed=6)), [features])


def test_what_is_the_same_is_at_no_distance_and_has_no_gradient():
    x = drawn(3, 2, 4, 4).requires_grad_()
    loss = pod_spatial([x], [x.detach()])
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss == 0
    assert not gradient.any()


def test_what_is_0_throughout_has_a_finite_distance_and_gradient():
    x = torch.zeros(3, 2, 4, 4, requires_grad=True)
    loss = pod_spatial([x], [drawn(3, 2, 4, 4).float()])
    (gradient,) = torch.autograd.grad(loss, x)
    assert loss.item() == pytest.approx(1.0)
    assert not gradient.isnan().any()


def test_the_scale_of_a_samples_output_does_not_matter():
    new, old = drawn(4, 3, 5, 7), drawn(4, 3, 5, 7, seed=1)
    scale = torch.tensor([0.5, 1.0, 3.0, 10.0], dtype=torch.float64)[:, None, None, None]
    expected = pod_spatial([new], [old])
    torch.testing.assert_close(pod_spatial([scale * new], [-old]), expected)


def test_flat_is_1_less_the_cosine_of_features():
    new, old = drawn(5, 7), drawn(5, 7, seed=1)
    total = 0.0
    for a, b in zip(new.tolist(), old.tolist(), strict=True):
        product = sum(p * q for p, q in zip(a, b, strict=True))
        total += 1 - product / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))
    assert pod_flat(new, old).item() == pytest.approx(total / 5, rel=1e-12)


def test_in_half_precision_squares_do_not_overflow():
    new, old = 300 * drawn(4, 3, 5, 7), 300 * drawn(4, 3, 5, 7, seed=1)
    spatial = pod_spatial([new.half()], [old.half()])
    assert spatial.dtype == torch.float32
    assert spatial.item() == pytest.approx(pod_spatial([new], [old]).item(), rel=1e-3)
    new, old = new.flatten(1), old.flatten(1)
    flat = pod_flat(new.half(), old.half())
    assert flat.item() == pytest.approx(pod_flat(new, old).item(), rel=1e-3)


def test_stages_must_be_as_many():
    with pytest.raises(ValueError, match="shorter"):
        pod_spatial([drawn(2, 1, 2, 2)] * 2, [drawn(2, 1, 2, 2)])
