"""Images by class: those made of shapes, and those read from folders made up small."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clplat.errors import InputError
from scenarios import sources
from scenarios.glyphs import SOURCES, ImagesByClass, load_by_class
from tests.scenarios.test_sources import IDX, idx, random_bytes

INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it


@pytest.fixture(scope="module")
def digit_glyphs() -> ImagesByClass:
    return load_by_class("digit_glyphs")


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty data folder; the system's is empty too."""
    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    return tmp_path / "data"


# --- the form --------------------------------------------------------------------------------


IMAGES = torch.zeros(3, 2, 1, 4, 4, dtype=torch.uint8)


def test_images_by_class_take_classes_that_are_for_neither():
    data = ImagesByClass("made up", IMAGES, torch.tensor([2]), torch.tensor([0]))
    assert (data.base.tolist(), data.evaluation.tolist()) == ([2], [0])


@pytest.mark.parametrize("images", [IMAGES.float(), IMAGES[0]], ids=["floats", "no classes"])
def test_images_of_another_form_are_refused(images):
    with pytest.raises(InputError) as error:
        ImagesByClass("made up", images, torch.tensor([0]), torch.tensor([1]))
    assert str(error.value) == (
        f"made up: images of {images.dtype} and shape {tuple(images.shape)}: expected torch.uint8 "
        "and (classes, samples, channels, height, width); convert them"
    )


@pytest.mark.parametrize(
    "index",
    [
        torch.zeros(0, dtype=torch.long),
        torch.tensor([1, 1]),
        torch.tensor([-1]),
        torch.tensor([3]),
        torch.tensor(1),
        torch.tensor([False, True, True]),
    ],
    ids=["none", "twice", "below", "above", "no list", "mask"],
)
@pytest.mark.parametrize("part", ["base", "evaluation"])
def test_classes_that_are_no_list_of_indices_are_refused(part, index):
    parts = {"base": torch.tensor([0]), "evaluation": torch.tensor([2])} | {part: index}
    with pytest.raises(InputError) as error:
        ImagesByClass("made up", IMAGES, **parts)
    assert str(error.value) == (
        f"made up: {part} classes: expected a list of one or more, each once, in 0..2 "
        "(torch.long); correct the list"
    )


