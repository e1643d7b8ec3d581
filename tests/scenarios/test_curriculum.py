"""N-parity and N-delayed match-to-sample: labels, lengths, levels, heads and the rule to go on."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from clplat.backbones.levels import Levels, trained_levels
from clplat.batches import make_batches
from clplat.errors import InputError
from scenarios.curriculum import (
    accuracy,
    curriculum,
    draw_strings,
    matches,
    parities,
    summed_cross_entropy,
)
from strategies.curriculum import Curriculum

CPU = torch.device("cpu")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_labels_are_those_of_a_loop_over_strings():
    bits = torch.randint(2, (200, 17), generator=generator()).float()
    lengths = [2, 3, 7, 16]
    rows = bits.int().tolist()
    expected = [[sum(row[-n:]) % 2 for n in lengths] for row in rows]
    assert parities(bits, lengths).tolist() == expected
    expected = [[int(row[-n] == row[-1]) for n in lengths] for row in rows]
    assert matches(bits, lengths).tolist() == expected


@pytest.mark.parametrize("task", ["parity", "match"])
def test_strings_are_as_long_as_the_paper_has_them_and_bits_fair_on_average(task):
    lengths, means = set(), []
    source = generator()
    for _ in range(300):
        x, y = draw_strings(task, [2, 3], 50, source)
        assert x.shape[::2] == (50, 1)
        assert y.shape == (50, 2)
        lengths.add(x.shape[1])
        means.append(x.mean(1)[:, 0])
    assert lengths == set(range(5, 14))  # N + 2 to 4 N + 1, N = 3
    means = torch.cat(means)
    assert float(means.mean()) == pytest.approx(0.5, abs=0.01)
    # Uniform chances spread the means of strings; a fair coin's stay near a half.
    assert (float(means.std()) > 0.29) == (task == "parity")


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("single_head", [[2], [3], [4], [5]]),
        ("multi_head", [[2], [2, 3], [2, 3, 4], [2, 3, 4, 5]]),
        ("sliding_window", [[2], [2, 3], [3, 4], [4, 5]]),
        ("none", [[5]]),
    ],
)
def test_what_each_curriculum_trains_together(kind, expected):
    scenario = curriculum(curriculum=kind, experiences=4, window=2, samples=40, test_samples=30)
    found = [
        experience.dataset._flat_data._datasets[0].draw.args[1]
        for experience in scenario.train_stream
    ]
    assert found == expected
    assert len(scenario.test_stream) == len(expected)
    if kind != "none":
        levels = [[n - 2 for n in trained] for trained in expected]
        assert [list(trained_levels(kind, k, 2)) for k in range(4)] == levels


def batches(scenario, order=None, stream="train", level=1):
    experience = getattr(scenario, f"{stream}_stream")[level]
    return list(make_batches(experience.dataset, 16, CPU, order))


def test_training_batches_are_fresh_and_test_batches_always_the_same():
    scenario = curriculum(experiences=3, samples=40, test_samples=40)
    order = generator(3)
    first, second = batches(scenario, order), batches(scenario, order)
    assert [len(y) for _, y, _ in first] == [16, 16, 8]
    assert first[0][0].shape != first[1][0].shape or not torch.equal(first[0][0], first[1][0])
    assert any(
        a[0].shape != b[0].shape or not torch.equal(a[0], b[0])
        for a, b in zip(first, second, strict=True)
    )
    again = batches(scenario, generator(3))
    assert all(
        torch.equal(a, b)
        for one, other in zip(first, again, strict=True)
        for a, b in zip(one, other, strict=True)
    )
    assert {int(t) for _, _, task in first for t in task} == {1}

    tests = [batches(scenario, None, "test", level) for level in (0, 1, 1)]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(tests[1], tests[2], strict=True))
    assert tests[0][0][0].shape != tests[1][0][0].shape or not torch.equal(
        tests[0][0][0], tests[1][0][0]
    )
    x, y, _ = tests[1][0]
    assert y[:, 0].tolist() == [sum(row[-3:]) % 2 for row in x[:, :, 0].int().tolist()]


def test_the_seed_draws_the_test_strings():
    one, other = (batches(curriculum(seed=s, test_samples=20), None, "test") for s in (0, 100))
    assert one[0][0].shape != other[0][0].shape or not torch.equal(one[0][0], other[0][0])


def test_the_loss_is_the_sum_over_heads_and_the_score_their_mean():
    output = torch.randn(5, 3, 2, dtype=torch.float64, generator=generator())
    target = torch.randint(2, (5, 3), generator=generator())
    expected = sum(cross_entropy(output[:, k], target[:, k]) for k in range(3))
    torch.testing.assert_close(summed_cross_entropy(output, target), expected)
    right = (output.argmax(2) == target).double()
    torch.testing.assert_close(accuracy(output, target).double(), right.mean(1))


class Level:
    """An experience of one level."""

    def __init__(self, task):
        self.task_labels = [task]
        self.classes_in_this_experience = {0}


def heads(kind, window=2):
    torch.manual_seed(0)
    return Levels(4, 2, levels=3, curriculum=kind, window=window)


def test_a_head_of_its_own_for_each_level():
    model, x = heads("multi_head"), torch.randn(5, 4)
    for level in range(3):
        model.train().adaptation(Level(level))
        expected = torch.stack([model.linears[k](x) for k in range(level + 1)], 1)
        torch.testing.assert_close(model(x, torch.full((5,), level)), expected)
    model.eval().adaptation(Level(0))
    assert torch.equal(model(x, torch.zeros(5)), model.linears[0](x)[:, None])
    assert int(model.level) == 2


def test_a_window_trains_the_latest_heads():
    model, x = heads("sliding_window"), torch.randn(5, 4)
    for level in range(3):
        model.train().adaptation(Level(level))
    assert model(x, torch.full((5,), 2)).shape == (5, 2, 2)
    torch.testing.assert_close(model(x, 2)[:, 0], model.linears[1](x))


def test_a_single_head_goes_on_and_each_level_is_probed_by_the_head_of_its_time():
    model, x = heads("single_head"), torch.randn(5, 4)
    model.train().adaptation(Level(0))
    with torch.no_grad():
        model.linears[0].weight.fill_(1.5)
    model.adaptation(Level(1))
    assert (model.linears[1].weight == 1.5).all()  # the next level begins with it
    with torch.no_grad():
        model.linears[1].weight.fill_(-2.0)
    assert torch.equal(model(x, 1), model.linears[1](x)[:, None])
    model.eval()
    assert torch.equal(model(x, 0), model.linears[0](x)[:, None])
    assert torch.equal(model(x, 2), model.linears[1](x)[:, None])  # not reached: the newest
    model.train().adaptation(Level(1))
    assert (model.linears[1].weight == -2.0).all()  # a level that goes on is not begun again


def test_an_unknown_curriculum_is_told():
    with pytest.raises(ValueError, match="curriculum='fast'; expected one of single_head, multi_"):
        heads("fast")


class Loop:
    """A loop's face, whose evaluations are given."""

    def __init__(self, scores, levels):
        from types import SimpleNamespace

        self.clock = SimpleNamespace(train_exp_counter=0, train_exp_epochs=0)
        self.scores, self.stopped, self.asked = iter(scores), False, []
        self.mb_y = torch.zeros(4, levels)

    def eval(self, stream):
        self.asked.append(stream)
        return next(self.scores)

    def stop_training(self):
        self.stopped = True


