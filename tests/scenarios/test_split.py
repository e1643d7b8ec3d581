"""Splitting by class: nothing lost, nothing twice, and labels in the order of appearance."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clplat.data import tensors_of
from clplat.errors import InputError
from scenarios import sources
from scenarios.sources import Source, load
from scenarios.split import class_counts, of_classes, split

CLASSES = 7


def images(labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 images (2, 3, 3) that tell their number and their class in the source."""
    y = torch.tensor(labels)
    x = torch.zeros(len(y), 2, 3, 3, dtype=torch.uint8)
    x[:, 0], x[:, 1] = torch.arange(len(y))[:, None, None], y[:, None, None]
    return x, y.to(torch.uint8)


@pytest.fixture(autouse=True)
def made_up(monkeypatch) -> Source:
    """A source of 7 classes: 2 + c samples of class c to train on, 2 of each to test."""
    train = [c for round_ in range(9) for c in range(CLASSES) if round_ < 2 + c]
    source = Source("made up", images(train), images([*range(CLASSES)] * 2), CLASSES)
    monkeypatch.setitem(sources.SOURCES, "made_up", lambda download=False: source)
    return source


def columns(stream) -> list[list[torch.Tensor]]:
    return [tensors_of(experience.dataset) for experience in stream]


# --- how many classes ------------------------------------------------------------------------


@given(classes=st.integers(1, 50), data=st.data())
def test_classes_are_dealt_as_evenly_as_can_be_the_first_taking_the_rest(classes, data):
    experiences = data.draw(st.integers(1, classes))
    counts = class_counts(classes, experiences, None)
    assert len(counts) == experiences
    assert sum(counts) == classes
    assert max(counts) - min(counts) <= 1
    assert counts == sorted(counts, reverse=True)


@pytest.mark.parametrize(
    ("experiences", "asked", "counts"),
    [(3, 2, [2, 2, 2]), (3, [4, 1, 2], [4, 1, 2]), (2, (1, 1), [1, 1]), (7, 1, [1] * 7)],
)
def test_counts_that_are_asked_for_are_taken(experiences, asked, counts):
    assert class_counts(CLASSES, experiences, asked) == counts


@pytest.mark.parametrize("experiences", [0, -2])
def test_there_is_at_least_one_experience(experiences):
    with pytest.raises(InputError) as error:
        split("made_up", experiences)
    assert str(error.value) == (
        f"scenario.experiences={experiences}: expected at least 1; raise it"
    )


@pytest.mark.parametrize("each", [None, 1])
def test_there_are_no_more_experiences_than_classes(each):
    with pytest.raises(InputError) as error:
        split("made_up", 8, each)
    assert str(error.value) == (
        "scenario.experiences=8: more experiences than the 7 classes of the source; choose at "
        "most 7"
    )


@pytest.mark.parametrize("asked", [4, 0, -1, [3, 2], [3, 2, 1, 1], [7, 1, 0], [6, 1, 1], []])
def test_counts_that_cannot_be_dealt_are_refused(asked):
    with pytest.raises(InputError) as error:
        split("made_up", 3, asked)
    assert str(error.value) == (
        f"scenario.classes_per_experience={asked}: expected 3 positive counts "
        "(scenario.experiences) that add up to at most 7, the source's classes"
    )


# --- samples and labels ----------------------------------------------------------------------


@given(labels=st.lists(st.integers(0, 5), min_size=1, max_size=30), data=st.data())
def test_of_classes_equals_a_loop_over_samples(labels, data):
    wanted = data.draw(st.lists(st.integers(0, 5), unique=True, min_size=1))
    first = data.draw(st.integers(0, 9))
    x, y = of_classes(images(labels), torch.tensor(wanted), first)
    expected = [
        (i, label, first + wanted.index(label)) for i, label in enumerate(labels) if label in wanted
    ]
    assert list(zip(x[:, 0, 0, 0].tolist(), x[:, 1, 0, 0].tolist(), y.tolist(), strict=True)) == (
        expected
    )
    assert y.dtype == torch.long


@pytest.mark.parametrize("counts", [None, 1, 2, [3, 1, 2], [1, 5, 1]])
@pytest.mark.parametrize("shuffle_classes", [True, False])
def test_every_sample_of_the_classes_taken_is_in_one_experience_once(
    made_up, counts, shuffle_classes
):
    scenario = split("made_up", 3, counts, shuffle_classes=shuffle_classes)
    sizes = class_counts(CLASSES, 3, counts)
    assert [len(e.classes_in_this_experience) for e in scenario.train_stream] == sizes
    taken = set(scenario.class_order)
    assert len(taken) == len(scenario.class_order) == scenario.n_classes == sum(sizes)
    for stream, (_, y) in (
        (scenario.train_stream, made_up.train),
        (scenario.test_stream, made_up.test),
    ):
        numbers = Counter(
            number for x, _, _ in columns(stream) for number in x[:, 0, 0, 0].tolist()
        )
        assert numbers == {i: 1 for i, label in enumerate(y.tolist()) if label in taken}


