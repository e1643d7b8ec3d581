"""GDumb: its memory against the algorithm in plain lists, its training against bare loops."""

import copy
from collections import Counter

import pytest
import torch
from avalanche.core import SupervisedPlugin
from avalanche.training.plugins import GDumbPlugin
from torch import nn

from clplat.backbones.heads import NearestMean, NearestMeanFit
from clplat.errors import InputError
from clplat.evaluation import Evaluator
from strategies.gdumb import GDumb, GreedyMemory
from tests.handed_over import HandedOver
from tests.strategies.test_replay import rows, samples


def naive_greedy(labels, capacity):
    """The paper's algorithm with a list for each class; returns the places held of each class."""
    held = {}
    for place, label in enumerate(labels):
        if label in held and not len(held[label]) * len(held) < capacity:
            continue
        if sum(len(places) for places in held.values()) >= capacity:
            most = max(len(places) for places in held.values())
            largest = next(places for places in held.values() if len(places) == most)
            del largest[torch.randint(most, ()).item()]
        held.setdefault(label, []).append(place)
    return held


@pytest.mark.parametrize("capacity", [1, 4, 7, 12, 100])
@pytest.mark.parametrize("batch", [1, 5, 200])
def test_the_memory_is_the_papers_whatever_the_batches(capacity, batch):
    generator = torch.Generator().manual_seed(capacity)
    labels = torch.cat([torch.randint(n, (40,), generator=generator) for n in (1, 3, 7)])
    memory = GreedyMemory(capacity)
    torch.manual_seed(0)
    expected = naive_greedy(labels.tolist(), capacity)
    torch.manual_seed(0)
    for place in torch.arange(len(labels)).split(batch):
        memory.add(place[:, None].double(), labels[place], place)
    x, y, place = memory.all()
    assert len(memory) == len(y) <= capacity
    assert torch.equal(x[:, 0].long(), place)
    assert torch.equal(y, labels[place])
    assert sorted(place.tolist()) == sorted(p for places in expected.values() for p in places)
    assert memory.bytes == capacity * 24


def test_a_class_keeps_the_samples_that_came_first_and_the_memory_stays_full():
    memory, place = GreedyMemory(6), torch.arange(30)
    memory.add(place, place * 0)
    assert memory.all()[0].tolist() == [0, 1, 2, 3, 4, 5]
    memory.add(place[:2] + 30, place[:2] * 0 + 1)  # fewer than its share
    counts = Counter(memory.all()[1].tolist())
    assert counts == {0: 4, 1: 2}
    assert set(memory.all()[0].tolist()) <= {*range(6), 30, 31}
    memory.add(place + 32, place * 0 + 1)
    assert Counter(memory.all()[1].tolist()) == {0: 3, 1: 3}
    assert {30, 31, 32} <= set(memory.all()[0].tolist())


def test_a_restored_memory_is_its_own():
    memory, other, place = GreedyMemory(6), GreedyMemory(6), torch.arange(6)
    memory.add(place, place * 0)
    other.load_state_dict(memory.state_dict())
    other.add(place + 10, place * 0 + 1)
    assert Counter(other.all()[1].tolist()) == {0: 3, 1: 3}
    assert memory.all()[0].tolist() == [0, 1, 2, 3, 4, 5]
    assert memory.places == {0: [0, 1, 2, 3, 4, 5]}


class Batches(SupervisedPlugin):
    """The batches, the weights and the optimizer's state with which each experience begins."""

    def __init__(self):
        super().__init__()
        self.begins, self.batches = [], []

    def before_training_exp(self, strategy, **kwargs):
        self.begins.append(copy.deepcopy(strategy.model.state_dict()))
        self.batches.append([])
        assert not any(len(s) and s["step"] for s in strategy.optimizer.state.values())

    def before_forward(self, strategy, **kwargs):
        columns = (strategy.stored_x, strategy.mb_y, strategy.mb_task_id)
        self.batches[-1].append([column.clone() for column in columns])


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_each_experience_trains_the_first_weights_on_the_memory_alone(
    clusters, mlp, make_learner, head
):
    stream = clusters(task_labels=head == "multi").train_stream
    seen, gdumb, offered = Batches(), GDumb(13, passes=3), Counter()
    learner = make_learner(mlp(head), gdumb, seen, optimizer=torch.optim.Adam)
    for k, experience in enumerate(stream):
        learner.train(experience)
        offered += Counter(samples(experience))
        memory = Counter(rows(gdumb.memory.all()))
        assert memory <= offered
        assert memory.total() == 13
        assert (
            sorted(Counter(label for _, label, _ in memory).values())
            == ([[6, 7], [3, 3, 3, 4], [2, 2, 2, 2, 2, 3]][k])
        )
        assert len(seen.batches[k]) == 2 * 3 * 2  # epochs, passes, batches
        for one in range(0, 12, 2):
            drawn = Counter(r for batch in seen.batches[k][one : one + 2] for r in rows(batch))
            assert drawn == memory
        for name, tensor in seen.begins[0].items():
            begins = seen.begins[k][name][tuple(slice(n) for n in tensor.shape)]
            assert torch.equal(begins, tensor)
    assert len({tuple(batch[1].tolist()) for batch in seen.batches[2][::2]}) > 1  # drawn anew