def test_classes_for_both_parts_are_refused():
    with pytest.raises(InputError) as error:
        ImagesByClass("made up", IMAGES, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert str(error.value) == (
        "made up: 1 classes are both base and evaluation classes: expected none; leave each in "
        "one of the two"
    )


# --- made of digits --------------------------------------------------------------------------


def images_within(sample: np.ndarray, known: dict[bytes, int]) -> set[int]:
    """Which known images are in a sample: windows side by side, or one above the other."""
    cell = len(sample) // 2
    corners = [(height, column) for height in range(cell + 1) for column in (0, cell)]
    windows = (
        sample[top : top + cell, left : left + cell].tobytes()
        for one, other in corners
        for top, left in ((one, other), (other, one))
    )
    return {known[pixels] for pixels in windows if pixels in known}


def upright_and_turned(images: np.ndarray) -> dict[bytes, int]:
    """Pixels of each image (N, H, W), upright and turned a quarter -> the image's number."""
    kinds = (images, np.rot90(images, axes=(1, 2)))
    return {image.tobytes(): number for kind in kinds for number, image in enumerate(kind)}


@pytest.fixture(scope="module")
def digits_of(digit_glyphs) -> list[list[set[int]]]:
    """Class, sample -> the digits' images within, upright or turned."""
    data = sources.digits()
    known = upright_and_turned(torch.cat([data.train[0], data.test[0]])[:, 0].numpy())
    return [
        [images_within(sample, known) for sample in of_class]
        for of_class in digit_glyphs.images[:, :, 0].numpy()
    ]


def test_digit_glyphs_have_200_base_and_200_evaluation_classes_of_40_samples(digit_glyphs):
    assert digit_glyphs.images.shape == (400, 40, 1, 16, 16)
    assert digit_glyphs.base.tolist() == list(range(200))
    assert digit_glyphs.evaluation.tolist() == list(range(200, 400))


def test_each_sample_is_two_images_of_digits_and_nothing_else(digits_of):
    assert {len(images) for of_class in digits_of for images in of_class} == {2}


def test_base_and_evaluation_share_no_image_of_a_digit(digits_of):
    base, evaluation = (
        set().union(*(images for of_class in part for images in of_class))
        for part in (digits_of[:200], digits_of[200:])
    )
    assert len(base) == len(evaluation) == 800  # 80 of each digit
    assert not base & evaluation


def test_samples_of_different_numbers_share_no_image_of_a_digit(digits_of):
    for part in (digits_of[:200], digits_of[200:]):
        of_number = [set().union(*of_samples) for of_samples in zip(*part, strict=True)]
        assert sum(map(len, of_number)) == len(set().union(*of_number))


def test_no_two_samples_are_the_same_image(digit_glyphs):
    flat = digit_glyphs.images.flatten(2).flatten(0, 1)
    assert len(flat.unique(dim=0)) == 400 * 40


def test_heights_and_columns_tell_nothing_of_the_class(digit_glyphs):
    heights = digit_glyphs.images[:100, :, 0].flatten(0, 1).amax(2) > 0  # pairs side by side
    first = heights.int().argmax(1).bincount(minlength=9)[:9]
    assert first.min() > 4000 / 9 / 2
    of_class = heights.int().argmax(1).reshape(100, 40)
    assert min(len(rows.unique()) for rows in of_class) >= 6


def test_digit_glyphs_are_the_same_in_each_process_whatever_the_seed(digit_glyphs):
    torch.manual_seed(5)
    assert torch.equal(load_by_class("digit_glyphs").images, digit_glyphs.images)
    checksum = hashlib.sha256(digit_glyphs.images.numpy().tobytes()).hexdigest()
    assert checksum == "a770eb861201c5291a5de0e971ca70b8f394881b893d97e38403fedb3f884387"


def nearest_centroid(data: ImagesByClass, ways: int, shots: int, episodes: int) -> float:
    """Mean accuracy of the nearest centroid of raw pixels on new samples of evaluation classes."""
    generator = torch.Generator().manual_seed(0)
    pixels = data.images.flatten(2).float() / 255
    right = []
    for _ in range(episodes):
        classes = data.evaluation[torch.randperm(len(data.evaluation), generator=generator)[:ways]]
        samples = torch.randperm(pixels.shape[1], generator=generator)
        centroids = pixels[classes][:, samples[:shots]].mean(1)
        tested = pixels[classes][:, samples[shots:]].flatten(0, 1)
        nearest = torch.cdist(tested, centroids).argmin(1).reshape(ways, -1)
        right.append((nearest == torch.arange(ways)[:, None]).float().mean())
    return float(torch.stack(right).mean())


def test_classes_are_told_apart_and_more_of_them_less_well(digit_glyphs):
    few = nearest_centroid(digit_glyphs, ways=5, shots=5, episodes=20)
    many = nearest_centroid(digit_glyphs, ways=100, shots=5, episodes=3)
    assert 0.45 < few < 0.75  # chance is 0.2; 1 would leave nothing to learn
    assert 0.1 < many < few / 2  # chance is 0.01
    assert nearest_centroid(digit_glyphs, ways=5, shots=1, episodes=20) < few


# --- made of pictures of clothes -------------------------------------------------------------


def write_fashion(folder: Path, of_each: int) -> np.ndarray:
    """As many random pictures of each category, the first of each in the test files."""
    folder.mkdir(parents=True)
    images = random_bytes(10 * of_each, 28, 28)
    labels = (np.arange(10 * of_each) % 10).astype(np.uint8)
    arrays = [images[10:], labels[10:], images[:10], labels[:10]]
    for name, array in zip(IDX, arrays, strict=True):
        (folder / name).write_bytes(idx(array))
    return images


def test_fashion_glyphs_are_of_pictures_halved(place):
    images = write_fashion(place / "fashion-mnist", 160)
    data = load_by_class("fashion_glyphs")
    assert data.images.shape == (400, 40, 1, 28, 28)
    assert (len(data.base), len(data.evaluation)) == (200, 200)
    means = images.reshape(-1, 14, 2, 14, 2).mean((2, 4))
    known = upright_and_turned(np.rint(means).astype(np.uint8))
    for k, digits in [(0, {0}), (9, {0, 9}), (150, {5, 0}), (238, {3, 8}), (399, {9})]:
        for sample in data.images[k, ::13, 0].numpy():
            within = images_within(sample, known)
            assert len(within) == 2
            assert {number % 10 for number in within} == digits


def test_too_few_pictures_of_a_category_are_refused(place):
    write_fashion(place / "fashion-mnist", 159)
    with pytest.raises(InputError) as error:
        load_by_class("fashion_glyphs")
    assert str(error.value) == (
        "scenario.source=fashion_mnist: 159 images of category 0: expected at least 160; fetch the "
        "whole data set"
    )


def test_fashion_glyphs_without_fashion_mnist_are_refused_by_the_source(place):
    with pytest.raises(InputError, match="=fashion_mnist: not found in"):
        load_by_class("fashion_glyphs")


def test_fashion_mnist_is_downloaded_where_it_is_asked_for(place, monkeypatch):
    monkeypatch.setattr(
        sources, "_download", lambda dataset: write_fashion(place / "FashionMNIST" / "raw", 160)
    )
    assert load_by_class("fashion_glyphs", download=True).name == "fashion_glyphs"


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="Debian's dataset-fashion-mnist is not here")
def test_the_systems_fashion_glyphs_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path))
    data = load_by_class("fashion_glyphs")
    assert 0.4 < nearest_centroid(data, ways=5, shots=5, episodes=20) < 0.75


