"""Replay of the latest experiences: what is in a batch, what is held, and the effect."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from avalanche.core import SupervisedPlugin

from clplat.errors import InputError
from clplat.evaluation import Evaluator
from strategies.latest_replay import Latest, LatestReplay


class Batches(SupervisedPlugin):
    """The batches of each experience, as the loop had them."""

    def __init__(self):
        super().__init__()
        self.experiences = []

    def before_training_exp(self, strategy, **kwargs):
        self.experiences.append([])

    def before_forward(self, strategy, **kwargs):
        x = getattr(strategy, "stored_x", strategy.mb_x)
        self.experiences[-1].append([x.clone(), strategy.mb_y.clone()])


def rows(columns):
    """A batch as a list of hashable samples."""
    x, y, *_ = columns
    x = x if x.dtype == torch.uint8 else (x * 255).round().byte()
    return [(tuple(v), int(c)) for v, c in zip(x.flatten(1).tolist(), y, strict=True)]


def samples(experience):
    items = [experience.dataset[k] for k in range(len(experience.dataset))]
    return rows([torch.stack([i[0] for i in items]), torch.tensor([int(i[1]) for i in items])])


@pytest.mark.parametrize("loop", ["make_learner", "make_template"])
@pytest.mark.parametrize(("kept", "drawn"), [(1, 3), (2, 10), (3, 7), (2, 1000)])
def test_each_batch_is_the_fine_tuners_followed_by_samples_of_the_last_experiences(
    request, clusters, mlp, loop, kept, drawn
):
    """In our loop and in Avalanche's."""
    make = request.getfixturevalue(loop)
    stream = clusters(experiences=5, samples=10).train_stream

    def batches(*strategies):
        seen = Batches()
        torch.manual_seed(0)
        model = mlp()
        model.head = torch.nn.Linear(12, 10)
        make(model, *strategies, seen).train(stream)
        return seen.experiences

    plain, joined = batches(), batches(LatestReplay(kept, drawn))
    for k in range(5):
        latest = sum((Counter(samples(e)) for e in stream[max(0, k - kept) : k]), Counter())
        assert latest.total() == 20 * min(k, kept)
        draws = []
        assert len(plain[k]) == len(joined[k]) == 6  # as many updates
        for own, both in zip(plain[k], joined[k], strict=True):
            count = len(own[1])
            assert rows([column[:count] for column in both]) == rows(own)
            draw = Counter(rows([column[count:] for column in both]))
            assert draw.total() == min(drawn, latest.total())
            assert draw <= latest  # without replacement
            draws.append(tuple(sorted(draw.elements())))
        assert len(set(draws)) > 1 or k == 0 or drawn == 1000  # each batch draws anew


def test_draws_are_even_over_all_that_is_held():
    latest = Latest(2)
    assert latest.sample(3) == []
    for part in (torch.arange(100, 105), torch.arange(4), torch.arange(4, 7)):
        latest.parts.append([part[:, None], part, torch.zeros_like(part)])
    torch.manual_seed(0)
    counts = torch.zeros(7)
    for _ in range(2000):
        x, y, task = latest.sample(3)
        assert torch.equal(x[:, 0], y)
        assert len(task) == 3
        counts[y] += 1
    torch.testing.assert_close(counts, torch.full((7,), 6000 / 7), rtol=0, atol=90)


def test_it_holds_the_last_experiences_whole_in_the_datas_own_dtype(clusters, mlp, make_learner):
    stream, replay = clusters(samples=7).train_stream, LatestReplay(2, 4)
    learner = make_learner(mlp(), replay, eval_batch_size=5)
    assert replay.memory_bytes == 0
    for k, experience in enumerate(stream):
        learner.train(experience)
        held = [samples(e) for e in stream[max(0, k - 1) : k + 1]]
        assert [rows(part) for part in replay.latest.parts] == held
        assert all(part[0].dtype == torch.uint8 for part in replay.latest.parts)
        assert replay.memory_bytes == len(held) * 14 * (16 + 8)  # pixels, and a label of int64


def test_what_it_holds_is_its_own(clusters, mlp, make_learner):
    stream, replay = clusters().train_stream, LatestReplay()
    make_learner(mlp(), replay).train(stream[0])
    before = rows(replay.latest.parts[0])
    replay.latest.parts[0][0].fill_(7)
    assert samples(stream[0]) == before


def test_it_keeps_two_experiences_and_draws_ten_samples_unless_told():
    replay = LatestReplay()
    assert (replay.latest.parts.maxlen, replay.samples) == (2, 10)


def test_it_forgets_less_than_fine_tuning(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    learner = make_learner(mlp(), LatestReplay(2, 8), evaluator=Evaluator(), epochs=10)
    torch.manual_seed(0)
    learner.train(scenario.train_stream)
    scores = learner.eval(scenario.test_stream)
    assert min(scores) > 0.6  # fine-tuning ends at 0 on the first two


def test_of_one_experience_it_remembers_no_more(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    learner = make_learner(mlp(), LatestReplay(1, 8), evaluator=Evaluator(), epochs=10)
    torch.manual_seed(0)
    learner.train(scenario.train_stream)
    first, second, third = learner.eval(scenario.test_stream)
    assert first < 0.2
    assert min(second, third) > 0.6


@pytest.mark.parametrize("head", ["single", "multi"])
@pytest.mark.parametrize("kept", [1, 2, 5])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, kept, head):
    strategy, restored = resume_and_compare(lambda: LatestReplay(kept, 5), head)
    one, other = strategy.latest.parts, restored.latest.parts
    assert len(one) == len(other) == min(kept, 3)
    for part, same in zip(one, other, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(part, same, strict=True))
    assert other.maxlen == kept
    assert strategy.memory_bytes == restored.memory_bytes == min(kept, 3) * 24 * (16 + 8)


@pytest.mark.parametrize("key", ["experiences", "samples"])
@pytest.mark.parametrize("value", [0, -1])
def test_less_than_one_is_refused(key, value):
    with pytest.raises(InputError) as error:
        LatestReplay(**{key: value})
    assert str(error.value) == f"strategy.{key}={value}: expected at least 1; raise it"


@pytest.mark.parametrize("key", ["experiences", "samples"])
def test_what_is_no_whole_number_is_refused_before_anything_is_run(command, key):
    outcome = command(f"strategy=latest_replay strategy.{key}=2.5 out=runs/a train.epochs=1")
    assert outcome.status == 2
    assert not Path("runs/a").exists()


def test_it_needs_to_be_told_where_an_experience_ends(command):
    outcome = command("scenario=online_digits strategy=latest_replay")
    assert outcome.status == 2
    assert "strategy: LatestReplay acts where an experience begins or ends" in outcome.err
