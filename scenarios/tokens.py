"""From text to tokens, and how many characters each token stands for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clplat.errors import InputError
from scenarios.texts import extra

TOKENIZERS = ("byte", "character", "bpe")
LOST = 0.01  # share of a text's characters that a tokenizer's normalisation may add or take


@dataclass(frozen=True)
class Tokenizer:
    """From text to tokens (T,), and how many characters begin in each kind of token (V,)."""

    encode: Callable[[str], Tensor]
    characters: Tensor

    @property
    def vocabulary(self) -> int:
        return len(self.characters)


def begun(raw: bytes) -> int:
    """How many characters begin in these bytes of UTF-8: all bytes but 10xxxxxx begin one."""
    return sum(byte & 0xC0 != 0x80 for byte in raw)


def byte_tokenizer() -> Tokenizer:
    """The bytes of UTF-8: 256 kinds."""

    def encode(text: str) -> Tensor:
        return torch.from_numpy(np.frombuffer(text.encode(), np.uint8).copy())

    return Tokenizer(encode, torch.tensor([begun(bytes([byte])) for byte in range(256)]))


def character_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """The characters of `texts` by code point, and behind them one kind for all others."""
    alphabet = np.array(sorted(map(ord, set().union(*texts))))

    def encode(text: str) -> Tensor:
        points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
        place = np.searchsorted(alphabet, points)
        known = alphabet[place.clip(max=len(alphabet) - 1)] == points
        return torch.from_numpy(np.where(known, place, len(alphabet)))

    return Tokenizer(encode, torch.ones(len(alphabet) + 1, dtype=torch.long))


def byte_alphabet() -> dict[str, int]:
    """The byte behind each letter in which byte-level tokenizers write their tokens (GPT-2's).

    Bytes that print in Latin-1 are themselves; the others, in order, the letters from 256 up.
    """
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + k): b for k, b in enumerate(others)}


def _begun_in_token(token: str, letters: dict[str, int] | None) -> int:
    """`letters`: the byte alphabet, None where tokens are characters, or bytes as "<0xE2>"."""
    if letters is not None and all(letter in letters for letter in token):
        return begun(bytes(letters[letter] for letter in token))
    if len(token) == 6 and token.startswith("<0x"):
        return begun(bytes.fromhex(token[3:5]))
    return len(token)


def _from_huggingface(tokenizer: Any) -> Tokenizer:
    """Of the package tokenizers; neither it nor the model adds tokens to a text."""
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    parts = json.loads(tokenizer.to_str())
    byte_level = "ByteLevel" in json.dumps([parts["pre_tokenizer"], parts["decoder"]])
    characters = torch.zeros(max(vocabulary.values()) + 1, dtype=torch.long)
    letters = byte_alphabet() if byte_level else None
    for token, number in vocabulary.items():
        characters[number] = _begun_in_token(token, letters)

    def encode(text: str) -> Tensor:
        return torch.tensor(tokenizer.encode(text, add_special_tokens=False).ids)

    return Tokenizer(encode, characters)


def bpe_tokenizer(texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """Byte-pair encoding of bytes, learned from `texts` (Radford et al. 2019).

    `vocabulary` kinds, or fewer where the texts have no more pairs to join.
    InputError: less than 256, for every byte is one.
    """
    if vocabulary < 256:
        raise InputError(
            f"scenario.vocabulary={vocabulary}: expected at least 256, for bpe begins with the "
            "bytes; raise it"
        )
    package = extra("tokenizers", "scenario.tokenizer=bpe")
    tokenizer = package.Tokenizer(package.models.BPE())
    tokenizer.pre_tokenizer = package.pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = package.trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=package.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return _from_huggingface(tokenizer)


def saved_tokenizer(path: str) -> Tokenizer:
    """A tokenizer.json, or that of a folder in which a model was saved.

    InputError: no such file, or one that loses text, by lower case or unknown words.
    """
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise InputError(
            f"scenario.tokenizer={path}: no such tokenizer; expected {', '.join(TOKENIZERS)}, a "
            "tokenizer.json, or a folder with one; correct it"
        )
    package = extra("tokenizers", f"scenario.tokenizer={path}")
    try:
        tokenizer = package.Tokenizer.from_file(str(file))
    except Exception as error:  # the package raises no narrower one
        raise InputError(
            f"scenario.tokenizer={path}: expected a tokenizer.json of the package tokenizers "
            f"({error}); save it anew"
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    found = _from_huggingface(tokenizer)

    def encode(text: str) -> Tensor:
        tokens = found.encode(text)
        count = int(found.characters[tokens].sum())
        if abs(count - len(text)) > 1 + LOST * len(text):
            raise InputError(
                f"scenario.tokenizer={path}: its tokens stand for {count} characters where the "
                f"text has {len(text)}; expected one that keeps all, so that bits per character "
                "can be told; choose a byte-level one"
            )
        return tokens

    return Tokenizer(encode, found.characters)


def make_tokenizer(name: str, texts: Sequence[str], vocabulary: int) -> Tokenizer:
    """By its name or path; `texts` are what it may learn from, `vocabulary` is that of bpe."""
    named: dict[str, Callable[[], Tokenizer]] = {
        "byte": byte_tokenizer,
        "character": partial(character_tokenizer, texts),
        "bpe": partial(bpe_tokenizer, texts, vocabulary),
    }
    return named.get(name, partial(saved_tokenizer, name))()
