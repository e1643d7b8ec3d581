"""Replay: what is in a batch, what is in the memory, and the effect."""

import copy
from collections import Counter

import pytest
import torch
from avalanche.core import SupervisedPlugin

from clplat.errors import InputError
from clplat.evaluation import Evaluator
from clplat.prepare import Prepare
from strategies.replay import Replay


class Batches(SupervisedPlugin):
    """The batches of each experience, as the loop had them."""

    def __init__(self, replay=None):
        super().__init__()
        self.replay, self.experiences, self.memories = replay, [], []

    def before_training_exp(self, strategy, **kwargs):
        self.experiences.append([])
        if self.replay is not None:
            self.memories.append([c.clone() for c in self.replay.memory.all()])

    def before_forward(self, strategy, **kwargs):
        columns = (strategy.stored_x, strategy.mb_y, strategy.mb_task_id)
        self.experiences[-1].append([column.clone() for column in columns])


def rows(columns):
    """A batch as a list of hashable samples."""
    x, y, task = columns
    flat = x.flatten(1).tolist()
    return [(tuple(v), int(c), int(t)) for v, c, t in zip(flat, y, task, strict=True)]


def samples(experience):
    data = experience.dataset
    return rows(
        [
            (torch.stack([d[0] for d in data]) * 255).round().byte(),
            *(torch.tensor([int(d[i]) for d in data]) for i in (1, 2)),
        ]
    )


@pytest.mark.parametrize(("batch_size", "drawn"), [(None, 8), (3, 3), (50, 10)])
def test_each_batch_is_the_fine_tuners_followed_by_a_draw_from_the_memory(
    clusters, mlp, make_learner, batch_size, drawn
):
    stream = clusters(samples=10).train_stream
    plain = Batches()
    make_learner(mlp(), plain).train(stream)
    replay = Replay(10, batch_size=batch_size)
    seen = Batches(replay)
    make_learner(mlp(), replay, seen).train(stream)

    for k, (own, joined) in enumerate(zip(plain.experiences, seen.experiences, strict=True)):
        assert len(own) == len(joined) == 6
        held = Counter(rows(seen.memories[k])) if k else Counter()
        draws = []
        for ours, theirs in zip(own, joined, strict=True):
            count = len(ours[1])
            assert rows([c[:count] for c in theirs]) == rows(ours)
            draw = Counter(rows([c[count:] for c in theirs]))
            assert draw.total() == (drawn if k else 0)
            assert draw <= held  # without replacement
            draws.append(tuple(sorted(draw.elements())))
        assert len(set(draws)) > 1 or k == 0 or drawn == 10  # each batch draws anew


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "ring", "herding"])
def test_the_memory_holds_true_samples_in_the_datas_own_dtype(clusters, mlp, make_learner, policy):
    stream, replay = clusters(task_labels=True).train_stream, Replay(10, policy)
    learner = make_learner(mlp("multi"), replay)
    offered = Counter()
    for k, experience in enumerate(stream):
        learner.train(experience)
        offered += Counter(samples(experience))
        held = replay.memory.all()
        assert held[0].dtype == torch.uint8
        assert Counter(rows(held)) <= offered
        assert len(replay.memory) == 10
        per_class = Counter(held[1].tolist())
        if policy != "reservoir":
            assert sorted(per_class.values()) == sorted(
                {0: [5, 5], 1: [3, 3, 2, 2], 2: [2, 2, 2, 2, 1, 1]}[k]
            )


def test_a_ring_holds_the_latest_samples_of_each_class(clusters, mlp, make_learner):
    stream, replay = clusters(experiences=2).train_stream, Replay(8, "ring")
    make_learner(mlp(), replay).train(stream)
    latest = Counter()
    for experience in stream:
        of_class = {}
        for sample in samples(experience):
            of_class.setdefault(sample[1], []).append(sample)
        for members in of_class.values():
            latest += Counter(members[-2:])
    assert Counter(rows(replay.memory.all())) == latest