# --- read from files -------------------------------------------------------------------------


def write_image(file: Path, image: Image.Image) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file)


def write_omniglot(place: Path) -> None:
    """Ink in the upper quarter of class 0, in the lower of 1, in all of 2; samples 0 and 1."""
    for part, character, ink in (
        ("images_background/Greek", "character01", slice(0, 26)),
        ("images_background/Latin", "character01", slice(79, 105)),
        ("images_evaluation/Angelic", "character02", slice(0, 105)),
    ):
        for sample in (2, 1):
            pixels = np.full((105, 105), 255, np.uint8)
            pixels[ink, : 105 // sample] = 0
            image = Image.fromarray(pixels).convert("1")  # as the official files are
            write_image(place / "omniglot" / part / character / f"0001_0{sample}.png", image)


def test_omniglot_is_read_scaled_and_inverted(place, caplog):
    write_omniglot(place)
    (place / "omniglot" / "images_background" / ".DS_Store").write_bytes(b"")
    (place / "omniglot" / "images_background" / "Greek" / "notes.txt").write_text("none")
    (place / "omniglot/images_background/Greek/character01/._0001_01.png").write_bytes(b"")
    with caplog.at_level("INFO", logger="scenarios.glyphs"):
        data = load_by_class("omniglot")
    assert f"omniglot: read from {place / 'omniglot'}" in caplog.messages
    assert (data.name, data.images.shape) == ("omniglot", (3, 2, 1, 28, 28))
    assert (data.base.tolist(), data.evaluation.tolist()) == ([0, 1], [2])
    upper, lower = data.images[:, :, 0, :3], data.images[:, :, 0, -3:]
    assert (upper[0, 0] == 255).all()
    assert (lower[0] == 0).all()
    assert (upper[1] == 0).all()
    assert (lower[1, 0] == 255).all()
    assert (data.images[2, 0] == 255).all()
    assert (data.images[2, 1, 0, :, :11] >= 250).all()  # half its width, as it is sample 2
    assert (data.images[2, 1, 0, :, 18:] == 0).all()


def write_slimagenet(place: Path, samples: int = 2) -> None:
    """Class n0 red, n1 green and n2 blue; n9, of the validation set, is damaged."""
    for k, part in enumerate(("train", "train", "test")):
        for sample in range(samples):
            colour = tuple(200 + sample if c == k else 0 for c in range(3))
            file = place / "slimagenet64" / part / f"n{k}" / f"{sample}.png"
            write_image(file, Image.new("RGB", (64, 64), colour))
    damaged = place / "slimagenet64" / "val" / "n9" / "0.png"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"")


