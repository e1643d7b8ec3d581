"""Formal languages: labels by evaluations of another kind, padding, and what each language owns."""

import re
from collections import Counter
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

import clplat.conf
from clplat.data import tensors_of
from clplat.errors import InputError
from scenarios.languages import (
    LANGUAGES,
    PAD,
    REST,
    balanced,
    dyck,
    languages,
    lengths,
    modular_arithmetic,
    vocabulary,
)

CONF = Path(clplat.conf.__file__).parent / "scenario"
KNOWN = "parity, modular_arithmetic, s3, s5, dyck"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def sizes(language: str, count: int, longest: int) -> torch.Tensor:
    """Lengths from the shortest to the longest, over and over."""
    step = LANGUAGES[language].multiple
    return step * (torch.arange(count) % (longest // step) + 1)


def written(tokens: torch.Tensor) -> list[list[int]]:
    """The symbols of each string, from 0, without the padding."""
    return [[int(token) - 1 for token in row if token != PAD] for row in tokens]


# --- naive evaluations -----------------------------------------------------------------------


def product(points: int, string: list[int]) -> int:
    """The number of "first this, then that": where every point is sent, one after the other."""
    elements = list(permutations(range(points)))
    images = []
    for point in range(points):
        for symbol in string:
            point = elements[symbol][point]
        images.append(point)
    return elements.index(tuple(images))


def value(string: list[int]) -> int:
    """Of digits 0 to 4 and 5, 6, 7 for + - *, by Python's integers."""
    total = string[0]
    for operator, digit in zip(string[1::2], string[2::2], strict=True):
        total = {5: total + digit, 6: total - digit, 7: total * digit}[operator]
    return total % 5


def pairs_up(string: list[int], kinds: int = 2) -> bool:
    stack: list[int] = []
    for symbol in string:
        if symbol < kinds:
            stack.append(symbol)
        elif not stack or stack.pop() != symbol - kinds:
            return False
    return not stack


def deepest(string: list[int], kinds: int) -> int:
    heights, height = [0], 0
    for symbol in string:
        height += 1 if symbol < kinds else -1
        heights.append(height)
    return max(heights)


NAIVE = {
    "parity": lambda string: string.count(1) % 2,
    "modular_arithmetic": value,
    "s3": lambda string: product(3, string),
    "s5": lambda string: product(5, string),
    "dyck": lambda string: int(pairs_up(string)),
}


# --- strings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LANGUAGES)
@pytest.mark.parametrize("total", [39, 40, 57])
def test_labels_equal_a_naive_evaluation(name, total):
    drawn = sizes(name, 400, 20)
    tokens, labels = LANGUAGES[name].draw(drawn, total, generator())
    assert tokens.shape == (400, total)
    assert labels.dtype == torch.long
    assert labels.tolist() == [NAIVE[name](string) for string in written(tokens)]


def test_there_is_a_naive_evaluation_of_every_language():
    assert set(NAIVE) == set(LANGUAGES)


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_string_stands_at_the_end_and_is_as_long_as_asked(name):
    drawn = sizes(name, 300, 12)
    tokens, _ = LANGUAGES[name].draw(drawn, 30, generator())
    places = 2 * drawn - 1 if name == "modular_arithmetic" else drawn
    for row, count in zip(tokens.tolist(), places.tolist(), strict=True):
        assert row[: 30 - count] == [PAD] * (30 - count)
        assert PAD not in row[30 - count :]
    assert set(tokens.unique().tolist()) == {*range(LANGUAGES[name].symbols + 1)}


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_string_that_exceeds_its_row_is_refused(name):
    language = LANGUAGES[name]
    with pytest.raises(ValueError, match="total=4: a string takes"):
        language.draw(torch.tensor([2, 6]), 4, generator())


def test_arithmetic_has_a_digit_an_operator_a_digit():
    tokens, _ = modular_arithmetic(torch.full((500,), 6), 11, generator())
    places = tokens.T - 1
    for place, symbols in enumerate(places):
        assert set(symbols.tolist()) == ({5, 6, 7} if place % 2 else {0, 1, 2, 3, 4})


@pytest.mark.parametrize(("kinds", "depth"), [(1, 1), (1, 4), (2, 3), (3, 8)])
def test_dyck_of_any_kinds_and_depth(kinds, depth):
    tokens, labels = dyck(sizes("dyck", 600, 24), 24, generator(), kinds, depth)
    strings = written(tokens)
    assert labels.tolist() == [pairs_up(string, kinds) for string in strings]
    right = [string for string, label in zip(strings, labels.tolist(), strict=True) if label]
    assert max(deepest(string, kinds) for string in right) == depth


def test_balanced_equals_a_stack_on_every_string_of_six_places():
    symbols = torch.cartesian_prod(*[torch.arange(-1, 4)] * 6)
    naive = [pairs_up([s for s in row if s >= 0]) for row in symbols.tolist()]
    assert balanced(symbols, 2).tolist() == naive
    # Catalan's numbers, in two kinds, at any places: 1 + 15 2 + 15 2 4 + 5 8.
    assert sum(naive) == 191


@pytest.mark.parametrize("wrong", [3, 0])
def test_dyck_refuses_lengths_that_no_balanced_string_has(wrong):
    with pytest.raises(ValueError, match="lengths: expected even numbers from 2"):
        dyck(torch.tensor([4, wrong]), 8, generator())


# --- how labels are spread -------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 4, 16])
def test_half_of_dycks_strings_of_any_length_are_balanced(length):
    _, labels = dyck(torch.full((4000,), length), length, generator())
    assert float(labels.float().mean()) == pytest.approx(0.5, abs=0.04)


@pytest.mark.parametrize("length", [2, 8, 32])
def test_counts_of_brackets_do_not_tell_an_unbalanced_string(length):
    """Every kind closes as often as it opens, and either class has as many of each kind."""
    tokens, labels = dyck(torch.full((4000,), length), length, generator())
    counts = torch.stack([(tokens == symbol + 1).sum(1) for symbol in range(4)], 1)
    assert torch.equal(counts[:, :2], counts[:, 2:])
    means = [counts[labels == label].float().mean(0) / length for label in (0, 1)]
    torch.testing.assert_close(means[0], means[1], rtol=0, atol=0.02)


@pytest.mark.parametrize("name", ["parity", "s3", "s5"])
def test_products_are_spread_evenly_over_the_group(name):
    _, labels = LANGUAGES[name].draw(sizes(name, 24000, 9), 9, generator())
    classes = LANGUAGES[name].classes
    share = torch.bincount(labels, minlength=classes) * classes / 24000
    torch.testing.assert_close(share, torch.ones(classes), rtol=0, atol=0.3)


def test_values_of_arithmetic_are_spread_but_for_the_zeros_that_products_make():
    _, labels = modular_arithmetic(torch.full((20000,), 30), 59, generator())
    share = torch.bincount(labels, minlength=5) / 20000
    # A 0 stays: p = 1/5 (1 - p) + (2/3 1/5 + 1/3) p, so p = 3/11 and the others share the rest.
    expected = torch.tensor([3, 2, 2, 2, 2]) / 11
    torch.testing.assert_close(share, expected, rtol=0, atol=0.015)


# --- scenarios -------------------------------------------------------------------------------


def columns(scenario) -> list[list[list[torch.Tensor]]]:
    return [
        [tensors_of(experience.dataset) for experience in stream]
        for stream in (scenario.train_stream, scenario.test_stream)
    ]


SMALL: dict[str, Any] = {"samples": 400, "test_samples": 60}


@pytest.mark.parametrize("name", LANGUAGES)
def test_each_experience_allows_twice_the_length(name):
    scenario = lengths(name, 3, **SMALL)
    total = LANGUAGES[name].width * 8 + REST
    assert scenario.input_shape == (total,)
    assert scenario.n_classes == LANGUAGES[name].classes
    train, test = columns(scenario)
    for k, ((x, y, _), (tested, z, _)) in enumerate(zip(train, test, strict=True)):
        longest = 2 ** (k + 1)
        assert x.dtype == torch.float32
        assert (x.shape, tested.shape) == ((400, total), (60, total))
        assert y.tolist() == [NAIVE[name](string) for string in written(x)]
        assert z.tolist() == [NAIVE[name](string) for string in written(tested)]
        allowed = sizes(name, longest, longest).unique()
        places = 2 * allowed - 1 if name == "modular_arithmetic" else allowed
        assert set((x != PAD).sum(1).tolist()) == set(places.tolist())
        assert set((tested != PAD).sum(1).tolist()) == {int(places[-1])}


def test_each_language_is_an_experience_with_tokens_and_labels_of_its_own():
    names = ["dyck", "s3", "modular_arithmetic", "s5", "parity"]
    scenario = languages(names, length=6, test_length=10, samples=3000, test_samples=60)
    assert scenario.n_classes == 2 + 6 + 5 + 120 + 2
    assert scenario.input_shape == (20 + REST,)
    train, test = columns(scenario)
    tokens, classes = 0, 0
    for name, (x, y, _), (tested, z, _) in zip(names, train, test, strict=True):
        language = LANGUAGES[name]
        assert set(x.unique().tolist()) == {
            0.0,
            *range(tokens + 1, tokens + language.symbols + 1),
        }
        assert set(y.tolist()) == {*range(classes, classes + language.classes)}
        for drawn, labels, allowed in ((x, y, sizes(name, 6, 6)), (tested, z, torch.tensor([10]))):
            own = (drawn - tokens).where(drawn != PAD, PAD)
            assert (labels - classes).tolist() == [NAIVE[name](string) for string in written(own)]
            places = 2 * allowed - 1 if name == "modular_arithmetic" else allowed
            assert set((drawn != PAD).sum(1).tolist()) == set(places.tolist())
        tokens, classes = tokens + language.symbols, classes + language.classes
    assert vocabulary(names) == tokens + 1 == 141


def test_lengths_of_training_strings_are_drawn_evenly():
    scenario = languages(["parity", "dyck"], length=4, test_length=4, samples=8000)
    for (x, _, _), shares in zip(columns(scenario)[0], ([1, 2, 3, 4], [2, 4]), strict=True):
        counts = Counter((x != PAD).sum(1).tolist())
        assert sorted(counts) == shares
        assert max(counts.values()) < 1.15 * min(counts.values())


def test_a_language_named_twice_comes_under_other_tokens_and_labels():
    (first, second), _ = columns(languages(["s3", "s3"], length=4, test_length=4, **SMALL))
    assert (first[0].max(), second[0].max()) == (6, 12)
    assert not set(first[1].tolist()) & set(second[1].tolist())


def test_experiences_takes_the_first_of_the_names():
    scenario = languages(["s3", "parity", "s5"], experiences=2, length=2, test_length=4, **SMALL)
    assert (len(scenario.train_stream), scenario.n_classes) == (2, 8)
    odd = languages(["s3", "dyck"], experiences=1, length=3, test_length=5, **SMALL)
    assert (len(odd.train_stream), odd.n_classes) == (1, 6)


@pytest.mark.parametrize("task_labels", [True, False])
def test_an_experience_is_a_task_of_its_own_where_there_are_task_labels(task_labels):
    for scenario in (
        languages(["s3", "parity"], task_labels=task_labels, **SMALL),
        lengths("s3", 2, task_labels=task_labels, **SMALL),
    ):
        assert scenario.task_labels is task_labels
        for stream in columns(scenario):
            tasks = [task.unique().tolist() for _, _, task in stream]
            assert tasks == ([[0], [1]] if task_labels else [[0], [0]])


@pytest.mark.parametrize("name", LANGUAGES)
def test_the_seed_alone_draws_the_strings(name):
    def drawn(seed: int) -> list[torch.Tensor]:
        streams = [*columns(lengths(name, 2, seed=seed, **SMALL))]
        streams += columns(languages([name], length=4, test_length=8, seed=seed, **SMALL))
        return [column for stream in streams for experience in stream for column in experience[:2]]

    torch.manual_seed(3)
    before, one = torch.get_rng_state(), drawn(1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert all(torch.equal(a, b) for a, b in zip(one, drawn(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(one, drawn(2), strict=True))


# --- vocabulary ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "size"), [*zip(LANGUAGES, (3, 9, 7, 121, 5), strict=True)])
def test_the_vocabulary_is_the_symbols_and_the_padding(name, size):
    assert vocabulary([name]) == size
    assert vocabulary([name, name]) == 2 * size - 1


def test_the_configs_say_which_vocabulary_to_set():
    many, one = ((CONF / f"{name}.yaml").read_text() for name in ("languages", "word_problems"))
    names = re.findall(r"\w+", re.findall(r"^names: \[(.*)\]", many, re.MULTILINE)[0])
    assert f"set backbone.vocabulary={vocabulary(names)} (" in many
    for name, language in LANGUAGES.items():
        assert f"{language.symbols} for {name}" in many
        size = vocabulary([name])
        assert any(text in one for text in (f"{size} for {name}", f"{name} {size}"))


# --- refusals --------------------------------------------------------------------------------


def refusal(call) -> str:
    with pytest.raises(InputError) as error:
        call()
    return str(error.value)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            {"language": "latin"},
            f"scenario.language=latin: expected one of {KNOWN}; choose one of these",
        ),
        *(
            (
                {"experiences": count},
                f"scenario.experiences={count}: expected 1 to 12, each twice as long as the one "
                "before; choose one of these",
            )
            for count in (0, 13)
        ),
        ({"samples": 0}, "scenario.samples=0: expected at least 1; raise it"),
        ({"test_samples": -1}, "scenario.test_samples=-1: expected at least 1; raise it"),
    ],
)
def test_bad_settings_of_lengths_are_told(settings, text):
    assert refusal(lambda: lengths(**settings)) == text


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        *(
            (
                {"names": names},
                f"scenario.names={names}: expected a list of some of {KNOWN}; choose from these",
            )
            for names in (["s3", "latin"], [], "s3", None)
        ),
        *(
            (
                {"experiences": count},
                f"scenario.experiences={count}: expected 1 to 4, the number of scenario.names; "
                "choose one of these, or null for all",
            )
            for count in (0, 5)
        ),
        ({"length": 0}, "scenario.length=0: expected at least 1; raise it"),
        (
            {"test_length": 14},
            "scenario.test_length=14: expected at least scenario.length=16; raise it, or lower "
            "scenario.length",
        ),
        (
            {"length": 15},
            "scenario.length=15: expected an even number, for the brackets of dyck come in pairs; "
            "set 16, or leave dyck out of scenario.names",
        ),
        (
            {"test_length": 63},
            "scenario.test_length=63: expected an even number, for the brackets of dyck come in "
            "pairs; set 64, or leave dyck out of scenario.names",
        ),
        ({"samples": 0}, "scenario.samples=0: expected at least 1; raise it"),
        ({"test_samples": 0}, "scenario.test_samples=0: expected at least 1; raise it"),
    ],
)
def test_bad_settings_of_languages_are_told(settings, text):
    assert refusal(lambda: languages(**settings)) == text


def test_a_vocabulary_of_an_unknown_language_is_refused():
    assert refusal(lambda: vocabulary(["latin"])) == (
        f"scenario.names=['latin']: expected a list of some of {KNOWN}; choose from these"
    )
