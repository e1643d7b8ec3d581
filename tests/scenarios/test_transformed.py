"""Permuted and rotated images against inverse permutations, torch.rot90 and a loop over pixels."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clplat.data import tensors_of
from clplat.errors import InputError
from scenarios import sources
from scenarios.sources import Source
from scenarios.transformed import permute_pixels, permuted, rotate, rotated

CLASSES = 3


def images(count: int, channels: int = 2, height: int = 4, width: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    shape = (count, channels, height, width)
    return torch.randint(256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(autouse=True)
def made_up(monkeypatch) -> Source:
    train, test = ((images(n), torch.arange(n) % CLASSES) for n in (8, 6))
    source = Source("made up", train, test, CLASSES)
    monkeypatch.setitem(sources.SOURCES, "made_up", lambda download=False: source)
    return source


def inputs(stream) -> list[torch.Tensor]:
    return [tensors_of(experience.dataset)[0] for experience in stream]


# --- permuting -------------------------------------------------------------------------------


@given(
    channels=st.integers(1, 3), height=st.integers(1, 5), width=st.integers(1, 5), data=st.data()
)
def test_each_pixel_is_the_one_that_the_order_names_in_every_channel(channels, height, width, data):
    x = images(2, channels, height, width)
    order = data.draw(st.permutations(range(height * width)))
    result = permute_pixels(x, torch.tensor(order))
    for i, c, k in np.ndindex(2, channels, height * width):
        row, column = divmod(order[k], width)
        assert result[i, c, k // width, k % width] == x[i, c, row, column]


@given(seed=st.integers(0, 1000))
def test_the_inverse_permutation_recovers_the_images(seed):
    x, order = images(3), torch.randperm(20, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(permute_pixels(permute_pixels(x, order), order.argsort()), x)


def orders_of(scenario, source: Source) -> list[list[int]]:
    """The permutation of each experience, found by looking for each pixel's column of values."""
    original = source.train[0].flatten(2).flatten(0, 1).T.tolist()  # one row a pixel
    return [
        [original.index(pixel) for pixel in x.flatten(2).flatten(0, 1).T.tolist()]
        for x in inputs(scenario.train_stream)
    ]


def test_the_first_experience_is_as_it_is_and_each_later_one_permuted_its_own_way(made_up):
    scenario = permuted("made_up", 4, seed=2)
    orders = orders_of(scenario, made_up)
    assert orders[0] == list(range(20))
    assert all(sorted(order) == orders[0] for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_training_and_test_images_are_permuted_alike(made_up):
    scenario = permuted("made_up", 4)
    for order, x in zip(orders_of(scenario, made_up), inputs(scenario.test_stream), strict=True):
        assert torch.equal(x, permute_pixels(made_up.test[0], torch.tensor(order)))


def test_the_seed_decides_the_permutations_and_more_experiences_only_add_to_them(made_up):
    one, longer = (orders_of(permuted("made_up", n, seed=2), made_up) for n in (3, 5))
    assert longer[:3] == one
    assert orders_of(permuted("made_up", 3, seed=3), made_up)[1:] != one[1:]


# --- rotating --------------------------------------------------------------------------------


def naive_rotation(image: np.ndarray, degrees: float) -> np.ndarray:
    """(H, W) in float64, pixel by pixel: where in the original each one comes from, bilinear.

    Turning the picture anticlockwise by an angle looks each pixel up clockwise of it; rows count
    downwards.
    """
    height, width = image.shape
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))

    def pixel(row: int, column: int) -> float:
        inside = 0 <= row < height and 0 <= column < width
        return float(image[row, column]) if inside else 0.0

    result = np.zeros(image.shape)
    for row, column in np.ndindex(height, width):
        right, up = column - (width - 1) / 2, (height - 1) / 2 - row
        from_right, from_up = cos * right + sin * up, -sin * right + cos * up
        y, x = (height - 1) / 2 - from_up, from_right + (width - 1) / 2
        top, left = math.floor(y), math.floor(x)
        for i, j in ((top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)):
            result[row, column] += pixel(i, j) * (1 - abs(y - i)) * (1 - abs(x - j))
    return result