@pytest.mark.parametrize(
    ("scores", "solved"),
    [
        ([0.99, 0.985], True),
        ([1.0, 0.97], False),  # the newest is not there yet
        ([0.96, 0.99], False),  # the mean is not
        ([0.98, 0.98], False),  # more than the threshold is asked for
    ],
)
def test_a_level_is_solved_by_the_mean_and_by_the_newest(scores, solved):
    strategy, loop = Curriculum(threshold=0.98), Loop([scores], levels=2)
    strategy._tests, loop.clock.train_exp_counter = ["a", "b", "c"], 1
    strategy.solved = [3]
    loop.clock.train_exp_epochs = 4
    strategy.after_training_iteration(loop)
    strategy.after_training_epoch(loop)
    assert loop.asked == [["a", "b"]]
    assert loop.stopped == solved
    assert strategy.solved == ([3, 5] if solved else [3])


def test_after_a_level_that_was_not_solved_and_when_the_epochs_are_spent_nothing_is_trained():
    failed, loop = Curriculum(), Loop([], 1)
    loop.clock.train_exp_counter = 1
    failed.before_training_epoch(loop)
    assert loop.stopped
    spent, loop = Curriculum(epochs=2), Loop([[0.1], [0.1]], 1)
    spent._tests = ["a"]
    for _ in range(2):
        spent.before_training_epoch(loop)
        assert not loop.stopped
        spent.after_training_epoch(loop)
    spent.before_training_epoch(loop)
    assert loop.stopped
    assert spent.measured == {"levels_solved": 0, "epochs_to_solve": []}


SMALL = "backbone=recurrent backbone.width=16 head=levels scenario=n_parity strategy=curriculum"


def test_a_run_solves_what_it_can_and_says_in_how_many_epochs(command):
    sizes = "scenario.samples=2560 scenario.test_samples=640 scenario.experiences=3"
    easy = "scenario.task=match strategy.threshold=0.4 train.epochs=3 optimizer=sgd out=runs/a"
    outcome = command(f"{SMALL} {sizes} {easy}")
    assert outcome.status == 0, outcome.err
    result = json.loads(Path("runs/a/result.json").read_text())
    assert result["measured"] == {"levels_solved": 3, "epochs_to_solve": [1, 1, 1]}
    assert np.load("runs/a/accuracy_matrix.npy").shape == (4, 3)


def test_heads_that_answer_once_a_sample_are_refused(command):
    outcome = command("scenario=n_parity backbone=recurrent strategy=curriculum out=runs/a")
    assert outcome.status == 2
    assert "gives one answer a sample, and this scenario asks for several of each" in outcome.err
    assert "set head=levels" in outcome.err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "sum"}, "scenario.task=sum: expected one of parity, match"),
        ({"curriculum": "fast"}, "scenario.curriculum=fast: expected one of single_head, multi_he"),
        ({"shortest": 1}, "scenario.shortest=1: expected at least 2; raise it"),
        ({"experiences": 0}, "scenario.experiences=0: expected at least 1; raise it"),
        ({"window": 0}, "scenario.window=0: expected at least 1; raise it"),
        ({"samples": 0}, "scenario.samples=0: expected at least 1; raise it"),
        ({"task_labels": False}, "scenario.task_labels=false: each N has a head of its own, or of"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        curriculum(**settings)


def test_a_threshold_is_a_share():
    with pytest.raises(InputError, match=r"strategy.threshold=1.0: expected a score in 0..1"):
        Curriculum(threshold=1.0)
