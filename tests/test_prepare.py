"""Scaling, normalising and augmenting against loops over single images."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, chi2

from clplat.prepare import Prepare, as_float, random_crop, random_flip


def images(count: int, channels: int = 2, height: int = 5, width: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, height, width)
    return torch.randint(1, 256, shape, generator=generator, dtype=torch.uint8)


def naive_crops(image: np.ndarray, padding: int) -> dict[tuple[int, int], np.ndarray]:
    """Every (C, H, W) window of the zero-padded image, by its offset from the top left."""
    channels, height, width = image.shape
    padded = np.zeros((channels, height + 2 * padding, width + 2 * padding), image.dtype)
    padded[:, padding : padding + height, padding : padding + width] = image
    return {
        (row, column): padded[:, row : row + height, column : column + width]
        for row, column in itertools.product(range(2 * padding + 1), repeat=2)
    }


def offset_of(crop: np.ndarray, image: np.ndarray, padding: int) -> tuple[int, int]:
    """The one offset at which the naive crop is this one."""
    crops = naive_crops(image, padding).items()
    (offset,) = [offset for offset, naive in crops if np.array_equal(naive, crop)]
    return offset


# --- augmentation ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@given(
    count=st.integers(1, 5),
    channels=st.integers(1, 3),
    height=st.integers(3, 6),
    width=st.integers(3, 6),
    padding=st.integers(0, 2),
)
def test_each_cropped_image_is_one_naive_crop_of_its_own_image(
    dtype, count, channels, height, width, padding
):
    x = images(count, channels, height, width).to(dtype)
    cropped = random_crop(x, padding)
    assert (cropped.shape, cropped.dtype) == (x.shape, dtype)
    for image, crop in zip(x.numpy(), cropped.numpy(), strict=True):
        offset_of(crop, image, padding)


def test_images_of_a_batch_are_cropped_at_offsets_of_their_own_all_equally_likely():
    torch.manual_seed(0)
    image = images(1, channels=1, height=3, width=4)
    cropped = random_crop(image.expand(1800, -1, -1, -1), 1).numpy()
    counts = dict.fromkeys(naive_crops(image[0].numpy(), 1), 0)
    for crop in cropped:
        counts[offset_of(crop, image[0].numpy(), 1)] += 1
    statistic = sum((n - 200) ** 2 / 200 for n in counts.values())
    assert 1e-4 < chi2.sf(statistic, 8) < 1 - 1e-4


def test_half_of_the_images_are_mirrored_left_to_right_and_the_others_untouched():
    torch.manual_seed(0)
    x = images(1).expand(400, -1, -1, -1)
    mirrored = 0
    for image, flipped in zip(x.numpy(), random_flip(x).numpy(), strict=True):
        naive = np.stack([[row[::-1] for row in channel] for channel in image])
        assert np.array_equal(flipped, image) != np.array_equal(flipped, naive)
        mirrored += np.array_equal(flipped, naive)
    assert binom.ppf(1e-4, 400, 0.5) < mirrored < binom.ppf(1 - 1e-4, 400, 0.5)


def test_padding_is_black_before_normalisation():
    torch.manual_seed(0)
    x = torch.full((50, 1, 3, 3), 255, dtype=torch.uint8)
    prepared = Prepare(mean=(0.5,), std=(0.25,), crop=1)(x, training=True)
    assert sorted(prepared.unique().tolist()) == [(0 - 0.5) / 0.25, (1 - 0.5) / 0.25]


def test_evaluation_does_not_augment():
    x = images(20)
    plain, augmenting = Prepare((0.1, 0.2), (0.3, 0.4)), Prepare((0.1, 0.2), (0.3, 0.4), 2, True)
    assert torch.equal(augmenting(x), plain(x))
    assert torch.equal(augmenting(x, training=False), plain(x))
    assert not torch.equal(augmenting(x, training=True), plain(x))


@pytest.mark.parametrize("prepare", [Prepare(crop=1), Prepare(flip=True)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_training_applies_each_augmentation_that_is_set(prepare, dtype):
    torch.manual_seed(0)
    x = images(20).to(dtype)
    assert not torch.equal(prepare(x, training=True), prepare(x))


def test_without_augmentation_training_is_evaluation():
    x = images(3)
    assert torch.equal(Prepare((0.1, 0.2), (0.3, 0.4))(x, True), Prepare((0.1, 0.2), (0.3, 0.4))(x))


# --- scaling ---------------------------------------------------------------------------------


def test_every_byte_is_scaled_to_its_nearest_float_of_a_255th():
    x = torch.arange(256, dtype=torch.uint8)
    expected = (np.arange(256, dtype=np.float64) / 255).astype(np.float32)
    assert as_float(x).numpy().tolist() == expected.tolist()


def test_normalised_images_equal_a_loop_over_pixels_in_float64():
    x, mean, std = images(3), (0.13, 0.57), (0.31, 0.22)
    prepared = Prepare(mean, std)(x)
    assert prepared.dtype == torch.float32
    for index in np.ndindex(*x.shape):
        channel = index[1]
        exact = (int(x[index]) / 255 - mean[channel]) / std[channel]
        assert float(prepared[index]) == pytest.approx(exact, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.int64])
def test_what_is_not_uint8_passes_unchanged(dtype):
    x = images(2).to(dtype)
    assert Prepare((0.1, 0.2), (0.3, 0.4))(x) is x
    assert as_float(x) is x


@pytest.mark.parametrize("training", [True, False])
def test_preparing_leaves_its_input_as_it_was(training):
    x = images(4)
    before = x.clone()
    Prepare((0.1, 0.2), (0.3, 0.4), crop=2, flip=True)(x, training)
    assert torch.equal(x, before)


def test_the_default_only_scales():
    x = images(2)
    assert torch.equal(Prepare()(x, training=True), as_float(x))