def naive_herding(features, count):
    """iCaRL's algorithm 4 on unit features, in plain loops: the chosen places in order."""
    features = [f / f.norm() for f in features.double()]
    mean, chosen = sum(features) / len(features), []
    for k in range(1, count + 1):
        free = [i for i in range(len(features)) if i not in chosen]
        done = sum((features[i] for i in chosen), torch.zeros_like(mean))
        chosen.append(min(free, key=lambda i: float((mean - (done + features[i]) / k).norm())))
    return chosen


def test_herding_keeps_the_samples_nearest_the_mean_feature_first_chosen_first(
    clusters, mlp, make_learner
):
    stream, replay = clusters(experiences=2).train_stream, Replay(10, "herding")
    learner = make_learner(mlp(dropout=0.3), replay)
    expected = []
    for experience, keep in zip(stream, (3, 2), strict=True):  # of each class, in the end
        learner.train(experience)
        model = copy.deepcopy(learner.model).eval()
        data = samples(experience)
        x = torch.stack([item[0] for item in experience.dataset])
        for label in experience.classes_in_this_experience:
            members = [i for i, sample in enumerate(data) if sample[1] == label]
            order = naive_herding(model.features(x[members]).detach(), keep)
            expected += [data[members[i]] for i in order]
    assert Counter(rows(replay.memory.all())) == Counter(expected)
    assert learner.model.training


def test_replayed_samples_are_prepared_as_new_ones_are_and_the_memory_is_not_augmented(
    clusters, mlp, make_learner
):
    stream, replay, seen = clusters(experiences=2).train_stream, Replay(10), []

    class Look(SupervisedPlugin):
        def before_forward(self, strategy, **kwargs):
            seen.append((strategy.stored_x, strategy.mb_x))

    learner = make_learner(mlp(), replay, Look(), prepare=Prepare((0.5,), (0.5,), flip=True))
    learner.train(stream)
    stored, x = seen[-1]
    assert stored.dtype == torch.uint8
    expected = (stored.float() / 255 - 0.5) / 0.5
    as_is = torch.isclose(x, expected).flatten(1).all(1)
    mirrored = torch.isclose(x, expected.flip(-1)).flatten(1).all(1)
    assert (as_is | mirrored).all()
    assert 0 < as_is[8:].sum() < 8
    offered = Counter(samples(stream[0])) + Counter(samples(stream[1]))
    assert Counter(rows(replay.memory.all())) <= offered


def test_it_forgets_less_than_fine_tuning(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    learner = make_learner(mlp(), Replay(30), evaluator=Evaluator(), epochs=10)
    torch.manual_seed(0)
    learner.train(scenario.train_stream)
    scores = learner.eval(scenario.test_stream)
    assert min(scores) > 0.6  # fine-tuning ends at 0 on the first two


@pytest.mark.parametrize("policy", ["reservoir", "class_balanced", "ring", "herding"])
@pytest.mark.parametrize("head", ["single", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, policy, head):
    strategy, restored = resume_and_compare(lambda: Replay(10, policy), head)
    torch.manual_seed(3)
    one = strategy.memory.sample(4)
    torch.manual_seed(3)
    other = restored.memory.sample(4)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert restored.memory.classes == [0, 1, 2, 3, 4, 5]
    assert restored.memory.offered == strategy.memory.offered == 72


@pytest.mark.parametrize("size", [0, 2.5])
def test_a_draw_of_no_samples_or_of_a_part_of_one_is_refused(size):
    with pytest.raises(InputError) as caught:
        Replay(10, batch_size=size)
    assert str(caught.value) == (
        f"strategy.batch_size={size}: expected a whole number of at least 1 sample a batch; or "
        "leave it null for train.batch_size"
    )


def test_a_memory_too_small_for_a_sample_of_each_class_is_refused(clusters):
    scenario = clusters()
    Replay(6).check(scenario)
    Replay(5, "reservoir").check(scenario)
    with pytest.raises(
        InputError, match=r"^strategy.capacity=5: .*set strategy.capacity=6 or more"
    ):
        Replay(5).check(scenario)
