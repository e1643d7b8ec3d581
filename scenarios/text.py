"""Language modelling on one text after another, scored in bits per character."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clplat.errors import InputError, at_least
from clplat.prepare import Prepare
from clplat.scenario import Scenario
from scenarios.positions import check_positions
from scenarios.streams import make_scenario
from scenarios.texts import read
from scenarios.tokens import Tokenizer, make_tokenizer

Pair = tuple[Tensor, Tensor]  # tokens (N, window), and of each the next one

HELD_OUT = 10  # the last of so many parts of a text is for testing
EMPTY = 1e-6  # weight of a window in which no character begins: its bits count all the same


class Tokens(Prepare):
    """Tokens become floats of the same value, which any backbone takes."""

    def __call__(self, x: Tensor, training: bool = False) -> Tensor:
        return x.float()


# --- score and loss --------------------------------------------------------------------------


def _position_losses(output: Tensor, target: Tensor) -> Tensor:
    """Of logits (B, T, V) and tokens (B, T): the cross-entropy in nats, (B, T)."""
    check_positions(output, target)
    return cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none").view_as(target)


def mean_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of logits (B, T, V) and tokens (B, T): the mean over samples and positions, in nats."""
    return _position_losses(output, target).mean()


class NegativeBitsPerCharacter:
    """Bits that a model takes to encode each window, per character and negative; 0 is the best.

    Mean by `weight`, it is all bits over all characters. `characters` (V,): how many begin in each
    kind of token, so that tokenizers can be compared.
    """

    __name__ = "negative_bits_per_character"

    def __init__(self, characters: Tensor):
        self.characters = characters.float()

    def weight(self, target: Tensor) -> Tensor:
        """How many characters begin in each window (B, T)."""
        self.characters = self.characters.to(target.device)  # there it stays
        return self.characters[target].sum(1).clamp(min=EMPTY)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        bits = _position_losses(output, target).sum(1) / math.log(2)
        return -bits / self.weight(target)


# --- windows ---------------------------------------------------------------------------------


def split_text(text: str) -> tuple[str, str]:
    """What is for training, and the last part, for testing."""
    cut = len(text) - len(text) // HELD_OUT
    return text[:cut], text[cut:]


def drawn_starts(tokens: int, window: int, count: int, generator: torch.Generator) -> Tensor:
    """Where `count` windows of `window` + 1 tokens begin, each anywhere with the same chance."""
    return torch.randint(tokens - window, (count,), generator=generator)


def even_starts(tokens: int, window: int, count: int) -> Tensor:
    """Where `count` windows begin from the first token to the last, evenly spaced.

    No token is the target of two, where the tokens suffice for that.
    """
    return torch.arange(count) * (tokens - window - 1) // max(1, count - 1)


def windows(tokens: Tensor, starts: Tensor, window: int) -> Pair:
    """The `window` tokens from each start on, and those from the next one on."""
    rows = tokens[starts[:, None] + torch.arange(window + 1)]
    return rows[:, :-1], rows[:, 1:]


def smallest(vocabulary: int) -> torch.dtype:
    """The smallest integers that number so many kinds of token."""
    if vocabulary <= 2**8:
        return torch.uint8
    return torch.int16 if vocabulary <= 2**15 else torch.int32


# --- the scenario ----------------------------------------------------------------------------


def text(
    sources: Sequence[str] = ("english", "python", "cpp"),
    experiences: int | None = None,
    tokenizer: str = "byte",
    vocabulary: int = 512,
    window: int = 128,
    samples: int = 2000,
    test_samples: int = 200,
    general: str | None = None,
    task_labels: bool = False,
    seed: int = 0,
) -> Scenario:
    """Experience k is the k-th text, as `scenarios.texts.read` names them: predict the next token.

    Samples are windows of tokens (N, window), labels the next tokens (N, window). The last tenth
    of a text is for testing, in windows evenly spaced; training windows are drawn by `seed` from
    the rest. Tokenizers: "byte"; "character" and "bpe" (of `vocabulary` tokens), learned from what
    is for training; or a path to a tokenizer.json or to a folder with one. `general`: one text
    more, apart from the stream, as the scenario's third stream. `experiences`: only the first so
    many texts, None for all. The score is bits per character, negative.
    """
    _check(sources, experiences, window, samples, test_samples)
    names = [("scenario.sources", name) for name in sources[:experiences]]
    if general is not None:
        names.append(("scenario.general", general))
    parts = [split_text(read(name, key)) for key, name in names]
    learned = make_tokenizer(tokenizer, [train for train, _ in parts], vocabulary)

    generator = torch.Generator().manual_seed(seed)
    train, test = [], []
    for (key, name), (for_training, for_testing) in zip(names, parts, strict=True):
        tokens = _encoded(learned, for_training, window, f"{key}={name}: the part for training")
        train.append(windows(tokens, drawn_starts(len(tokens), window, samples, generator), window))
        if key == "scenario.sources":
            tokens = _encoded(learned, for_testing, window, f"{key}={name}: the part for testing")
            test.append(windows(tokens, even_starts(len(tokens), window, test_samples), window))
    return make_scenario(
        train[: len(test)],
        test,
        learned.vocabulary,
        task_labels,
        Tokens(),
        general=train[-1] if general is not None else None,
        score=NegativeBitsPerCharacter(learned.characters),
        criterion=mean_cross_entropy,
        head="single",
        vocabulary=learned.vocabulary,
    )


def _encoded(tokenizer: Tokenizer, text: str, window: int, what: str) -> Tensor:
    tokens = tokenizer.encode(text)
    if len(tokens) <= window:
        raise InputError(
            f"{what} has {len(tokens)} tokens; expected at least {window + 1}, one more than "
            "scenario.window; name a longer text, or lower scenario.window"
        )
    return tokens.to(smallest(tokenizer.vocabulary))


def _check(
    sources: Sequence[str], experiences: int | None, window: int, samples: int, test_samples: int
) -> None:
    if isinstance(sources, str) or not sources or any(not isinstance(s, str) for s in sources):
        raise InputError(
            f"scenario.sources={sources}: expected a list of texts; name at least one, such as "
            "[english]"
        )
    if experiences is not None and not 1 <= experiences <= len(sources):
        raise InputError(
            f"scenario.experiences={experiences}: expected 1 to {len(sources)}, the number of "
            "scenario.sources; choose one of these, or null for all"
        )
    at_least("scenario", 1, window=window, samples=samples, test_samples=test_samples)