def test_what_a_network_gained_begins_again_as_it_was_made(clusters, mlp, make_learner):
    stream, seen = clusters().train_stream, Batches()
    torch.manual_seed(2)
    learner = make_learner(mlp("growing"), GDumb(12), seen)
    learner.train(stream)
    for k in range(1, 3):
        for name in ("head.linear.weight", "head.linear.bias"):
            before = seen.begins[k - 1][name]
            assert torch.equal(seen.begins[k][name][: len(before)], before)
            assert not torch.equal(learner.model.state_dict()[name][: len(before)], before)
    assert learner.model.head.columns.tolist() == [*range(6)]


def test_with_room_for_all_it_is_a_bare_loop_over_all_data_from_the_start(
    clusters, mlp, make_learner, bare_loop, weights
):
    stream, gdumb = list(clusters().train_stream), GDumb(100, passes=1)
    learner = make_learner(mlp(), gdumb)
    for k, experience in enumerate(stream):
        learner.order.manual_seed(0)
        learner.train(experience)
        bare = weights(bare_loop(mlp(), [stream[: k + 1]]))
        for name, value in weights(learner.model).items():
            assert torch.equal(value, bare[name])


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_with_room_for_all_it_trains_to_the_weights_of_avalanches_plugin(
    clusters, mlp, make_learner, weights, head
):
    stream, models = clusters(task_labels=head == "multi").train_stream, []
    for plugin in (GDumb(100, passes=1), GDumbPlugin(100)):
        torch.manual_seed(1)
        model = mlp(head)
        for experience in stream if head != "single" else ():  # heads drawn before either begins
            model.head.adaptation(experience)
        learner = make_learner(model, plugin, batch_size=100, epochs=5)
        for experience in stream:
            learner.train(experience)
        models.append(weights(learner.model))
    for name in models[0]:
        torch.testing.assert_close(models[0][name], models[1][name], rtol=1e-4, atol=1e-5)


def test_statistics_of_batch_norm_begin_anew(clusters, make_learner):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Linear(8, 6))
    seen = Batches()
    learner = make_learner(model, GDumb(12), seen)
    learner.train(clusters().train_stream)
    for begins in seen.begins:
        assert begins["2.running_mean"].abs().sum() == begins["2.num_batches_tracked"] == 0
    assert learner.model[2].num_batches_tracked > 0


def test_it_goes_with_nearest_means_which_are_of_the_new_features(clusters, mlp, make_learner):
    model, gdumb = mlp(), GDumb(12)
    model.head = NearestMean(12, 6)
    learner = make_learner(model, gdumb, NearestMeanFit(gdumb.memory), evaluator=Evaluator())
    learner.train(clusters(samples=20).train_stream)
    x, y, _ = gdumb.memory.all()
    features = nn.functional.normalize(model.features(x.float() / 255), dim=1)
    for label in range(4):  # of earlier experiences
        mean = nn.functional.normalize(features[y == label].mean(0), dim=0)
        torch.testing.assert_close(model.head.means[label], mean)


def test_it_forgets_less_than_fine_tuning(clusters, mlp, make_learner):
    scenario = clusters(samples=30)
    learner = make_learner(mlp(), GDumb(30), evaluator=Evaluator(), epochs=10)
    torch.manual_seed(0)
    learner.train(scenario.train_stream)
    scores = learner.eval(scenario.test_stream)
    assert min(scores) > 0.5  # fine-tuning ends at 0 on the first two


def test_it_trains_in_mixed_precision_and_by_several_batches(clusters, mlp, assert_near_in_half):
    stream = clusters().train_stream
    assert_near_in_half(lambda: mlp("growing"), lambda: GDumb(12, 3), stream, accumulate=2)


@pytest.mark.parametrize("head", ["single", "growing", "multi"])
def test_a_restored_strategy_goes_on_exactly_as_the_original(resume_and_compare, head):
    strategy, restored = resume_and_compare(lambda: GDumb(10), head)
    assert strategy.memory_bytes == restored.memory_bytes == 10 * (16 + 8 + 8)
    one, other = strategy.memory.all(), restored.memory.all()
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert restored.initial.keys() == strategy.initial.keys()


def begins_again(old, new, loop):
    """As in a run that is taken up again."""
    loader = loop.dataloader
    new.before_training_exp(loop)
    ours, theirs = loop.dataloader.batches.columns, loader.batches.columns
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    loop.dataloader = loader


def test_it_goes_on_from_its_state_in_mid_experience(clusters, mlp, make_learner, weights):
    models = []
    for plugin in (GDumb(10, 3), HandedOver(lambda: GDumb(10, 3), 29, begins_again)):
        learner = make_learner(mlp("growing"), plugin)
        torch.manual_seed(1)
        learner.train(clusters().train_stream)
        models.append(weights(learner.model))
    assert plugin.seen == 36
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"capacity": 0}, "strategy.capacity=0: expected at least 1; raise it"),
        ({"passes": 0}, "strategy.passes=0: expected at least 1; raise it"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(InputError) as caught:
        GDumb(**arguments)
    assert str(caught.value) == message


def test_a_memory_too_small_for_each_class_is_refused(clusters):
    GDumb(6).check(clusters())
    with pytest.raises(InputError) as caught:
        GDumb(5).check(clusters())
    assert str(caught.value) == (
        "strategy.capacity=5: GDumb keeps at least one sample of each of the scenario's 6 classes; "
        "set strategy.capacity=6 or more"
    )


def test_generated_weights_are_refused():
    model = nn.Module()
    GDumb().check_model(model)
    model.generator = nn.Linear(1, 1)
    with pytest.raises(InputError) as caught:
        GDumb().check_model(model)
    assert str(caught.value) == (
        "hypernet: GDumb trains on all tasks at once, and embeddings of tasks are trained in their "
        "own experience; set hypernet=none"
    )
