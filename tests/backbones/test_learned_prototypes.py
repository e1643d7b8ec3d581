"""Learned prototypes against cosines in plain Python, as a head that grows, and by task."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clplat.backbones.classifier import Classifier, MultiTaskClassifier, classifier
from clplat.backbones.heads import MASKED
from clplat.backbones.learned_prototypes import (
    LearnedPrototypes,
    TaskPrototypes,
    learned_prototypes,
)
from clplat.errors import InputError

FEATURES, CLASSES = 5, 9
ORDER = [{3: {7, 2}}, {1: {0, 5, 2}}, {3: {8}}, {1: {4}, 6: {3, 2}}]  # classes by task


def experience(classes):
    sets = {t: SimpleNamespace(targets=SimpleNamespace(uniques=c)) for t, c in classes.items()}
    return SimpleNamespace(
        classes_in_this_experience=sorted(set().union(*classes.values())),
        task_labels=list(classes),
        dataset=SimpleNamespace(task_set=sets),
    )


def grown(task_labels=False, experiences=4):
    torch.manual_seed(0)
    head = learned_prototypes(FEATURES, CLASSES, task_labels, projection=4)
    for classes in ORDER[:experiences]:
        head.adaptation(experience(classes))
    return head


def drawn(samples):
    return torch.randn(samples, FEATURES, generator=torch.Generator().manual_seed(1))


def cosine(a, b):
    lengths = [math.sqrt(sum(v * v for v in row)) for row in (a, b)]
    return sum(v * w for v, w in zip(a, b, strict=True)) / (lengths[0] * lengths[1])


def prototypes(head):
    """By task and class."""
    keys = zip(head.tasks.tolist(), head.columns.tolist(), strict=True)
    return dict(zip(keys, torch.cat([*head.groups]).tolist(), strict=True))


def assert_cosines(logits, features, by_class):
    assert logits.shape == (len(features), CLASSES)
    for row, feature in zip(logits.tolist(), features.tolist(), strict=True):
        for label, logit in enumerate(row):
            if label in by_class:
                assert logit == pytest.approx(cosine(feature, by_class[label]), abs=1e-6)
            else:
                assert logit == MASKED


def test_logits_are_cosines_at_the_columns_of_known_classes():
    head, features = grown(experiences=3), drawn(7)
    by_class = {label: row for (_, label), row in prototypes(head).items()}
    assert sorted(by_class) == [0, 2, 5, 7, 8]
    assert_cosines(head(features), features, by_class)


def test_of_a_task_only_its_own_prototypes_count():
    head, features = grown(task_labels=True), drawn(7)
    of_task = {}
    for (task, label), row in prototypes(head).items():
        of_task.setdefault(task, {})[label] = row
    assert {t: sorted(c) for t, c in of_task.items()} == {3: [2, 7, 8], 1: [0, 2, 4, 5], 6: [2, 3]}
    together = head(features, None)
    assert list(together) == [3, 1, 6]
    for task, by_class in of_task.items():
        assert_cosines(head(features, task), features, by_class)
        assert torch.equal(together[task], head(features, task))
    mixed = torch.tensor([3, 1, 1, 6, 3, 6, 1])
    for k, task in enumerate(mixed.tolist()):
        assert_cosines(head(features, mixed)[k : k + 1], features[k : k + 1], of_task[task])


@pytest.mark.parametrize("task_labels", [False, True])
def test_classes_that_come_together_are_one_parameter_and_old_ones_are_left_alone(task_labels):
    head = grown(task_labels, 2)
    held, before = list(head.groups), [group.clone() for group in head.groups]
    for classes in (*ORDER[2:], ORDER[1]):  # the last are known
        head.adaptation(experience(classes))
    sizes = [2, 3, 1, 1, 2] if task_labels else [2, 2, 1, 2]
    assert [len(group) for group in head.groups] == sizes
    assert all(a is b for a, b in zip(held, head.groups, strict=False))
    assert all(torch.equal(a, b) for a, b in zip(before, head.groups, strict=False))
    rows = [tuple(row) for row in torch.cat([*head.groups]).tolist()]
    assert len(set(rows)) == sum(sizes)


def test_a_group_is_met_where_the_experience_has_any_of_its_classes():
    head = grown()
    assert [head.met(experience(c)) for c in ORDER] == [[0], [0, 1], [2], [0, 3]]
    head = grown(task_labels=True)
    assert [head.met(experience(c)) for c in ORDER] == [[0], [1], [2], [3, 4]]


def test_a_samples_own_prototype_is_that_of_its_class_and_of_its_task():
    labels, tasks = torch.tensor([2, 8, 2]), torch.tensor([1, 3, 6])
    for head, pairs in (
        (grown(), [(0, 2), (0, 8), (0, 2)]),
        (grown(task_labels=True), [(1, 2), (3, 8), (6, 2)]),
    ):
        keys, own = list(prototypes(head)), head.own(labels, tasks)
        assert own.sum(1).tolist() == [1, 1, 1]
        assert [keys[k] for k in own.int().argmax(1).tolist()] == pairs


def test_evaluation_makes_it_grow_where_there_is_a_task_to_answer_for():
    head = learned_prototypes(FEATURES, CLASSES, False).eval()
    with pytest.raises(RuntimeError, match="none before the first experience"):
        head(drawn(2))
    for classes in ORDER[:2]:
        head.adaptation(experience(classes))
    assert head.columns.tolist() == [2, 7]
    head = learned_prototypes(FEATURES, CLASSES, True).eval()
    for classes in ORDER[:2]:
        head.adaptation(experience(classes))
    assert head.columns.tolist() == [2, 7, 0, 2, 5]


def test_a_copy_grows_without_the_original():
    head = grown(experiences=2)
    copied = copy.deepcopy(head)
    assert torch.equal(copied(drawn(3)), head(drawn(3)))
    copied.adaptation(experience(ORDER[2]))
    assert (head.columns.tolist(), len(head.groups)) == ([2, 7, 0, 5], 2)


def test_the_projection_has_two_hidden_layers_as_wide_as_the_features():
    shapes = [tuple(layer.weight.shape) for layer in grown().projection[::2]]
    assert shapes == [(5, 5), (5, 5), (4, 5)]
    assert (grown().projection(drawn(3)) < 0).any()  # nothing after the last


def test_the_model_asks_for_tasks_where_the_head_does():
    models = [classifier(nn.Flatten(), learned_prototypes(4, 3, labels)) for labels in (0, 1)]
    assert [type(m) for m in models] == [Classifier, MultiTaskClassifier]
    assert [type(m.head) for m in models] == [LearnedPrototypes, TaskPrototypes]


def test_no_projection_is_refused():
    with pytest.raises(InputError) as caught:
        learned_prototypes(FEATURES, CLASSES, False, projection=0)
    assert str(caught.value) == "head.projection=0: expected at least 1; raise it"