def test_slimagenet64_is_read_from_its_train_and_test_folders(place):
    write_slimagenet(place)
    data = load_by_class("slimagenet64")
    assert (data.name, data.images.shape) == ("slimagenet64", (3, 2, 3, 64, 64))
    assert (data.base.tolist(), data.evaluation.tolist()) == ([0, 1], [2])
    expected = torch.eye(3, dtype=torch.uint8)[:, None] * torch.tensor([[200], [201]])
    assert torch.equal(data.images, expected[..., None, None].expand(3, 2, 3, 64, 64))


def test_jpeg_grey_and_differently_sized_images_are_made_alike(place):
    write_slimagenet(place, samples=1)
    folder = place / "slimagenet64" / "test" / "n2"
    (folder / "0.png").unlink()
    write_image(folder / "0.JPEG", Image.new("L", (90, 70), 50))
    images = load_by_class("slimagenet64").images
    assert images.shape == (3, 1, 3, 64, 64)
    assert (images[2].int() - 50).abs().max() <= 1


@pytest.mark.parametrize("samples", [1, 0])
def test_a_class_of_fewer_images_is_refused_by_name(place, samples):
    write_slimagenet(place)
    folder = place / "slimagenet64" / "test" / "n2"
    for sample in range(samples, 2):
        (folder / f"{sample}.png").unlink()
    with pytest.raises(InputError) as error:
        load_by_class("slimagenet64")
    assert str(error.value) == (
        f"{folder}: {samples} images: expected as many in each class folder, here 2; unpack the "
        "data set again"
    )


def test_folders_without_an_image_are_refused(place):
    for part in ("train", "test"):
        (place / "slimagenet64" / part / "n0").mkdir(parents=True)
    with pytest.raises(
        InputError, match=r"train.n0: 0 images: expected as many in each .*, here 1"
    ):
        load_by_class("slimagenet64")


@pytest.mark.parametrize(
    "damage",
    [lambda raw: b"", lambda raw: b"<html>", lambda raw: raw[:60], lambda raw: raw[:-30]],
    ids=["empty", "web page", "cut in the data", "cut at the end"],
)
def test_a_damaged_image_is_refused_by_name(place, damage):
    write_slimagenet(place)
    file = place / "slimagenet64" / "train" / "n1" / "1.png"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError) as error:
        load_by_class("slimagenet64")
    assert str(error.value) == (
        f"{file}: expected an image; this one is damaged or of another format; unpack the data set "
        "again"
    )


MISSING = {
    "omniglot": "expected class folders images_background/*/* and images_evaluation/*/*; unzip "
    "images_background.zip and images_evaluation.zip (github.com/brendenlake/omniglot) there",
    "slimagenet64": "expected class folders train/* and test/*; unpack SlimageNet64 "
    "(zenodo.org/record/3672132) there",
}


@pytest.mark.parametrize("name", MISSING)
@pytest.mark.parametrize("half", [False, True], ids=["nothing", "base alone"])
def test_missing_files_say_where_they_were_looked_for_and_how_to_mend_it(place, name, half):
    if half:
        part = {"omniglot": "images_background/Greek/character01", "slimagenet64": "train/n0"}
        write_image(place / name / part[name] / "0.png", Image.new("L", (8, 8)))
    with pytest.raises(InputError) as error:
        load_by_class(name)
    assert str(error.value) == (
        f"scenario.source={name}: not found in {place / name}: {MISSING[name]} "
        "(set CLPLAT_DATA to look elsewhere)"
    )


def test_an_unknown_source_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InputError) as error:
        load_by_class("digits")
    assert str(error.value) == (
        "scenario.source=digits: expected one of digit_glyphs, fashion_glyphs, omniglot, "
        "slimagenet64"
    )
    assert list(SOURCES) == ["digit_glyphs", "fashion_glyphs", "omniglot", "slimagenet64"]
