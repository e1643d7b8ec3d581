"""Images by class for few-shot learning: many classes of few samples, some of them to pre-train on.

The embedded default, `digit_glyphs`, is made here out of scikit-learn's 1,797 digits. Twenty
shapes, each digit upright and each turned a quarter, are dealt out: ten to the base classes, and
the other ten, of other images, to the evaluation classes. A class is an ordered pair of shapes of
one side, next to each other or one above the other, at a random height or column of a 16x16 image:
200 base and 200 evaluation classes of 40 samples. It is at hand everywhere, quick, and not easy: a
nearest centroid of raw pixels gets 0.44 of 5 classes right from a shot of each, 0.17 of 100 classes
from 5 shots. It is not Omniglot: its classes are pairs of ten shapes only, so to know the shapes is
to know all classes, and an image of a digit serves in twenty samples. Its figures compare learners
with each other; they do not stand beside a paper's.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clplat.errors import InputError
from scenarios.sources import Source, data_folder, digits, fashion_mnist

log = logging.getLogger(__name__)

SAMPLES = 40  # of each made class
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ImagesByClass:
    """Images (classes, samples, C, H, W) as uint8, and which classes are for what.

    `base` and `evaluation` are indices of classes without one in common: those to pre-train on, and
    those that experiments are made of. Raises InputError where a part is of another form.
    """

    name: str
    images: Tensor
    base: Tensor
    evaluation: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 5 or self.images.dtype != torch.uint8:
            raise InputError(
                f"{self.name}: images of {self.images.dtype} and shape {tuple(self.images.shape)}: "
                "expected torch.uint8 and (classes, samples, channels, height, width); convert them"
            )
        for part, index in (("base", self.base), ("evaluation", self.evaluation)):
            listed = index.ndim == 1 and index.dtype == torch.long and len(index) > 0
            if (
                not listed
                or len(index.unique()) < len(index)
                or int(index.min()) < 0
                or int(index.max()) >= len(self.images)
            ):
                raise InputError(
                    f"{self.name}: {part} classes: expected a list of one or more, each once, in "
                    f"0..{len(self.images) - 1} (torch.long); correct the list"
                )
        shared = int(torch.isin(self.base, self.evaluation).sum())
        if shared:
            raise InputError(
                f"{self.name}: {shared} classes are both base and evaluation classes: expected "
                "none; leave each in one of the two"
            )


def _base_first(name: str, images: Tensor, base: int) -> ImagesByClass:
    """The first `base` classes are the base classes, the rest the evaluation classes."""
    index = torch.arange(len(images))
    return ImagesByClass(name, images, index[:base], index[base:])


# --- classes made of pairs of shapes ---------------------------------------------------------


def _shapes(data: Source, cell: int, generator: torch.Generator) -> tuple[list[Tensor], ...]:
    """Ten base and ten evaluation shapes, each images (rounds, SAMPLES, cell, cell).

    The halves of a category's images, one upright and one turned a quarter anticlockwise, go to
    different sides: no image and no shape is on both, and each side has both kinds.
    """
    images, labels = (torch.cat(parts) for parts in zip(data.train, data.test, strict=True))
    scale = images.shape[-1] // cell
    base, evaluation = [], []
    for category in range(data.classes):
        index = (labels == category).nonzero()[:, 0]
        index = index[torch.randperm(len(index), generator=generator)]
        rounds = len(index) // (2 * SAMPLES)
        if rounds < 2:  # a pair of one shape with itself takes two images for each sample
            raise InputError(
                f"scenario.source={data.name}: {len(index)} images of category {category}: "
                f"expected at least {4 * SAMPLES}; fetch the whole data set"
            )
        halves = index[: rounds * 2 * SAMPLES].reshape(2, -1)
        small = torch.nn.functional.avg_pool2d(images[halves].flatten(0, 1).float(), scale)
        small = small.round().to(torch.uint8).reshape(2, rounds, SAMPLES, cell, cell)
        upright, turned = small[0], small[1].rot90(dims=(-2, -1))
        first, second = (upright, turned) if category < data.classes // 2 else (turned, upright)
        base.append(first)
        evaluation.append(second)
    return base, evaluation


def _side_by_side(left: Tensor, right: Tensor, generator: torch.Generator) -> Tensor:
    """Pairs (samples, 2 cell, 2 cell) of (samples, cell, cell), each at a random height."""
    pair = torch.cat([left, right], dim=-1)
    samples, cell, width = pair.shape
    canvas = pair.new_zeros(samples, width, width)
    height = torch.randint(cell + 1, (samples, 1), generator=generator)
    canvas[torch.arange(samples)[:, None], height + torch.arange(cell)] = pair
    return canvas


def _pairs(shapes: list[Tensor], generator: torch.Generator) -> Tensor:
    """Classes (2 shapes ** 2, SAMPLES, 1, 2 cell, 2 cell): pairs side by side, then stacked ones.

    Sample s of any class is made of the s-th images of rounds; a shape's rounds are used in turn.
    """
    used = [0] * len(shapes)

    def next_round(shape: int) -> Tensor:
        used[shape] += 1
        return shapes[shape][used[shape] % len(shapes[shape])]

    classes = []
    for stacked, first, second in product((False, True), range(len(shapes)), range(len(shapes))):
        one, other = next_round(first), next_round(second)
        if stacked:  # side by side once transposed
            classes.append(_side_by_side(one.mT, other.mT, generator).mT)
        else:
            classes.append(_side_by_side(one, other, generator))
    return torch.stack(classes)[:, :, None]


def _glyphs(name: str, data: Source, cell: int) -> ImagesByClass:
    generator = torch.Generator().manual_seed(0)  # the data are the same for all seeds of runs
    base, evaluation = _shapes(data, cell, generator)
    images = torch.cat([_pairs(shapes, generator) for shapes in (base, evaluation)])
    return _base_first(name, images, len(images) // 2)


def digit_glyphs(download: bool = False) -> ImagesByClass:
    """200 base and 200 evaluation classes of 40 samples (1, 16, 16) out of digits; see the module.

    Samples of different numbers, of whatever classes, have no digit's image in common: where the
    same numbers are learnt from in each class, those that are tested are of unseen images.
    """
    return _glyphs("digit_glyphs", digits(), 8)


def fashion_glyphs(download: bool = False) -> ImagesByClass:
    """`digit_glyphs` out of Fashion-MNIST (Xiao et al. 2017), halved to 14x14: (1, 28, 28).

    No picture serves twice. Pullovers, coats and shirts are hard to tell apart, so classes are too.
    Raises InputError where Fashion-MNIST is missing.
    """
    return _glyphs("fashion_glyphs", fashion_mnist(download), 14)


# --- classes read from the user's files ------------------------------------------------------


def _read_classes(folders: list[Path], mode: str, channels: int, size: int) -> Tensor:
    """Images (classes, samples, channels, size, size), a class a folder, in order of names."""
    files = [
        sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.name[0] != ".")
        for folder in folders
    ]
    samples = max(map(len, files))
    # Filled in place: a list of images and its stack would hold SlimageNet64 twice.
    images = torch.empty(len(folders), samples, channels, size, size, dtype=torch.uint8)
    for k, (folder, of_class) in enumerate(zip(folders, files, strict=True)):
        if len(of_class) != samples or not samples:
            raise InputError(
                f"{folder}: {len(of_class)} images: expected as many in each class folder, here "
                f"{max(samples, 1)}; unpack the data set again"
            )
        for s, file in enumerate(of_class):
            try:
                with Image.open(file) as image:
                    scaled = image.convert(mode).resize((size, size), Image.Resampling.LANCZOS)
            except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of these
                raise InputError(
                    f"{file}: expected an image; this one is damaged or of another format; unpack "
                    "the data set again"
                ) from error
            pixels = torch.from_numpy(np.array(scaled)).reshape(size, size, channels)
            images[k, s] = pixels.permute(2, 0, 1)
    return images


def _class_folders(name: str, parts: tuple[str, str], pattern: str, mend: str) -> list[list[Path]]:
    """The class folders of each part of a data set in the data folder, in order of names."""
    place = data_folder() / name
    folders = [sorted(f for f in (place / part).glob(pattern) if f.is_dir()) for part in parts]
    if not all(folders):
        raise InputError(
            f"scenario.source={name}: not found in {place}: expected class folders "
            f"{' and '.join(f'{part}/{pattern}' for part in parts)}; {mend} there "
            "(set CLPLAT_DATA to look elsewhere)"
        )
    log.info("%s: read from %s", name, place)
    return folders


def omniglot(download: bool = False) -> ImagesByClass:
    """1,623 characters of 50 alphabets, each drawn by 20 people (Lake et al. 2015): (1, 28, 28).

    Scaled down from 105x105, ink bright. The 964 characters of the background set are the base
    classes, the 659 of the evaluation set the evaluation classes; Antoniou et al. 2020 mix the two
    and split them anew. Raises InputError where the files are missing or damaged.
    """
    mend = "unzip images_background.zip and images_evaluation.zip (github.com/brendenlake/omniglot)"
    parts = ("images_background", "images_evaluation")
    base, evaluation = _class_folders("omniglot", parts, "*/*", mend)
    images = 255 - _read_classes([*base, *evaluation], "L", 1, 28)
    return _base_first("omniglot", images, len(base))


def slimagenet64(download: bool = False) -> ImagesByClass:
    """200 images of each class of ImageNet in colour (Antoniou et al. 2020): (3, 64, 64).

    Base classes are those of the train folder, evaluation classes those of the test folder; the val
    folder, for choosing settings, is not read. It takes 2.5 MB of memory a class. Raises InputError
    where the files are missing or damaged.
    """
    mend = "unpack SlimageNet64 (zenodo.org/record/3672132)"
    base, evaluation = _class_folders("slimagenet64", ("train", "test"), "*", mend)
    images = _read_classes([*base, *evaluation], "RGB", 3, 64)
    return _base_first("slimagenet64", images, len(base))


SOURCES: dict[str, Callable[[bool], ImagesByClass]] = {
    f.__name__: f for f in (digit_glyphs, fashion_glyphs, omniglot, slimagenet64)
}


def load_by_class(source: str, download: bool = False) -> ImagesByClass:
    """A source of images by class by its name; of these only Fashion-MNIST can be downloaded."""
    if source not in SOURCES:
        raise InputError(f"scenario.source={source}: expected one of {', '.join(SOURCES)}")
    return SOURCES[source](download)
