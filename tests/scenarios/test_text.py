"""Text after text: windows of each part, the loss, and bits per character counted by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import single
from clplat.backbones.sequence import SequenceModel
from clplat.data import tensors_of
from clplat.errors import InputError
from clplat.evaluation import MeanScore
from clplat.layers.gated import MinGRU
from scenarios.text import (
    NegativeBitsPerCharacter,
    drawn_starts,
    even_starts,
    mean_cross_entropy,
    smallest,
    split_text,
    text,
    windows,
)
from scenarios.texts import read
from scenarios.tokens import begun, byte_tokenizer

SMALL: dict[str, Any] = {"window": 13, "samples": 40, "test_samples": 7}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def columns(experience):
    x, y, task = tensors_of(experience.dataset)
    return x, y, task


def written(tokens):
    """The bytes of windows, one bytes object a row."""
    return [bytes(row) for row in tokens.tolist()]


@pytest.fixture
def files(tmp_path):
    """Two files of 400 characters, the first of many bytes; the last tenth is other text."""
    contents = ["日本語éa" * 72 + "XYZW" * 10, "0123456789" * 36 + "vwxyz" * 8]
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    for path, content in zip(paths, contents, strict=True):
        path.write_text(content, encoding="utf-8")
    return [str(path) for path in paths], contents


# --- windows -----------------------------------------------------------------------------------


def test_the_last_tenth_is_for_testing():
    for length in (0, 1, 9, 10, 19, 400):
        content = "".join(chr(65 + k % 26) for k in range(length))
        train, test = split_text(content)
        assert train + test == content
        assert len(test) == length // 10


def test_windows_are_cut_out_and_their_labels_come_next():
    tokens = torch.randint(100, (50,), generator=generator())
    starts = torch.tensor([0, 7, 42])
    x, y = windows(tokens, starts, 7)
    assert x.tolist() == [tokens[s : s + 7].tolist() for s in starts.tolist()]
    assert y.tolist() == [tokens[s + 1 : s + 8].tolist() for s in starts.tolist()]


def test_windows_are_drawn_from_everywhere():
    starts = drawn_starts(20, 5, 3000, generator())
    counts = starts.bincount()
    assert len(counts) == 15  # the last begins at 14 and takes 6 tokens
    assert counts.min() > 130  # five deviations below 200
    assert drawn_starts(6, 5, 4, generator()).tolist() == [0] * 4


@pytest.mark.parametrize("tokens", [8, 9, 50, 51, 99, 1000])
@pytest.mark.parametrize("count", [1, 2, 7, 30])
def test_test_windows_are_spread_evenly_and_do_not_overlap_where_they_need_not(tokens, count):
    window = 7
    starts = even_starts(tokens, window, count)
    assert len(starts) == count
    assert int(starts[0]) == 0
    if count > 1:
        assert int(starts[-1]) == tokens - window - 1
        steps = starts.diff()
        assert int(steps.max() - steps.min()) <= 1
    targets = [t for s in starts.tolist() for t in range(s + 1, s + 1 + window)]
    assert max(targets) < tokens
    if count * window < tokens:
        assert len(set(targets)) == len(targets)


# --- the scenario ------------------------------------------------------------------------------


def test_each_experience_is_windows_of_its_text_train_and_test_apart(files):
    paths, contents = files
    scenario = text(paths, **SMALL)
    assert (scenario.n_classes, scenario.input_shape, scenario.head) == (256, (13,), "single")
    assert len(scenario.train_stream) == len(scenario.test_stream) == 2
    for k, content in enumerate(contents):
        for stream, count, part in (
            (scenario.train_stream, 40, content[:360].encode()),
            (scenario.test_stream, 7, content[360:].encode()),
        ):
            x, y, task = columns(stream[k])
            assert x.shape == y.shape == (count, 13)
            assert x.dtype == torch.uint8
            assert task.tolist() == [0] * count
            assert all(row in part for row in written(x))
            assert all(a[1:] == b[:-1] for a, b in zip(written(x), written(y), strict=True))
            assert all(row in part for row in written(y))


def test_the_model_sees_tokens_not_shares_of_255(files):
    scenario = text(files[0], **SMALL)
    x = columns(scenario.train_stream[0])[0]
    for training in (True, False):
        assert torch.equal(scenario.prepare(x, training), x.float())
    assert torch.equal(scenario.train_stream[0].dataset[0][0], x[0].float())


def test_the_same_seed_draws_the_same_windows_and_none_the_test(files):
    one, same, other = (text(files[0], **SMALL, seed=s) for s in (3, 3, 4))
    for k in range(2):
        draws = [columns(s.train_stream[k])[0] for s in (one, same, other)]
        assert draws[0].equal(draws[1])
        assert not draws[0].equal(draws[2])
        tests = [columns(s.test_stream[k])[0] for s in (one, other)]
        assert tests[0].equal(tests[1])


def test_only_the_first_experiences_and_their_task_labels(files):
    scenario = text(files[0], experiences=1, **SMALL)
    assert len(scenario.train_stream) == 1
    first, both = (columns(s.train_stream[0])[0] for s in (scenario, text(files[0], **SMALL)))
    assert first.equal(both)
    labelled = text(files[0], task_labels=True, **SMALL)
    assert [set(columns(e)[2].tolist()) for e in labelled.test_stream] == [{0}, {1}]


def test_a_general_text_is_a_stream_of_its_own(files, tmp_path):
    (tmp_path / "general.txt").write_text("ABCDEFGHIJ" * 20)
    scenario = text(files[0], general=str(tmp_path / "general.txt"), **SMALL)
    assert [len(s) for s in scenario.streams.values()] == [2, 2, 1]
    x, y, _ = columns(scenario.streams["general"][0])
    assert x.shape == y.shape == (40, 13)
    assert {c for row in written(x) for c in row} == set(b"ABCDEFGHIJ")
    without = text(files[0], **SMALL)
    assert "general" not in without.streams
    assert columns(scenario.train_stream[1])[0].equal(columns(without.train_stream[1])[0])


def test_characters_are_learned_from_what_is_for_training(files):
    scenario = text(files[0], tokenizer="character", **SMALL)
    known = sorted(set("日本語éa0123456789"))
    assert scenario.n_classes == len(known) + 1
    x = columns(scenario.train_stream[0])[0]
    assert {known[token] for token in x.unique().tolist()} == set("日本語éa")
    assert columns(scenario.test_stream[0])[0].unique().tolist() == [len(known)]  # all unknown
    score: Any = scenario.score
    assert (score.characters == 1).all()


def test_bpe_of_the_training_parts(files):
    pytest.importorskip("tokenizers")
    scenario = text(files[0], tokenizer="bpe", vocabulary=270, **{**SMALL, "window": 5})
    assert scenario.n_classes == 270
    x = columns(scenario.train_stream[0])[0]
    assert x.dtype == torch.int16
    score: Any = scenario.score
    assert score.characters[x.long()].sum() > x.numel()  # more than one a token


def test_tokens_are_held_in_the_smallest_integers():
    sizes = {256: torch.uint8, 257: torch.int16, 2**15: torch.int16, 2**15 + 1: torch.int32}
    for vocabulary, dtype in sizes.items():
        assert smallest(vocabulary) == dtype
        largest = torch.tensor(vocabulary - 1)
        assert int(largest.to(dtype)) == vocabulary - 1


# --- loss and score ----------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_positions_of_a_loop():
    logits = torch.randn(3, 5, 7, dtype=torch.float64, generator=generator())
    target = torch.randint(7, (3, 5), generator=generator())
    total = 0.0
    for row, labels in zip(logits.tolist(), target.tolist(), strict=True):
        for values, label in zip(row, labels, strict=True):
            total += math.log(sum(math.exp(v) for v in values)) - values[label]
    assert float(mean_cross_entropy(logits, target)) == pytest.approx(total / 15, rel=1e-12)


def test_the_score_is_all_bits_over_all_characters():
    content = "naïve — 日本語 🙂, and plain words of one byte each " * 4
    raw = torch.tensor(list(content.encode()))
    starts = even_starts(len(raw), 11, 17)
    _, target = windows(raw, starts, 11)
    logits = torch.randn(17, 11, 256, dtype=torch.float64, generator=generator())
    score = NegativeBitsPerCharacter(byte_tokenizer().characters)
    bits, characters = 0.0, 0
    for row, labels in zip(logits, target.tolist(), strict=True):
        p = row.softmax(1)
        bits -= sum(math.log2(float(p[t, label])) for t, label in enumerate(labels))
        characters += begun(bytes(labels))
    mean = MeanScore(score)
    for part in range(0, 17, 5):  # batches of another size than the whole
        mean.add(logits[part : part + 5], target[part : part + 5])
    assert mean.mean() == pytest.approx(-bits / characters, rel=1e-9)
    assert score.__name__ == "negative_bits_per_character"


def test_a_uniform_model_of_bytes_takes_eight_bits_a_byte():
    score = NegativeBitsPerCharacter(byte_tokenizer().characters)
    logits = torch.zeros(1, 6, 256)
    for content, expected in (("abcdef", -8.0), ("日本", -24.0)):
        target = torch.tensor([list(content.encode())])
        assert float(score(logits, target)) == pytest.approx(expected)


def test_the_bits_of_a_window_in_which_no_character_begins_count():
    score = NegativeBitsPerCharacter(byte_tokenizer().characters)
    rows = torch.tensor([list("日".encode()[1:]), list(b"ab")])
    mean = MeanScore(score)
    mean.add(torch.zeros(2, 2, 256), rows)
    assert mean.mean() == pytest.approx(-32 / 2, rel=1e-5)


@pytest.mark.parametrize("shape", [(3, 7), (3, 1, 7), (3, 7, 5)])
def test_one_answer_a_window_is_refused(shape):
    target = torch.zeros(3, 5, dtype=torch.long)
    for function in (mean_cross_entropy, NegativeBitsPerCharacter(torch.ones(7))):
        with pytest.raises(InputError, match=r"\(3, 5\) and classes; set backbone.pooling=none an"):
            function(torch.zeros(shape), target)


# --- training ----------------------------------------------------------------------------------


def test_training_takes_a_repeated_word_to_few_bits(make_learner, tmp_path):
    (tmp_path / "word.txt").write_text("language" * 100)
    scenario = text([str(tmp_path / "word.txt")], window=16, samples=64, test_samples=4)
    torch.manual_seed(0)
    encoder = SequenceModel((16,), MinGRU, width=16, depth=1, pooling="none", vocabulary=256)
    learner = make_learner(
        classifier(encoder, single(16, 256)),
        criterion=scenario.criterion,
        prepare=scenario.prepare,
        optimizer=lambda groups: torch.optim.Adam(groups, lr=0.02),
        epochs=8,
    )
    x, y, _ = columns(scenario.test_stream[0])

    def score():
        mean = MeanScore(scenario.score)
        mean.add(learner.model(scenario.prepare(x, False)).detach(), y)
        return mean.mean() or 0.0

    assert score() == pytest.approx(-8, abs=0.5)
    learner.train(scenario.train_stream[0])
    assert -1 < score() < 0


MODEL = "backbone=mingru backbone.pooling=none backbone.vocabulary=256 backbone.width=8"
SIZES = "scenario.window=16 scenario.samples=32 scenario.test_samples=8 train.epochs=1"


@pytest.mark.parametrize("strategy", ["finetune", "replay strategy.memory=reservoir"])
def test_a_run_leaves_bits_per_character_in_its_matrix(command, strategy):
    outcome = command(f"scenario=text {MODEL} {SIZES} strategy={strategy} out=runs/a")
    assert outcome.status == 0, outcome.err
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["score"] == "negative bits per character"
    matrix = np.load("runs/a/accuracy_matrix.npy")
    assert matrix.shape == (4, 3)
    assert (matrix < -3).all()
    assert (matrix > -10).all()


def test_a_backbone_that_answers_once_a_window_is_told(command):
    outcome = command(f"scenario=text {SIZES} out=runs/a")
    assert outcome.status == 2
    assert "answers once for each sample, and this scenario asks at every position" in outcome.err


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sources": []}, r"scenario.sources=\[\]: expected a list of texts; name at least one"),
        ({"sources": "english"}, "scenario.sources=english: expected a list of texts; name at le"),
        ({"sources": ["english", 3]}, r"scenario.sources=\['english', 3\]: expected a list of te"),
        ({"experiences": 0}, "scenario.experiences=0: expected 1 to 3, the number of scenario.so"),
        ({"experiences": 4}, "scenario.experiences=4: expected 1 to 3, the number of scenario.so"),
        ({"window": 0}, "scenario.window=0: expected at least 1; raise it"),
        ({"samples": 0}, "scenario.samples=0: expected at least 1; raise it"),
        ({"test_samples": 0}, "scenario.test_samples=0: expected at least 1; raise it"),
        ({"tokenizer": "word"}, "scenario.tokenizer=word: no such tokenizer; expected byte, char"),
        ({"tokenizer": "bpe", "vocabulary": 9}, "scenario.vocabulary=9: expected at least 256, f"),
        ({"sources": ["french"]}, "scenario.sources=french: no such text; expected english, pyth"),
        ({"general": "french"}, "scenario.general=french: no such text; expected english, python"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        text(**settings)


@pytest.mark.parametrize(
    ("window", "part", "count"),
    [(40, "testing", 40), (400, "training", 360), (39, None, None)],
)
def test_a_text_too_short_for_a_window_is_told(files, window, part, count):
    paths, _ = files
    if part is None:
        assert len(text(paths, window=window, samples=3, test_samples=2).test_stream) == 2
        return
    message = rf"b.txt: the part for {part} has {count} tokens; expected at least {window + 1}, one"
    with pytest.raises(InputError, match=message):
        text([paths[1]], window=window, samples=3)


def test_a_general_text_too_short_for_a_window_is_told(tmp_path):
    (tmp_path / "short").write_text("0123456789")
    message = "scenario.general=.*short: the part for training has 9 tokens; expected at least 129"
    with pytest.raises(InputError, match=message):
        text(["english"], general=str(tmp_path / "short"))


def test_an_embedded_text_gives_its_defaults():
    scenario = text()
    assert len(scenario.train_stream) == 3
    assert all(
        row in read("english").encode()
        for row in written(columns(scenario.train_stream[0])[0][:20])
    )
