"""Formal languages as streams: strings that grow, or languages in turn, tested on longer strings.

A string stands at the end of its row of tokens, with PAD before it. Each generator takes how long
its strings are, lengths (N,), the `total` of tokens of a row and a torch.Generator, and returns
tokens (N, total) from 1 up, and labels (N,) from 0 up.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import permutations

import torch
from torch import Tensor

from clplat.errors import InputError, at_least
from clplat.prepare import Prepare
from clplat.scenario import Scenario
from scenarios.streams import make_scenario

PAD = 0  # the token before a string, the same one whichever languages share a vocabulary
# Tokens before the longest string: on fewer, a network that starts from h = 0 is not yet at rest
# where all the shorter strings find it, and may count from odd what they count from even.
REST = 8

Pair = tuple[Tensor, Tensor]  # tokens (N, total) and labels (N,)


def _inside(places: Tensor, total: int) -> Tensor:
    """Which of the `total` places of a row its string takes: the last places[i] of row i."""
    if int(places.max()) > total:
        raise ValueError(f"total={total}: a string takes {int(places.max())} places; raise total")
    return torch.arange(total) >= total - places[:, None]


def _padded(symbols: Tensor, inside: Tensor) -> Tensor:
    """The tokens of symbols that count from 0: one more each, and PAD where no string is."""
    return (symbols + 1).where(inside, PAD)


# --- groups ----------------------------------------------------------------------------------


def symmetric_group(points: int) -> Tensor:
    """The table (n!, n!) of products: entry (a, b) is "first a, then b".

    Elements are numbered as itertools.permutations gives them, the identity first.
    """
    elements = torch.tensor(list(permutations(range(points))))  # row g has the images g(i)
    digits = points ** torch.arange(points)  # of a number that tells a row
    number = torch.zeros(points**points, dtype=torch.long)
    number[(elements * digits).sum(1)] = torch.arange(len(elements))
    products = elements[:, elements].transpose(0, 1)  # at (a, b, i): b(a(i))
    return number[(products * digits).sum(2)]


def word_problem(table: Tensor, lengths: Tensor, total: int, generator: torch.Generator) -> Pair:
    """The product of random elements of a group, the first token being applied first.

    Merrill et al. 2024; Grazzi et al. 2025. Parity is the word problem of S2, element 1 being the
    swap. `table` (G, G) of products, 0 the identity. ValueError: a string exceeds `total`.
    """
    inside = _inside(lengths, total)
    elements = torch.randint(len(table), inside.shape, generator=generator)
    product = torch.zeros_like(lengths)
    for element in (elements * inside).unbind(1):
        product = table[product, element]
    return _padded(elements, inside), product


# --- arithmetic ------------------------------------------------------------------------------


def modular_arithmetic(
    lengths: Tensor, total: int, generator: torch.Generator, modulus: int = 5
) -> Pair:
    """The value, modulo `modulus`, of digits joined by + - *, evaluated strictly left to right.

    After "modular arithmetic (simple)" of Deletang et al. 2023, where * binds tighter; here no
    operator does, so 1 + 2 * 3 is 9. Lengths count digits: n of them take 2n - 1 places. Symbols
    are the digits, then + - *. A product with 0 forgets all before it, for modulus 5 once in 15
    digits on average, and makes 0 the most frequent value. ValueError: a string exceeds `total`.
    """
    inside = _inside(2 * lengths - 1, total)
    shape = (len(lengths), (total + 1) // 2)  # pairs of an operator and the digit behind it
    digits = torch.randint(modulus, shape, generator=generator)
    operators = torch.randint(3, shape, generator=generator)
    left, right = torch.arange(modulus)[:, None], torch.arange(modulus)
    table = torch.stack([left + right, left - right, left * right]) % modulus

    value = torch.zeros_like(lengths)
    # 0 + 0 before the string, and 0 + digit where it begins.
    applied = operators * _inside(lengths - 1, shape[1]), digits * _inside(lengths, shape[1])
    for operator, digit in zip(*(part.unbind(1) for part in applied), strict=True):
        value = table[operator, value, digit]
    symbols = torch.stack([modulus + operators, digits], 2).flatten(1)[:, -total:]
    return _padded(symbols, inside), value


# --- brackets --------------------------------------------------------------------------------


def _balanced_strings(inside: Tensor, generator: torch.Generator, kinds: int, depth: int) -> Tensor:
    """Balanced brackets where `inside`, else -1; kind k opens as symbol k, closes as kinds + k.

    A fair coin opens or closes at every place where both can be; not all words are equally likely.
    """
    count, total = inside.shape
    coins = torch.randint(2, inside.shape, generator=generator) == 1
    drawn = torch.randint(kinds, inside.shape, generator=generator)
    row, height = torch.arange(count), torch.zeros(count, dtype=torch.long)
    stack = torch.zeros(count, depth + 1, dtype=torch.long)
    symbols = torch.empty_like(drawn)
    for t in range(total):
        room = (height < depth) & (height < total - t)  # what is open must still be closed
        opens = (height == 0) | (coins[:, t] & room)
        top = stack[row, height - 1]
        stack[row, height] = drawn[:, t]  # above the top, of no account, where nothing opens
        symbols[:, t] = drawn[:, t].where(opens, kinds + top)
        height += (2 * opens.long() - 1) * inside[:, t]
    return symbols.where(inside, -1)


def balanced(symbols: Tensor, kinds: int) -> Tensor:
    """Whether each row (N, T) of brackets is balanced: (N,), by a stack for each; -1 is none."""
    count, total = symbols.shape
    row, height = torch.arange(count), torch.zeros(count, dtype=torch.long)
    stack = torch.zeros(count, total + 1, dtype=torch.long)
    fits = torch.ones(count, dtype=torch.bool)
    for symbol in symbols.unbind(1):
        closes = symbol >= kinds
        opens = (symbol >= 0) & ~closes
        fits &= ~closes | ((height > 0) & (stack[row, height - 1] == symbol - kinds))
        stack[row, height] = symbol  # above the top, of no account, where nothing opens
        height = (height + opens.long() - closes.long()).clamp(min=0)
    return fits & (height == 0)


def dyck(
    lengths: Tensor, total: int, generator: torch.Generator, kinds: int = 2, depth: int = 8
) -> Pair:
    """Whether brackets of `kinds` kinds are balanced: 1 if so, as for half of the strings.

    Chomsky & Schuetzenberger 1963; no deeper than `depth` as in Hewitt et al. 2020. An unbalanced
    string is a balanced one of which two brackets have changed places: neither its length nor how
    often each bracket occurs tells, though who looks at neighbours only is right for 78 % of those
    of length 16 to 256. Lengths count brackets. ValueError: an odd length, or a string exceeds
    `total`.
    """
    if (lengths % 2).any() or (lengths < 2).any():
        raise ValueError("lengths: expected even numbers from 2, for every bracket has a partner")
    right = _balanced_strings(_inside(lengths, total), generator, kinds, depth)
    labels = torch.randint(2, lengths.shape, generator=generator)
    symbols, wrong = right.clone(), (labels == 0).nonzero()[:, 0]
    while len(wrong):  # some exchanges leave a string balanced: draw another for these
        back = torch.rand(len(wrong), 2, generator=generator) * lengths[wrong, None]
        rows, places = right[wrong], total - 1 - back.long()
        symbols[wrong] = rows.scatter(1, places, rows.gather(1, places.flip(1)))
        wrong = wrong[balanced(symbols[wrong], kinds)]
    return _padded(symbols, symbols >= 0), labels


# --- scenarios -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Language:
    """A generator of strings, and what a scenario must know of it."""

    draw: Callable[[Tensor, int, torch.Generator], Pair]
    symbols: int  # that a string is made of, without PAD
    classes: int
    width: int = 1  # at most so many places for each unit of length
    multiple: int = 1  # lengths are multiples of it
    first_symbol: int = 0  # where the language begins in a vocabulary that others share
    first_class: int = 0

    def strings(self, lengths: Tensor, total: int, generator: torch.Generator) -> Pair:
        """Tokens (N, total) as floats, and labels (N,), both numbered among all languages."""
        tokens, labels = self.draw(lengths, total, generator)
        tokens = (tokens + self.first_symbol).where(tokens != PAD, PAD)
        return tokens.float(), labels + self.first_class


LANGUAGES = {
    "parity": Language(partial(word_problem, symmetric_group(2)), symbols=2, classes=2),
    "modular_arithmetic": Language(modular_arithmetic, symbols=8, classes=5, width=2),
    "s3": Language(partial(word_problem, symmetric_group(3)), symbols=6, classes=6),
    "s5": Language(partial(word_problem, symmetric_group(5)), symbols=120, classes=120),
    "dyck": Language(dyck, symbols=4, classes=2, multiple=2),
}


def _side_by_side(names: Sequence[str]) -> list[Language]:
    """These languages, each behind the symbols and classes of those before it."""
    if isinstance(names, str) or not names or any(name not in LANGUAGES for name in names):
        raise InputError(
            f"scenario.names={names}: expected a list of some of {', '.join(LANGUAGES)}; choose "
            "from these"
        )
    placed, symbols, classes = [], 0, 0
    for language in (LANGUAGES[name] for name in names):
        placed.append(replace(language, first_symbol=symbols, first_class=classes))
        symbols, classes = symbols + language.symbols, classes + language.classes
    return placed


def vocabulary(names: Sequence[str]) -> int:
    """How many tokens these languages have together, PAD among them. InputError: an unknown one."""
    return 1 + sum(language.symbols for language in _side_by_side(names))


def _scenario(
    plan: Sequence[tuple[Language, int, int]],
    samples: int,
    test_samples: int,
    task_labels: bool,
    seed: int,
) -> Scenario:
    """Experience k is plan[k]: a language, its longest training strings, the length of a test."""
    at_least("scenario", 1, samples=samples, test_samples=test_samples)
    generator = torch.Generator().manual_seed(seed)
    total = max(language.width * tested for language, _, tested in plan) + REST
    train, test = [], []
    for language, longest, tested in plan:
        units = torch.randint(1, longest // language.multiple + 1, (samples,), generator=generator)
        train.append(language.strings(language.multiple * units, total, generator))
        test.append(language.strings(torch.full((test_samples,), tested), total, generator))
    classes = max(language.first_class + language.classes for language, _, _ in plan)
    tokens = 1 + max(language.first_symbol + language.symbols for language, _, _ in plan)
    return make_scenario(train, test, classes, task_labels, Prepare(), vocabulary=tokens)


def growing(
    language: Language,
    experiences: int,
    samples: int,
    test_samples: int,
    task_labels: bool,
    seed: int,
) -> Scenario:
    """One language; experience k trains on lengths 1 to 2^(k + 1) and is tested on the longest.

    `seed` draws the strings.
    """
    if not 1 <= experiences <= 12:
        raise InputError(
            f"scenario.experiences={experiences}: expected 1 to 12, each twice as long as the one "
            "before; choose one of these"
        )
    doubling = [2 ** (k + 1) for k in range(experiences)]
    plan = [(language, length, length) for length in doubling]
    return _scenario(plan, samples, test_samples, task_labels, seed)


def lengths(
    language: str = "s3",
    experiences: int = 4,
    samples: int = 20000,
    test_samples: int = 1000,
    task_labels: bool = False,
    seed: int = 0,
) -> Scenario:
    """A language by its name, in strings that grow; there are `vocabulary([language])` tokens."""
    if language not in LANGUAGES:
        raise InputError(
            f"scenario.language={language}: expected one of {', '.join(LANGUAGES)}; choose one of "
            "these"
        )
    return growing(LANGUAGES[language], experiences, samples, test_samples, task_labels, seed)


def languages(
    names: Sequence[str] = ("parity", "modular_arithmetic", "s3", "dyck"),
    experiences: int | None = None,
    length: int = 16,
    test_length: int = 64,
    samples: int = 20000,
    test_samples: int = 1000,
    task_labels: bool = True,
    seed: int = 0,
) -> Scenario:
    """Experience k is the k-th language: trained on lengths 1 to `length`, tested on `test_length`.

    So the accuracy matrix shows length generalisation and forgetting at once. Every experience has
    tokens and labels of its own, though a name come twice; PAD alone is shared. `experiences`: only
    the first so many, None for all. `seed` draws the strings.
    """
    chosen = _side_by_side(names)
    if experiences is not None and not 1 <= experiences <= len(chosen):
        raise InputError(
            f"scenario.experiences={experiences}: expected 1 to {len(chosen)}, the number of "
            "scenario.names; choose one of these, or null for all"
        )
    chosen = chosen[:experiences]
    at_least("scenario", 1, length=length)
    if test_length < length:
        raise InputError(
            f"scenario.test_length={test_length}: expected at least scenario.length={length}; "
            "raise it, or lower scenario.length"
        )
    for key, value in (("length", length), ("test_length", test_length)):
        if any(value % language.multiple for language in chosen):
            raise InputError(
                f"scenario.{key}={value}: expected an even number, for the brackets of dyck come "
                f"in pairs; set {value + 1}, or leave dyck out of scenario.names"
            )
    plan = [(language, length, test_length) for language in chosen]
    return _scenario(plan, samples, test_samples, task_labels, seed)
