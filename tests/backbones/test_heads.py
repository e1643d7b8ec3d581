"""Heads against loops over single samples, and as Avalanche's dynamic modules."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from avalanche.benchmarks import CLScenario, EagerCLStream
from avalanche.benchmarks.scenarios.dataset_scenario import DatasetExperience
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline
from avalanche.benchmarks.scenarios.task_aware import with_task_labels
from avalanche.models.dynamic_modules import avalanche_model_adaptation
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import (
    MASKED,
    Cosine,
    Growing,
    Multi,
    NearestMean,
    NearestMeanFit,
    auto,
    single,
)
from clplat.data import TensorData, avalanche_dataset
from clplat.memory import Memory
from clplat.prepare import Prepare, as_float
from scenarios.streams import make_scenario

FEATURES, CLASSES = 5, 9
ORDER = [[7, 2], [0, 5, 2], [8]]  # classes of each experience; 2 comes twice, 1, 3, 4, 6 never


def scenario(classes: list[list[int]] = ORDER, task_labels: bool = False) -> CLScenario:
    """Experiences of two samples a class, their (1, 1, 5) inputs being of no matter."""
    pairs = []
    for of_experience in classes:
        y = torch.tensor(of_experience).repeat(2)
        x = torch.arange(len(y) * FEATURES).reshape(len(y), 1, 1, FEATURES)
        pairs.append((x.to(torch.uint8), y))
    return make_scenario(pairs, pairs, CLASSES, task_labels, Prepare())


def features(count: int = 6, seed: int = 0) -> Tensor:
    return torch.randn(count, FEATURES, generator=torch.Generator().manual_seed(seed))


def unmasked(logits: Tensor) -> list[int]:
    """Classes that some sample could be predicted as."""
    return (logits != MASKED).any(0).nonzero()[:, 0].tolist()


def trained_head(head: nn.Module, experiences: int = 3, task_labels: bool = False) -> nn.Module:
    torch.manual_seed(0)
    for experience in scenario(task_labels=task_labels).train_stream[:experiences]:
        avalanche_model_adaptation(head, experience)
    return head


# --- one layer -------------------------------------------------------------------------------


def test_single_is_one_linear_layer_for_all_classes():
    head = single(FEATURES, CLASSES)
    assert isinstance(head, nn.Linear)
    assert head(features()).shape == (6, CLASSES)


@pytest.mark.parametrize(("task_labels", "kind"), [(True, Multi), (False, nn.Linear)])
def test_auto_is_multi_where_there_are_task_labels(task_labels, kind):
    assert type(auto(FEATURES, CLASSES, task_labels)) is kind


# --- growing ---------------------------------------------------------------------------------


def test_a_growing_head_has_no_outputs_before_its_first_experience():
    with pytest.raises(RuntimeError, match="a growing head has no outputs before its first exper"):
        Growing(FEATURES, CLASSES)(features())


@pytest.mark.parametrize(("experiences", "seen"), [(1, [2, 7]), (2, [0, 2, 5, 7])])
def test_a_growing_head_masks_classes_that_it_has_not_met(experiences, seen):
    logits = trained_head(Growing(FEATURES, CLASSES), experiences)(features())
    assert logits.shape == (6, CLASSES)
    assert unmasked(logits) == seen


def test_a_growing_head_keeps_old_logits_when_it_grows():
    head = trained_head(Growing(FEATURES, CLASSES), 1)
    before = head(features())[:, [2, 7]]
    rows = head.linear.weight.clone()
    avalanche_model_adaptation(head, scenario().train_stream[1])
    assert torch.equal(head.linear.weight[:2], rows)
    torch.testing.assert_close(head(features())[:, [2, 7]], before, rtol=1e-6, atol=1e-6)


def test_each_logit_of_a_growing_head_is_its_own_rows_product():
    head, x = trained_head(Growing(FEATURES, CLASSES)), features()
    weight, bias = (p.detach().double().numpy() for p in head.linear.parameters())
    row_of = {2: 0, 7: 1, 0: 2, 5: 3, 8: 4}  # in the order of their coming
    logits = head(x).detach().numpy()
    for i, c in np.ndindex(len(x), CLASSES):
        row = row_of.get(c)
        exact = MASKED if row is None else weight[row] @ x[i].double().numpy() + bias[row]
        assert logits[i, c] == pytest.approx(exact, rel=1e-5, abs=1e-6)


def test_a_growing_head_stays_as_it_is_where_nothing_new_comes():
    head = trained_head(Growing(FEATURES, CLASSES), 2)
    layer = head.linear
    avalanche_model_adaptation(head, scenario([[5, 2]]).train_stream[0])
    assert head.linear is layer


def test_a_growing_head_does_not_grow_in_evaluation():
    head = trained_head(Growing(FEATURES, CLASSES), 1).eval()
    for experience in scenario().test_stream:
        avalanche_model_adaptation(head, experience)
    assert unmasked(head(features())) == [2, 7]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_masked_class_has_no_probability_in_any_precision(dtype):
    logits = trained_head(Growing(FEATURES, CLASSES), 1)(features()).to(dtype)
    assert logits.isfinite().all()
    assert logits.softmax(1)[:, [0, 1, 3, 4, 5, 6, 8]].count_nonzero() == 0


def test_the_loss_of_a_masked_output_is_that_of_the_classes_met():
    head, x, y = trained_head(Growing(FEATURES, CLASSES), 1), features(), torch.tensor([2, 7] * 3)
    expected = nn.functional.cross_entropy(head.linear(x), torch.tensor([0, 1] * 3))
    loss = nn.functional.cross_entropy(head(x), y)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)


# --- one layer a task ------------------------------------------------------------------------


@pytest.fixture
def multi() -> Multi:
    return trained_head(Multi(FEATURES, CLASSES), task_labels=True)


def test_each_task_predicts_its_own_classes(multi):
    assert multi.tasks == [0, 1, 2]
    for task, classes in enumerate(ORDER):
        assert unmasked(multi(features(), task)) == sorted(classes)


@given(tasks=st.lists(st.integers(0, 2), min_size=1, max_size=12), seed=st.integers(0, 1000))
def test_a_batch_of_mixed_tasks_gives_what_each_sample_gives_alone(tasks, seed):
    multi, x = trained_head(Multi(FEATURES, CLASSES), task_labels=True), features(len(tasks), seed)
    logits = multi(x, torch.tensor(tasks))
    alone = torch.cat([multi(x[i : i + 1], task) for i, task in enumerate(tasks)])
    torch.testing.assert_close(logits, alone, rtol=1e-6, atol=1e-6)
    assert torch.equal(logits == MASKED, alone == MASKED)


def test_without_a_task_the_logits_of_every_task_are_given(multi):
    every = multi(features(), None)
    assert list(every) == [0, 1, 2]
    for task, logits in every.items():
        assert torch.equal(logits, multi(features(), task))


def test_only_the_tasks_in_the_batch_get_gradients(multi):
    multi(features(4), torch.tensor([0, 2, 2, 0])).sum().backward()
    with_gradient = [key for key, layer in multi.linears.items() if layer.weight.grad is not None]
    assert with_gradient == ["0", "2"]


def test_gradients_of_a_mixed_batch_are_those_of_its_samples(multi):
    x, tasks = features(4), [0, 2, 2, 0]
    multi(x, torch.tensor(tasks)).square().sum().backward()
    mixed = {name: p.grad.clone() for name, p in multi.named_parameters() if p.grad is not None}
    multi.zero_grad()
    for i, task in enumerate(tasks):
        multi(x[i : i + 1], task).square().sum().backward()
    for name, gradient in mixed.items():
        torch.testing.assert_close(gradient, multi.get_parameter(name).grad, rtol=1e-5, atol=1e-5)


def test_a_task_that_brings_more_classes_later_keeps_its_old_logits(multi):
    before = multi(features(), 0)[:, [2, 7]]
    avalanche_model_adaptation(multi, scenario([[3, 7]], task_labels=True).train_stream[0])
    assert unmasked(multi(features(), 0)) == [2, 3, 7]
    torch.testing.assert_close(multi(features(), 0)[:, [2, 7]], before, rtol=1e-6, atol=1e-6)


def test_in_an_experience_of_several_tasks_each_has_its_own_classes():
    x, parts = torch.zeros(4, 1, 1, FEATURES), []
    for task, classes in enumerate([[1, 4, 1, 4], [6, 6, 0, 0]]):
        parts.append(avalanche_dataset(TensorData(x, torch.tensor(classes), task)))
    stream = EagerCLStream("train", [DatasetExperience(dataset=parts[0].concat(parts[1]))])
    (experience,) = with_task_labels(with_classes_timeline(CLScenario([stream]))).train_stream
    multi = Multi(FEATURES, CLASSES)
    avalanche_model_adaptation(multi, experience)
    assert [unmasked(multi(features(), task)) for task in (0, 1)] == [[1, 4], [0, 6]]


def test_adapting_to_a_known_task_keeps_its_layer(multi):
    layers = dict(multi.linears)
    for experience in scenario(task_labels=True).test_stream:
        avalanche_model_adaptation(multi, experience)
    assert all(multi.linears[key] is layer for key, layer in layers.items())


@pytest.mark.parametrize("task", [3, torch.tensor([3, 3, 3, 3, 3, 3]), torch.tensor([0, 3] * 3)])
def test_a_task_without_a_layer_is_refused_and_those_with_one_are_named(multi, task):
    with pytest.raises(ValueError, match=r"no head for task 3; there are heads for \[0, 1, 2\]"):
        multi(features(), task)


def test_an_empty_batch_gives_no_rows(multi):
    assert multi(features(0), torch.empty(0, dtype=torch.long)).shape == (0, CLASSES)


# --- cosine ----------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000), scale=st.floats(0.5, 50), length=st.floats(0.01, 1000))
def test_cosine_logits_are_bounded_by_the_scale_and_blind_to_length(seed, scale, length):
    torch.manual_seed(seed)
    head, x = Cosine(FEATURES, CLASSES, scale), features(seed=seed)
    logits = head(x).detach()
    assert logits.abs().max() <= scale * (1 + 1e-6)
    torch.testing.assert_close(head(x * length).detach(), logits, rtol=1e-5, atol=1e-5 * scale)


def test_cosine_logits_equal_a_loop_in_float64():
    torch.manual_seed(0)
    head, x = Cosine(FEATURES, CLASSES, 3.0), features()
    logits, w = head(x).detach(), head.weight.detach().double().numpy()
    for i, row in enumerate(x.double().numpy()):
        for c in range(CLASSES):
            cosine = row @ w[c] / (np.linalg.norm(row) * np.linalg.norm(w[c]))
            assert float(logits[i, c]) == pytest.approx(3 * cosine, rel=1e-5, abs=1e-6)


def test_a_feature_along_a_class_weight_reaches_the_scale_at_that_class():
    head = Cosine(FEATURES, CLASSES, 10.0)
    logits = head(head.weight.detach())
    assert torch.equal(logits.argmax(1), torch.arange(CLASSES))
    torch.testing.assert_close(logits.diag(), torch.full((CLASSES,), 10.0), rtol=1e-6, atol=0)


def test_the_scale_of_a_cosine_head_is_learned():
    head = Cosine(FEATURES, CLASSES)
    head(features()).sum().backward()
    assert head.scale.grad.abs() > 0
    assert head.weight.grad.abs().sum() > 0


# --- nearest mean ----------------------------------------------------------------------------


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def naive_distances(x: Tensor, fitted: Tensor, labels: list[int]) -> dict[int, np.ndarray]:
    """By class, the distance of each row of x to the normalised mean of normalised features."""
    fitted, rows = unit(fitted.double().numpy()), unit(x.double().numpy())
    distances = {}
    for label in sorted(set(labels)):
        members = [row for row, own in zip(fitted, labels, strict=True) if own == label]
        mean = unit(sum(members) / len(members))
        distances[label] = np.array([np.sqrt(((row - mean) ** 2).sum()) for row in rows])
    return distances


@given(
    labels=st.lists(st.integers(0, CLASSES - 1), min_size=1, max_size=30),
    count=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_nearest_mean_gives_minus_the_distance_to_each_mean_as_a_loop_does(labels, count, seed):
    fitted, x = features(len(labels), seed), features(count, seed + 1)
    head = NearestMean(FEATURES, CLASSES).eval()
    head.fit(fitted, torch.tensor(labels))
    logits, distances = head(x), naive_distances(x, fitted, labels)
    assert unmasked(logits) == sorted(distances)
    for label, distance in distances.items():
        np.testing.assert_allclose(-logits[:, label].numpy(), distance, rtol=1e-5, atol=1e-5)


def test_nearest_mean_predicts_each_mean_as_its_own_class():
    head, x = NearestMean(FEATURES, CLASSES).eval(), features(CLASSES)
    head.fit(x, torch.arange(CLASSES))
    assert torch.equal(head(x).argmax(1), torch.arange(CLASSES))


def test_nearest_mean_trains_through_its_linear_layer():
    head, x = NearestMean(FEATURES, CLASSES), features()
    head.fit(x, torch.arange(6))
    assert torch.equal(head.train()(x), head.linear(x))
    assert not torch.equal(head.eval()(x), head.linear(x))


def test_nearest_mean_evaluates_through_its_linear_layer_before_there_are_means():
    head = NearestMean(FEATURES, CLASSES).eval()
    assert torch.equal(head(features()), head.linear(features()))


def test_fitting_some_classes_leaves_the_means_of_others():
    head = NearestMean(FEATURES, CLASSES)
    head.fit(features(4, seed=1), torch.tensor([0, 0, 3, 3]))
    before = head.means.clone()
    head.fit(features(4, seed=2), torch.tensor([3, 3, 8, 8]))
    assert torch.equal(head.means[0], before[0])
    assert not torch.equal(head.means[3], before[3])
    assert head.known.nonzero()[:, 0].tolist() == [0, 3, 8]


class Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x.flatten(1)


def fit_strategy(labels: list[int]) -> SimpleNamespace:
    """A loop in the middle of training, on an experience with these labels."""
    model = classifier(Doubling(), NearestMean(FEATURES, CLASSES)).train()
    x = torch.randint(1, 256, (len(labels), 1, 1, FEATURES), dtype=torch.uint8)
    data = (x, torch.tensor(labels))
    experience = make_scenario([data], [data], CLASSES, False, Prepare()).train_stream[0]
    return SimpleNamespace(model=model, experience=experience, eval_mb_size=4, device="cpu", x=x)


def test_after_an_experience_means_are_those_of_its_features():
    torch.manual_seed(0)
    labels = [3, 0, 3, 3, 0, 8, 8]
    strategy = fit_strategy(labels)
    NearestMeanFit().after_training_exp(strategy)
    expected = NearestMean(FEATURES, CLASSES)
    expected.fit(2 * as_float(strategy.x).flatten(1), torch.tensor(labels))
    torch.testing.assert_close(strategy.model.head.means, expected.means, rtol=1e-6, atol=1e-6)
    assert strategy.model.head.known.nonzero()[:, 0].tolist() == [0, 3, 8]
    assert strategy.model.training


def test_means_of_old_classes_come_from_the_memory_and_of_new_ones_from_all_their_data():
    torch.manual_seed(0)
    labels = [3, 0, 3, 3, 0]
    strategy, memory = fit_strategy(labels), Memory(6, "ring")
    old = torch.rand(4, 1, 1, FEATURES)
    memory.add(old, torch.tensor([7, 7, 3, 7]))
    NearestMeanFit(memory).after_training_exp(strategy)
    expected = NearestMean(FEATURES, CLASSES)
    expected.fit(old[[0, 1, 3]].flatten(1), torch.tensor([7, 7, 7]))
    expected.fit(as_float(strategy.x).flatten(1), torch.tensor(labels))
    torch.testing.assert_close(strategy.model.head.means, expected.means, rtol=1e-6, atol=1e-6)
    assert torch.equal(strategy.model.head.known, expected.known)


def test_an_empty_memory_is_no_hindrance():
    strategy = fit_strategy([3, 0])
    NearestMeanFit(Memory(6)).after_training_exp(strategy)
    assert strategy.model.head.known.nonzero()[:, 0].tolist() == [0, 3]


# --- all of them -----------------------------------------------------------------------------

HEADS = {"single": single, "growing": Growing, "multi": Multi, "cosine": Cosine}
HEADS["nearest_mean"] = NearestMean


@pytest.fixture(params=HEADS)
def model(request) -> nn.Module:
    """Each head behind an encoder, adapted to two experiences by Avalanche's own function."""
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(FEATURES, FEATURES))
    made = classifier(encoder, HEADS[request.param](FEATURES, CLASSES))
    for experience in scenario(task_labels=True).train_stream[:2]:
        avalanche_model_adaptation(made, experience)
    return made


