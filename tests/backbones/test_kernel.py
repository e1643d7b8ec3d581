"""The kernel head against dense kernels in float64, and as a head for each task."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import MASKED
from clplat.backbones.kernel import Kernel
from clplat.errors import InputError

FEATURES, CLASSES = 5, 7
ORDER = {0: [4, 1], 3: [0, 2, 6]}  # classes of each task


def drawn(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def experience(task, classes):
    return SimpleNamespace(task_labels=[task], classes_in_this_experience=classes)


def made(**settings):
    torch.manual_seed(0)
    head = Kernel(FEATURES, CLASSES, **{"random_features": 11, "bandwidth": 0.7, **settings})
    for task, classes in ORDER.items():
        head.adaptation(experience(task, classes))
    head.double()
    with torch.no_grad():
        for k, kernel in enumerate(head.linears.values()):
            kernel.ridge.fill_(-0.3 - k)  # its magnitude counts
            kernel.scale.fill_(1.7 + k)
            kernel.shift.fill_(0.4 + k)
    return head


def dense(head, task, coreset, labels, features):
    """gamma K_XC (K_CC + (|lambda| + 0.01) I)^-1 Y + beta by loops over pairs, and an inverse."""

    def unit(z):
        return z / z.square().sum(1, keepdim=True).sqrt()

    def kernel(a, b):
        total = 0
        for omega, phase in zip(head.frequencies, head.phases, strict=True):
            rows = torch.cos((unit(a) * omega).sum(1) + phase)
            columns = torch.cos((unit(b) * omega).sum(1) + phase)
            total = total + 2 / len(head.phases) * rows[:, None] * columns
        return total

    own = head.linears[str(task)]
    classes = sorted(ORDER[task])
    targets = torch.tensor([[float(y == c) for c in classes] for y in labels.tolist()]).double()
    eye = torch.eye(len(labels), dtype=torch.float64)
    inverse = (kernel(coreset, coreset) + (own.ridge.abs() + 0.01) * eye).inverse()
    logits = own.scale * kernel(features, coreset) @ inverse @ targets + own.shift
    output = torch.full((len(features), CLASSES), MASKED, dtype=torch.float64)
    return output.index_copy(1, torch.tensor(classes), logits)


def some_coreset(task, count=5):
    classes = sorted(ORDER[task])
    labels = torch.tensor([classes[k % len(classes)] for k in range(count)])
    return drawn(count, FEATURES, seed=5 + task), labels


@pytest.mark.parametrize("task", ORDER)
@pytest.mark.parametrize("count", [1, 5, 17])
def test_in_training_and_in_evaluation_it_predicts_as_the_dense_kernel(task, count):
    head, features = made(), drawn(4, FEATURES)
    coreset, labels = some_coreset(task, count)
    expected = dense(head, task, coreset, labels, features)
    head.coreset = task, labels
    trained = head(torch.cat([features, coreset]), torch.full((4,), task))
    torch.testing.assert_close(trained, expected)
    head.coreset = None
    head.fit(coreset, labels, task)
    torch.testing.assert_close(head.eval()(features, torch.full((4,), task)), expected)
    torch.testing.assert_close(head(features, task), expected)


def test_gradients_reach_features_coreset_and_coefficients_as_through_the_dense_kernel():
    task, (coreset, labels) = 3, some_coreset(3)
    one, other = made(), made()
    found, wanted = [], []
    for head, grads in ((one, found), (other, wanted)):
        features, kept = drawn(4, FEATURES).requires_grad_(), coreset.clone().requires_grad_()
        if head is one:
            head.coreset = task, labels
            logits = head(torch.cat([features, kept]), torch.full((4,), task))
        else:
            logits = dense(head, task, kept, labels, features)
        weights = drawn(4, CLASSES, seed=9)  # a loss that the softmax's blindness does not hide
        weights[:, logits[0] == MASKED] = 0
        (weights * logits).sum().backward()
        own = head.linears[str(task)]
        grads += [features.grad, kept.grad, own.ridge.grad, own.scale.grad, own.shift.grad]
        assert head.linears["0"].scale.grad is None
    for a, b in zip(found, wanted, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b)


def test_tasks_are_told_apart_in_evaluation_and_answered_all_at_once_without_one():
    head, features = made(), drawn(6, FEATURES)
    for task in ORDER:
        head.fit(*some_coreset(task), task)
    tasks = torch.tensor([0, 3, 3, 0, 3, 0])
    mixed = head.eval()(features, tasks)
    every = head(features)
    for row, task in enumerate(tasks.tolist()):
        torch.testing.assert_close(mixed[row], every[task][row])
    assert every[0][0, [4, 1]].unique().numel() == 2


def test_a_task_that_was_not_solved_for_is_not_told_apart():
    head = made().eval()
    assert head(drawn(3, FEATURES), 0)[:, [1, 4]].unique().tolist() == [pytest.approx(0.4)]


def test_a_task_that_gains_classes_keeps_what_it_learnt_and_counts_them():
    head = made()
    learnt = head.linears["0"]
    head.adaptation(experience(0, [4, 5, 1]))
    head.adaptation(experience(0, [4]))
    assert head.linears["0"] is learnt
    assert head.columns_0.tolist() == [1, 4, 5]
    labels = torch.tensor([5, 1, 4, 5])
    coreset = drawn(4, FEATURES)
    head.fit(coreset, labels, 0)
    assert head.eval()(coreset, 0).argmax(1).tolist() == labels.tolist()


def test_the_length_of_features_does_not_count():
    head = made().eval()
    head.fit(*some_coreset(0), 0)
    torch.testing.assert_close(head(drawn(3, FEATURES), 0), head(10 * drawn(3, FEATURES), 0))


def test_frequencies_are_of_the_bandwidth_and_phases_of_the_circle():
    torch.manual_seed(0)
    head = Kernel(50, 2, random_features=400, bandwidth=0.2)
    assert head.frequencies.std().item() == pytest.approx(5, rel=0.03)
    assert head.phases.min() >= 0
    assert head.phases.max().item() == pytest.approx(2 * math.pi, rel=0.03)


def test_a_copy_and_a_loaded_state_predict_the_same():
    head = made()
    head.fit(*some_coreset(0), 0)
    other = made()
    other.load_state_dict(head.state_dict())
    for twin in (copy.deepcopy(head), other):
        assert torch.equal(
            twin.eval()(drawn(3, FEATURES), 0), copy.deepcopy(head).eval()(drawn(3, FEATURES), 0)
        )


def test_under_autocast_it_computes_in_float32():
    torch.manual_seed(0)
    head = Kernel(FEATURES, CLASSES)
    head.adaptation(experience(0, ORDER[0]))
    coreset, labels = some_coreset(0)
    model = classifier(nn.Identity(), head)
    head.coreset = 0, labels
    x = torch.cat([drawn(4, FEATURES), coreset]).float()
    plain = model(x, torch.zeros(4))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x, torch.zeros(4)), plain)
    assert plain.dtype == torch.float32


def test_training_without_a_coreset_is_refused():
    with pytest.raises(InputError) as caught:
        made()(drawn(3, FEATURES), torch.zeros(3))
    assert str(caught.value) == (
        "head=kernel: in training it solves for a coreset, and this strategy gives it none; set "
        "strategy=kcl, or strategy=gkcl"
    )


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"random_features": 0}, "head.random_features=0: expected at least 1; raise it"),
        ({"bandwidth": 0.0}, "head.bandwidth=0.0: expected more than 0; raise it"),
    ],
)
def test_settings_out_of_range_are_refused(settings, text):
    with pytest.raises(InputError) as caught:
        Kernel(FEATURES, CLASSES, **settings)
    assert str(caught.value) == text
