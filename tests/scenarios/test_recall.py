"""Associative recall: what is written and asked, and the matrix of two models of known memory."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clplat.data import tensors_of
from clplat.drawn import drawn_data
from clplat.errors import InputError
from scenarios.recall import (
    asked_cross_entropy,
    draw_segments,
    draw_sequences,
    recall,
    share_recalled,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def written(tokens: list[int], keys: int) -> dict[int, int]:
    """The value token behind each key token, of tokens without queries, looked at one by one."""
    found: dict[int, int] = {}
    rest = iter(tokens)
    for token in rest:
        if token != 0:
            assert 1 <= token <= keys
            assert token not in found
            found[token] = next(rest)
            assert found[token] > keys
    return found


def by_token(key: torch.Tensor, value: torch.Tensor, keys: int) -> dict[int, int]:
    pairs = zip(key.flatten().tolist(), value.flatten().tolist(), strict=True)
    return {1 + k: 1 + keys + v for k, v in pairs}


# --- what is written -------------------------------------------------------------------------


@pytest.mark.parametrize(("pairs", "filler"), [(1, 0), (1, 7), (3, 0), (3, 5)])
def test_segments_hold_the_pairs_that_are_listed_and_filler(pairs, filler):
    tokens, key, value = draw_segments(50, 5, pairs, filler, 17, 3, generator())
    assert tokens.shape == (50, 5, 2 * pairs + filler)
    assert key.shape == value.shape == (50, 5, pairs)
    for sample in range(50):
        for segment in range(5):
            row = tokens[sample, segment].tolist()
            assert row.count(0) == filler
            listed = by_token(key[sample, segment], value[sample, segment], 17)
            assert written(row, 17) == listed
            assert len(listed) == pairs
        assert key[sample].unique().numel() == 5 * pairs
    assert set(key.unique().tolist()) == set(range(17))
    assert set(value.unique().tolist()) == {0, 1, 2}


def test_pairs_are_at_any_places_and_listed_in_any_order():
    tokens, key, _ = draw_segments(24000, 1, 2, 2, 9, 9, generator())
    tokens, key = tokens[:, 0], key[:, 0]
    shapes, counts = (tokens > 0).unique(dim=0, return_counts=True)
    assert len(shapes) == 6  # ways to choose the 2 pairs among 4 items
    np.testing.assert_allclose(counts / 24000, 1 / 6, atol=0.01)
    place = (tokens.unsqueeze(2) == 1 + key.unsqueeze(1)).int().argmax(1)  # (B, pairs)
    assert float((place[:, 0] < place[:, 1]).float().mean()) == pytest.approx(0.5, abs=0.02)


def test_values_are_drawn_evenly_each_by_itself():
    _, _, value = draw_segments(6000, 2, 2, 0, 4, 5, generator())
    value = value.flatten(1)
    joint = torch.zeros(5, 5).index_put_(
        (value[:, 0], value[:, 3]), torch.ones(6000), accumulate=True
    )
    np.testing.assert_allclose(joint / 6000, 1 / 25, atol=0.01)


# --- what is asked ---------------------------------------------------------------------------


def check_asked(x: list[float], y: list[int], read: int, keys: int) -> list[int]:
    """Targets are the values of the keys at their places, -1 elsewhere; returns the queries."""
    tokens = [int(token) for token in x]
    assert y[:read] == [-1] * read
    known = written(tokens[:read], keys)
    for query, answer in zip(tokens[read:], y[read:], strict=True):
        assert known[query] == 1 + keys + answer
    return tokens[read:]


@pytest.mark.parametrize(("pairs", "filler"), [(1, 6), (3, 2)])
def test_training_asks_for_every_key_of_the_first_few_segments_once(pairs, filler):
    source, counts, orders = generator(), [], set()
    for _ in range(60):
        x, y = draw_sequences(3, pairs, filler, 11, 4, 7, source)
        assert x.dtype == torch.float32
        assert x.shape == y.shape
        segments, rest = divmod(x.shape[1], 3 * pairs + filler)
        assert rest == 0
        counts.append(segments)
        read = segments * (2 * pairs + filler)
        for row, targets in zip(x.tolist(), y.tolist(), strict=True):
            queries = check_asked(row, targets, read, 11)
            in_turn = list(written([int(token) for token in row[:read]], 11))
            assert sorted(queries) == sorted(in_turn)
            if len(queries) == 3:
                orders.add(tuple(in_turn.index(query) for query in queries))
    assert set(counts) == {1, 2, 3}
    assert len(orders) == 6


SMALL = {"experiences": 4, "pairs": 3, "filler": 2, "keys": 15, "values": 6, "samples": 20}


def segments_of(scenario):
    """x and y of every test experience, by row of the matrix; the last row has nothing read."""
    return [
        [tensors_of(experience.dataset)[:2] for experience in stream]
        for stream in scenario.segments
    ]


def test_rows_ask_for_each_segment_after_more_and_more_of_the_same_sequences():
    scenario = recall(**SMALL, test_samples=30)
    rows, length = segments_of(scenario), 2 * 3 + 2
    assert [len(row) for row in rows] == [4] * 5
    whole = rows[3][0][0][:, : 4 * length]
    for i, row in enumerate(rows):
        read = 0 if i == 4 else (i + 1) * length
        for j, (x, y) in enumerate(row):
            assert torch.equal(x[:, :read], whole[:, :read])
            assert x.shape == y.shape == (30, read + 3)
            assert torch.equal(x[:, read:], rows[3][j][0][:, 4 * length :])
            assert torch.equal(y[:, read:], rows[3][j][1][:, 4 * length :])
            for one, other, targets in zip(whole.tolist(), x.tolist(), y.tolist(), strict=True):
                queries = check_asked(one + other[read:], [-1] * 32 + targets[read:], 32, 15)
                mine = written([int(t) for t in one[j * length : (j + 1) * length]], 15)
                assert sorted(queries) == sorted(mine)
                unread = j > i or i == 4
                assert (set(queries) & {*other[:read]} == set()) == unread
                assert targets[:read] == [-1] * read


def test_the_test_stream_is_the_last_row_and_there_is_one_experience_to_train_on():
    scenario = recall(**SMALL, test_samples=30)
    assert len(scenario.train_stream) == 1
    for experience, (x, y) in zip(scenario.test_stream, segments_of(scenario)[3], strict=True):
        assert all(map(torch.equal, tensors_of(experience.dataset)[:2], (x, y)))
    longest = max(
        draw_sequences(4, 3, 2, 15, 6, 1, generator(seed))[0].shape[1] for seed in range(40)
    )
    assert scenario.input_shape == (longest,)


def test_the_seed_sets_the_test_sequences_and_nothing_global_is_drawn_from():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, other, different = (recall(**SMALL, test_samples=9, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    pairs = list(zip(segments_of(one), segments_of(other), segments_of(different), strict=True))
    for row, same, changed in pairs:
        for (x, y), (x_same, y_same), (x_changed, _) in zip(row, same, changed, strict=True):
            assert torch.equal(x, x_same)
            assert torch.equal(y, y_same)
            assert not torch.equal(x, x_changed)
    drawn = [drawn_data(s.train_stream[0].dataset).draw(5, generator(3)) for s in (one, different)]
    assert all(map(torch.equal, *drawn))  # by the order's generator alone


def test_what_was_read_does_not_tell_what_is_still_to_be_written():
    """To answer by any value that was read is right by chance, 1 of 6."""
    rows = segments_of(recall(**SMALL, test_samples=4000))
    for j in (1, 2, 3):
        x, y = rows[0][j]
        for place in range(8):
            value = x[:, place] - 16
            guess = torch.where(value >= 0, value, 0)
            right = (guess.unsqueeze(1) == y[:, 8:]).float().mean()
            assert float(right) == pytest.approx(1 / 6, abs=0.015)


# --- score and loss --------------------------------------------------------------------------


def test_score_and_loss_are_those_of_a_loop_over_what_is_asked():
    logits = torch.randn(9, 7, 5, generator=generator()).double()
    target = torch.randint(-1, 5, (9, 7), generator=generator())
    target[:, 3] = 0  # at least one is asked
    shares, losses = [], []
    for row, answers in zip(logits, target.tolist(), strict=True):
        asked = [(place, answer) for place, answer in enumerate(answers) if answer >= 0]
        shares.append(sum(int(row[t].argmax()) == a for t, a in asked) / len(asked))
        losses += [cross_entropy(row[t], torch.tensor(a)) for t, a in asked]
    assert share_recalled(logits, target).tolist() == pytest.approx(shares)
    torch.testing.assert_close(asked_cross_entropy(logits, target), torch.stack(losses).mean())


SETTINGS = (
    "scenario=recall scenario.experiences=4 scenario.pairs=2 scenario.filler=3 scenario.keys=9 "
    "scenario.values=8 scenario.samples=16 scenario.test_samples=60 train.epochs=1 "
    "train.batch_size=8 out=runs/a"
)


def test_a_model_that_answers_once_a_sequence_is_told(command):
    outcome = command(f"{SETTINGS} backbone=mingru backbone.vocabulary=18")
    assert outcome.status == 2
    assert "answers once for each sample, and this scenario asks at every position" in outcome.err
    assert "take a sequence model with backbone.pooling=none" in outcome.err


# --- runs ------------------------------------------------------------------------------------

ORACLE = '''
import torch
from torch import nn


class Oracle(nn.Module):
    """Looks keys up among the pairs read so far, or in the last segment that wrote any."""

    def __init__(self, input_shape, keys, values, last, length):
        super().__init__()
        self.width, self.keys, self.last, self.length = values, keys, last, length
        self.nothing = nn.Parameter(torch.zeros(()))

    def answers(self, tokens):
        known, segment, before = {}, 0, 0
        for place, token in enumerate(tokens):
            if token > self.keys:
                if self.last and place // self.length != segment:
                    known, segment = {}, place // self.length
                known[before] = token - self.keys - 1
            yield known.get(token, 0)
            before = token

    def forward(self, x):
        told = torch.tensor([[*self.answers(row)] for row in x.long().tolist()])
        return nn.functional.one_hot(told, self.width) + self.nothing


def unchanged(features, classes):
    return nn.Identity()
'''


@pytest.fixture
def oracle(command, tmp_path):
    """Runs recall by a model with a perfect memory, or one of the last segment alone."""
    for group in ("backbone", "head"):
        (tmp_path / "mylab" / group).mkdir(parents=True)
    (tmp_path / "mylab/oracle.py").write_text(ORACLE)
    (tmp_path / "mylab/backbone/oracle.yaml").write_text(
        "_target_: oracle.Oracle\nkeys: 9\nvalues: 8\nlast: false\nlength: 7\n"
    )
    (tmp_path / "mylab/head/unchanged.yaml").write_text("_target_: oracle.unchanged\n")

    def run(more: str):
        outcome = command(
            f"--config-dir mylab {SETTINGS} backbone=oracle head=unchanged seed=3 {more}"
        )
        assert outcome.status == 0, outcome.err
        result = json.loads(Path("runs/a/result.json").read_text())
        return np.load("runs/a/accuracy_matrix.npy"), result

    return run


def guessed() -> np.ndarray:
    """How often 0 is right of what is asked of each segment, by the data of seed 3."""
    sizes = {"experiences": 4, "pairs": 2, "filler": 3, "keys": 9, "values": 8}
    rows = segments_of(recall(**sizes, test_samples=60, seed=3))
    return np.array([float((y[:, -2:] == 0).float().mean()) for _, y in rows[-1]])


def test_a_perfect_memory_has_ones_where_it_was_told_and_chance_elsewhere(oracle):
    matrix, result = oracle("backbone.last=false")
    assert matrix.shape == (5, 4)
    expected = np.tile(guessed(), (5, 1))
    expected[np.tril_indices(4)] = 1
    np.testing.assert_allclose(matrix, expected, atol=1e-7)
    np.testing.assert_allclose(guessed(), 1 / 8, atol=0.1)
    assert result["forgetting"] == 0
    assert result["accuracy"] == 1
    assert (result["experiences"], result["score"]) == (4, "share recalled")


def test_a_memory_of_the_last_segment_forgets_all_others(oracle):
    matrix, result = oracle("backbone.last=true")
    expected = np.tile(guessed(), (5, 1))
    expected[np.diag_indices(4)] = 1
    np.testing.assert_allclose(matrix, expected, atol=1e-7)
    assert result["forgetting"] == pytest.approx(1 - guessed()[:3].mean())
    assert result["learning_accuracy"] == 1


def test_a_curve_is_taken_of_what_is_asked_after_the_whole_sequence(oracle):
    _, result = oracle("backbone.last=true eval.every=1")
    lines = [json.loads(line) for line in Path("runs/a/metrics.jsonl").read_text().splitlines()]
    points = [line for line in lines if "samples" in line]
    assert {8, 16} <= {point["samples"] for point in points}
    after_all = [*guessed()[:3], 1]
    for point in points:
        assert point["scores"] == pytest.approx(after_all)
        assert point["accuracy"] == pytest.approx(np.mean(after_all))
    assert result["anytime_accuracy"] == pytest.approx(np.mean(after_all))


def test_a_curve_with_no_point_inside_is_no_error(oracle):
    _, result = oracle("eval.every=1000")
    assert result["anytime_accuracy"] is None


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiences": 0}, "scenario.experiences=0: expected at least 1; raise it"),
        ({"pairs": 0}, "scenario.pairs=0: expected at least 1; raise it"),
        ({"filler": -1}, "scenario.filler=-1: expected at least 0; raise it"),
        ({"values": 1}, "scenario.values=1: expected at least 2; raise it"),
        ({"samples": 0}, "scenario.samples=0: expected at least 1; raise it"),
        ({"test_samples": 0}, "scenario.test_samples=0: expected at least 1; raise it"),
        ({"keys": 31}, "scenario.keys=31: expected at least 32, for 8 segments .* of 4 pairs"),
        ({"task_labels": True}, "scenario.task_labels=true: the segments of a sequence are no"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        recall(**settings)


def test_as_many_keys_as_are_written_are_enough():
    x, y = segments_of(recall(experiences=2, pairs=2, keys=4, values=2, test_samples=5))[1][0]
    assert x.shape == y.shape == (5, 10)