def test_labels_are_numbered_as_they_appear_and_the_order_tells_the_sources_class():
    scenario = split("made_up", 3, [2, 1, 3], seed=5)
    for stream in (scenario.train_stream, scenario.test_stream):
        labels = [sorted(y.unique().tolist()) for _, y, _ in columns(stream)]
        assert labels == [[0, 1], [2], [3, 4, 5]]
        for x, y, _ in columns(stream):
            assert x[:, 1, 0, 0].tolist() == [scenario.class_order[label] for label in y.tolist()]
    seen = [list(e.classes_seen_so_far) for e in scenario.train_stream]
    assert [sorted(classes) for classes in seen] == [[0, 1], [0, 1, 2], [0, 1, 2, 3, 4, 5]]


def test_unshuffled_classes_keep_the_sources_labels():
    scenario = split("made_up", 3, shuffle_classes=False)
    assert scenario.class_order == list(range(CLASSES))
    for x, y, _ in columns(scenario.train_stream):
        assert x[:, 1, 0, 0].tolist() == y.tolist()


def test_the_same_seed_gives_the_same_streams_and_other_seeds_other_orders():
    one, again = split("made_up", 3, seed=1), split("made_up", 3, seed=1)
    assert one.class_order == again.class_order
    for some, others in zip(columns(one.train_stream), columns(again.train_stream), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))
    orders = {tuple(split("made_up", 3, seed=seed).class_order) for seed in range(10)}
    assert len(orders) > 5


def test_the_seed_alone_decides_and_torchs_own_generator_is_left_alone():
    torch.manual_seed(3)
    before, order = torch.get_rng_state(), split("made_up", 3, seed=1).class_order
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    assert split("made_up", 3, seed=1).class_order == order


@pytest.mark.parametrize(("task_labels", "tasks"), [(True, [0, 1, 2]), (False, [0, 0, 0])])
def test_an_experience_is_a_task_of_its_own_where_there_are_task_labels(task_labels, tasks):
    scenario = split("made_up", 3, task_labels=task_labels)
    assert scenario.task_labels is task_labels
    for stream in (scenario.train_stream, scenario.test_stream):
        assert [e.task_labels for e in stream] == [[task] for task in tasks]
        assert [task.unique().tolist() for _, _, task in columns(stream)] == [[t] for t in tasks]


# --- what a model sees -----------------------------------------------------------------------


def test_images_are_kept_as_bytes_and_scaled_by_prepare():
    scenario = split("made_up", 3)
    assert scenario.input_shape == (2, 3, 3)
    x = columns(scenario.train_stream)[0][0]
    assert x.dtype == torch.uint8
    torch.testing.assert_close(scenario.prepare(x), x.float() / 255)


def test_normalised_training_images_of_all_experiences_have_mean_0_and_deviation_1():
    scenario = split("made_up", 3, normalise=True)
    x = torch.cat([scenario.prepare(x) for x, _, _ in columns(scenario.train_stream)]).double()
    for channel in x.transpose(0, 1):
        assert abs(float(channel.mean())) < 1e-5
        assert float(channel.std()) == pytest.approx(1, abs=1e-5)


def test_crop_and_flip_are_for_training():
    prepare = split("made_up", 3, crop=2, flip=True).prepare
    assert (prepare.crop, prepare.flip, prepare.mean) == (2, True, None)
    plain = split("made_up", 3).prepare
    assert (plain.crop, plain.flip) == (0, False)


def test_an_unknown_source_is_refused():
    with pytest.raises(InputError, match=r"scenario\.source=emnist: no such source; choose one of"):
        split("emnist")


def test_digits_split_in_five_have_two_classes_each_and_all_samples():
    scenario, source = split("digits"), load("digits")
    assert [len(e.classes_in_this_experience) for e in scenario.train_stream] == [2] * 5
    assert sum(len(e.dataset) for e in scenario.train_stream) == len(source.train[1])
    assert sum(len(e.dataset) for e in scenario.test_stream) == len(source.test[1])


# --- a few of each class -------------------------------------------------------------------------


def test_a_few_of_each_class_are_drawn_by_the_seed():
    whole, few, again, other = (
        columns(
            split(
                "made_up", 3, samples_per_class=samples, seed=seed, shuffle_classes=False
            ).train_stream
        )
        for samples, seed in ((None, 0), (2, 0), (2, 0), (2, 1))
    )
    for parts in zip(whole, few, again, strict=True):
        (x, y, _), (drawn, labels, _), (same, _, _) = parts
        assert Counter(labels.tolist()) == dict.fromkeys(y.unique().tolist(), 2)
        numbers = [int(image[0, 0, 0]) for image in drawn]
        assert numbers == [n for n in (int(i[0, 0, 0]) for i in x) if n in numbers]  # in order
        assert len(set(numbers)) == len(numbers)
        assert torch.equal(drawn, same)
    assert any(not torch.equal(a[0], b[0]) for a, b in zip(few, other, strict=True))


@pytest.mark.parametrize("samples", [0, 3])
def test_more_of_each_class_than_there_are_is_refused(samples):
    with pytest.raises(InputError) as error:
        split("made_up", samples_per_class=samples)
    assert str(error.value) == (
        f"scenario.samples_per_class={samples}: expected 1 to 2, what there is of every class; "
        "null takes all"
    )