def inputs() -> tuple[Tensor, Tensor]:
    return features().reshape(6, 1, 1, FEATURES), torch.tensor([0, 1, 1, 0, 1, 0])


def test_every_heads_output_has_a_column_for_each_class_of_the_scenario(model):
    assert model(*inputs()).shape == (6, CLASSES)


def test_a_deep_copy_computes_the_same_and_is_independent(model):
    copied = copy.deepcopy(model)
    before = model(*inputs()).detach().clone()
    assert torch.equal(copied(*inputs()), before)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert torch.equal(copied(*inputs()), before)
    assert not torch.equal(model(*inputs()), before)


def test_a_deep_copy_can_be_adapted_without_the_original(model):
    copied = copy.deepcopy(model)
    names = {name: p.shape for name, p in model.named_parameters()}
    avalanche_model_adaptation(copied, scenario(task_labels=True).train_stream[2])
    assert {name: p.shape for name, p in model.named_parameters()} == names
    assert copied(*inputs()).shape == (6, CLASSES)


def test_adapting_again_to_the_same_experience_changes_nothing(model):
    before, held = model(*inputs()), dict(model.named_parameters())
    avalanche_model_adaptation(model, scenario(task_labels=True).train_stream[1])
    assert torch.equal(model(*inputs()), before)
    assert all(held[name] is p for name, p in model.named_parameters())
