"""Which configs a picture is made of, and what of their streams it shows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hydra import compose, initialize_config_module
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from clplat.build import build_scenario
from clplat.check import check
from clplat.data import tensors_of
from clplat.drawn import DrawnData, drawn_data
from clplat.errors import InputError
from clplat.gallery.curves import orders_figure, series_figure
from clplat.gallery.images import (
    classes_figure,
    few_shot_figure,
    pixels_figure,
    transformed_figure,
)
from clplat.gallery.tokens import bits_figure, recall_figure, strings_figure, text_figure
from clplat.scenario import Scenario

SYMBOLS = {  # of scenarios.languages, in the order of their tokens
    "parity": "01",
    "modular_arithmetic": "01234+-*",
    "s3": "012345",
    "dyck": "([)]",
}


@dataclass(frozen=True)
class Built:
    """A scenario, the name and the keys of its config."""

    name: str
    keys: dict[str, Any]
    scenario: Scenario

    def pairs(self, stream: str = "train") -> list[tuple[Tensor, Tensor]]:
        """x as it is stored and y of each experience."""
        experiences: Any = self.scenario.streams[stream]
        return [(x, y) for x, y, _ in (tensors_of(e.dataset) for e in experiences)]


def build(name: str, overrides: Sequence[str]) -> Built:
    """Of the config scenario=name with some keys set otherwise."""
    with initialize_config_module("clplat.conf", version_base="1.3"):
        node = compose("config", overrides=[f"scenario={name}", *overrides])
    config: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    check(config, [])
    return Built(name, config["scenario"], build_scenario(config, []))


# --- of images -------------------------------------------------------------------------------


def split(built: Built) -> Figure:
    title = f"{built.name}: new classes in every experience (class: its number in the source)"
    return classes_figure(title, built.pairs(), built.scenario.class_order or ())


def transformed(permuted: Built, rotated: Built) -> Figure:
    streams = [(built.name, built.pairs()) for built in (permuted, rotated)]
    return transformed_figure("The same classes in every experience, transformed", streams)


def online(*orders: Built) -> Figure:
    streams = []
    for built in orders:
        ((_, labels),) = built.pairs()
        setting = {"blurry": "blur", "gaussian": "deviation"}.get(built.keys["order"])
        name = f"order={built.keys['order']}"
        name += f", {setting}={built.keys[setting]}" if setting else ""
        streams.append((name, labels, built.scenario.marks))
    groups = [y.unique().tolist() for _, y in orders[0].pairs("test")]
    title = f"{orders[0].name}: what comes when in a stream without boundaries (dotted: tested)"
    return orders_figure(title, streams, groups)


def few_shot(built: Built) -> Figure:
    title = f"{built.name}: the first of {built.keys['tasks']} tasks, images by label"
    about = "target set, asked last: other samples of all classes"
    return few_shot_figure(title, built.pairs(), built.pairs("test"), about, samples=5)


def instances(built: Built) -> Figure:
    title = f"{built.name}: images of one class, a label each"
    about = "target set, asked last: the same images, disturbed"
    return few_shot_figure(title, built.pairs(), built.pairs("test"), about, samples=2)


def sequential(by_class: Built, permuted: Built) -> Figure:
    streams = [(built.name, [x[0] for x, _ in built.pairs()]) for built in (by_class, permuted)]
    return pixels_figure(
        "An image of each experience, and its brightness as it is read pixel by pixel", streams
    )


# --- of bits and tokens ----------------------------------------------------------------------


def n_parity(built: Built) -> Figure:
    experiences = list(built.scenario.train_stream)
    data = drawn_data(experiences[-1].dataset)
    assert isinstance(data, DrawnData)
    bits, labels = data.draw(6, torch.Generator().manual_seed(data.seed))
    lengths = [built.keys["shortest"] + k for k in range(labels.shape[1])]
    title = f"n_parity: is the sum of the last N bits odd? (experience {len(experiences) - 1})"
    return bits_figure(title, bits[:, :, 0].long(), labels, lengths)


def _strings(x: Tensor, y: Tensor, first: int, count: int) -> tuple[Tensor, Tensor]:
    """The first few samples, tokens numbered within their language; 0 stays 0."""
    tokens = x[:count].long()
    return (tokens - first).where(tokens > 0, 0), y[:count]


def word_problems(built: Built) -> Figure:
    experiences = []
    for k, (x, y) in enumerate(built.pairs()):
        name = f"experience {k}: up to {2 ** (k + 1)} elements"
        experiences.append((name, *_strings(x, y, 0, 3), SYMBOLS[built.keys["language"]]))
    title = f"{built.name}, language={built.keys['language']}: the product of the elements"
    return strings_figure(title, experiences, columns=len(experiences[0][1][0]))


def languages(built: Built) -> Figure:
    experiences, first = [], 0
    for k, ((x, y), name) in enumerate(zip(built.pairs(), built.keys["names"], strict=False)):
        strings = _strings(x, y, first, 3)
        experiences.append((f"experience {k}: {name}", *strings, SYMBOLS[name]))
        first += len(SYMBOLS[name])
    title = "languages: one after another, each with symbols and labels of its own"
    return strings_figure(title, experiences, columns=2 * built.keys["length"])


def recall(*built: Built) -> Figure:
    streams = []
    for one in built:
        rows = []
        for i, stream in enumerate(one.scenario.segments[:-1]):
            first = [(x[0], y[0]) for x, y, _ in (tensors_of(e.dataset) for e in stream)]
            asked = [(x[y >= 0].long(), y[y >= 0]) for x, y in first[: i + 1]]
            x, y = first[0]
            rows.append((x[y < 0].long(), asked))
        name = f"{one.name}, {', '.join(f'{k}={one.keys[k]}' for k in ('pairs', 'filler'))}: read"
        streams.append((name, one.keys["keys"], rows))
    title = "Keys k and values v, a colour a segment; row i of the matrix: segments 0..i are read"
    return recall_figure(title, streams)


def text(built: Built) -> Figure:
    texts = [
        (f"experience {k}: {name}", x[0], y[0])
        for k, ((x, y), name) in enumerate(zip(built.pairs(), built.keys["sources"], strict=False))
    ]
    return text_figure("text: predict the next byte at every position", texts)


# --- of series -------------------------------------------------------------------------------


def series(built: Built) -> Figure:
    order = built.scenario.class_order or ()
    experiences = [
        [(f"label {c} (class {order[c]})", x[y == c][0]) for c in y.unique().tolist()]
        for x, y in built.pairs()
    ]
    title = f"series, {built.keys['name']}: one of each class, a line for each value"
    return series_figure(title, experiences)


# --- by name ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """A figure of some configs, each a name and what is set otherwise.

    `{data}` in these is the first of `data` that is on this machine.
    """

    figure: Callable[..., Figure]
    configs: Sequence[str]
    data: Sequence[str] = ("",)


IMAGES = ("fashion_mnist", "digits")
ORDERS = ("split", "blurry", "gaussian", "random")
SHORT = "scenario.experiences=4 scenario.pairs"

KINDS = {
    "split": Kind(split, ["split_{data}"], IMAGES),
    "transformed": Kind(transformed, ["permuted_{data}", "rotated_digits"], IMAGES),
    "online": Kind(online, [f"online_{{data}} scenario.order={o}" for o in ORDERS], IMAGES),
    "few_shot": Kind(few_shot, ["cfsl/classes_and_samples_4"]),
    "instances": Kind(instances, ["cfsl/instance_4x5"]),
    "sequential": Kind(
        sequential,
        [
            "sequential_digits scenario.experiences=3",
            "permuted_sequential_digits scenario.experiences=3",
        ],
    ),
    "n_parity": Kind(n_parity, ["n_parity scenario.experiences=5 scenario.shortest=2"]),
    "word_problems": Kind(word_problems, ["word_problems"]),
    "languages": Kind(languages, ["languages"]),
    "recall": Kind(recall, [f"recall {SHORT}=2", f"passkey {SHORT}=1 scenario.filler=4"]),
    "series": Kind(series, ["series"]),
    "text": Kind(text, ["text"]),
}


def draw(name: str, overrides: Sequence[str] = ()) -> Figure:
    """A picture by its name, `overrides` beside its own. InputError: its data are not here."""
    kind = KINDS[name]

    def of(data: str) -> Figure:
        configs = [config.format(data=data).split() for config in kind.configs]
        return kind.figure(*(build(c[0], [*c[1:], *overrides]) for c in configs))

    *preferred, last = kind.data
    for data in preferred:
        try:
            return of(data)
        except InputError:
            continue
    return of(last)
