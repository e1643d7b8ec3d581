"""The same classes in every experience, the images transformed: permuted pixels, or rotated."""

from collections.abc import Callable

import torch
from torch import Tensor

from clplat.errors import InputError
from clplat.scenario import Scenario
from scenarios.sources import Source, load
from scenarios.streams import make_prepare, make_scenario

Transform = Callable[[Tensor], Tensor]  # images (N, C, H, W) -> images of the same shape


def permute_pixels(images: Tensor, order: Tensor) -> Tensor:
    """Pixel k of each channel is pixel order[k] of the original."""
    return images.flatten(2)[:, :, order].reshape(images.shape)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Turn uint8 images anticlockwise about their centre, bilinear, zeros from outside."""
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    cos, sin = angle.cos(), angle.sin()
    # affine_grid works in coordinates scaled to -1..1 on both axes, so the aspect ratio enters.
    aspect = images.shape[2] / images.shape[3]
    matrix = torch.stack(
        [torch.stack([cos, -sin * aspect, sin * 0]), torch.stack([sin / aspect, cos, sin * 0])]
    )
    turned = []
    for chunk in images.split(8192):
        grid = torch.nn.functional.affine_grid(
            matrix.expand(len(chunk), 2, 3), list(chunk.shape), align_corners=False
        )
        pixels = torch.nn.functional.grid_sample(chunk.float(), grid, align_corners=False)
        turned.append(pixels.round().clamp(0, 255).to(images.dtype))
    return torch.cat(turned)


def _scenario(
    data: Source, transforms: list[Transform], task_labels: bool, normalise: bool
) -> Scenario:
    train, test = (
        [(transform(x), y) for transform in transforms] for x, y in (data.train, data.test)
    )
    prepare = make_prepare(data, normalise, crop=0, flip=False)
    return make_scenario(train, test, data.classes, task_labels, prepare)


def _check_count(experiences: int) -> None:
    if experiences < 1:
        raise InputError(f"scenario.experiences={experiences}: expected at least 1; raise it")


def permuted(
    source: str,
    experiences: int = 5,
    task_labels: bool = False,
    normalise: bool = False,
    validation: float = 0.0,
    download: bool = False,
    seed: int = 0,
) -> Scenario:
    """Experience 0 as it is, each later one with pixels permuted in an order of its own.

    Goodfellow et al. 2014. `seed` sets the permutations.
    """
    _check_count(experiences)
    data = load(source, download, validation)
    pixels = data.shape[1] * data.shape[2]
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(pixels, generator=generator) for _ in range(experiences - 1)]
    transforms: list[Transform] = [lambda x: x]
    transforms += [lambda x, order=order: permute_pixels(x, order) for order in orders]
    return _scenario(data, transforms, task_labels, normalise)


def rotated(
    source: str,
    experiences: int = 5,
    degrees: float = 180.0,
    task_labels: bool = False,
    normalise: bool = False,
    validation: float = 0.0,
    download: bool = False,
    seed: int = 0,
) -> Scenario:
    """Images turned by angles that rise evenly from 0, `degrees` being where the next would be.

    After Lopez-Paz & Ranzato 2017. `seed` changes nothing here: the angles are fixed.
    """
    _check_count(experiences)
    data = load(source, download, validation)
    angles = [k * degrees / experiences for k in range(experiences)]
    transforms: list[Transform] = [lambda x, angle=angle: rotate(x, angle) for angle in angles]
    return _scenario(data, transforms, task_labels, normalise)