@pytest.mark.parametrize(("height", "width"), [(5, 5), (6, 6), (4, 7), (7, 3)])
@pytest.mark.parametrize("degrees", [17.0, 45.0, 90.0, 133.3, 180.0, 251.0, -30.0])
def test_rotation_equals_a_loop_over_pixels_to_the_nearest_byte(height, width, degrees):
    x = images(2, 2, height, width)
    turned = rotate(x, degrees)
    assert turned.dtype == torch.uint8
    for i, c in np.ndindex(2, 2):
        exact = naive_rotation(x[i, c].numpy(), degrees)
        assert np.abs(turned[i, c].numpy() - exact).max() <= 0.5 + 1e-3  # half: the rounding


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4, -1])
@pytest.mark.parametrize("size", [5, 6])
def test_quarter_turns_of_a_square_are_those_of_rot90_anticlockwise(quarters, size):
    x = images(3, 2, size, size)
    assert torch.equal(rotate(x, 90 * quarters), torch.rot90(x, quarters, (2, 3)))


def test_a_mark_on_the_right_goes_to_the_top():
    x = torch.zeros(1, 1, 5, 5, dtype=torch.uint8)
    x[0, 0, 2, 4] = 200
    assert rotate(x, 90)[0, 0, 0, 2] == 200


def test_half_a_turn_of_any_image_mirrors_it_both_ways():
    x = images(3, 2, 4, 7)
    assert torch.equal(rotate(x, 180), x.flip(2, 3))


def test_no_turn_is_the_identity():
    x = images(3, 2, 4, 7)
    assert torch.equal(rotate(x, 0), x)


def test_images_beyond_one_chunk_are_turned_alike():
    x = images(1, 1, 2, 2).expand(8193, -1, -1, -1)
    assert torch.equal(rotate(x, 90), torch.rot90(x, 1, (2, 3)))


def test_angles_rise_evenly_from_0_and_stop_short_of_the_last(made_up):
    scenario = rotated("made_up", 4, degrees=120)
    for stream, (x, _) in (
        (scenario.train_stream, made_up.train),
        (scenario.test_stream, made_up.test),
    ):
        for angle, turned in zip((0, 30, 60, 90), inputs(stream), strict=True):
            assert torch.equal(turned, rotate(x, angle))


def test_the_seed_changes_nothing_in_a_rotated_scenario():
    for a, b in zip(
        inputs(rotated("made_up", 3, seed=0).train_stream),
        inputs(rotated("made_up", 3, seed=1).train_stream),
        strict=True,
    ):
        assert torch.equal(a, b)


# --- both ------------------------------------------------------------------------------------


@pytest.fixture(params=[permuted, rotated])
def make(request):
    return request.param


def test_every_experience_has_every_sample_and_class_with_its_label(make, made_up):
    scenario = make("made_up", 3)
    assert scenario.n_classes == CLASSES
    for stream, (_, labels) in (
        (scenario.train_stream, made_up.train),
        (scenario.test_stream, made_up.test),
    ):
        assert len(stream) == 3
        for experience in stream:
            assert tensors_of(experience.dataset)[1].tolist() == labels.tolist()
            assert sorted(experience.classes_in_this_experience) == list(range(CLASSES))


@pytest.mark.parametrize(("task_labels", "tasks"), [(True, [0, 1, 2]), (False, [0, 0, 0])])
def test_an_experience_is_a_task_of_its_own_where_there_are_task_labels(make, task_labels, tasks):
    scenario = make("made_up", 3, task_labels=task_labels)
    assert [e.task_labels for e in scenario.train_stream] == [[task] for task in tasks]


def test_images_stay_bytes_of_the_same_shape(make):
    scenario = make("made_up", 3)
    assert scenario.input_shape == (2, 4, 5)
    for x in inputs(scenario.train_stream):
        assert (x.dtype, x.shape) == (torch.uint8, (8, 2, 4, 5))


def test_images_are_normalised_by_the_statistics_of_those_that_were_not_transformed(make, made_up):
    prepare = make("made_up", 3, normalise=True).prepare
    assert (prepare.mean, prepare.std) == made_up.statistics()
    assert (prepare.crop, prepare.flip) == (0, False)
    assert make("made_up", 3).prepare.mean is None


@pytest.mark.parametrize("experiences", [0, -1])
def test_there_is_at_least_one_experience(make, experiences):
    with pytest.raises(InputError) as error:
        make("made_up", experiences)
    assert str(error.value) == (
        f"scenario.experiences={experiences}: expected at least 1; raise it"
    )


def test_an_unknown_source_is_refused(make):
    with pytest.raises(InputError, match=r"scenario\.source=emnist: no such source; choose one of"):
        make("emnist")
