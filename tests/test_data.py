"""Tensors taken out of datasets, against reading the same datasets item by item."""

import pytest
import torch
from avalanche.benchmarks import nc_benchmark
from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
from avalanche.benchmarks.utils.data_attribute import TaskLabels
from avalanche.benchmarks.utils.transform_groups import DefaultTransformGroups, TransformGroups
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import TensorDataset

from clplat.data import TensorData, avalanche_dataset, bytes_of, tensors_of
from clplat.prepare import Prepare

PREPARE = Prepare(mean=(0.25,), std=(0.5,), crop=1, flip=True)  # crop and flip: training only


def columns(size: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 images (1, 2, 3) that differ in every sample, and labels."""
    x = torch.arange(start, start + size)[:, None] + torch.arange(6)
    return x.to(torch.uint8).reshape(size, 1, 2, 3), torch.arange(start, start + size) % 4


def ours(size: int = 7, start: int = 0, task: int = 0) -> AvalancheDataset:
    return avalanche_dataset(TensorData(*columns(size, start), task, PREPARE))


def of_tensors(size: int = 7, task: int | None = 0, **options) -> AvalancheDataset:
    x, y = columns(size)
    attributes = [DataAttribute(y, "targets")]
    attributes += [] if task is None else [TaskLabels([task] * size)]
    return AvalancheDataset([TensorDataset(x.float(), y)], data_attributes=attributes, **options)


def item_by_item(dataset: AvalancheDataset) -> list[Tensor]:
    """What Avalanche gives for each index, stacked: x, y, task."""
    items = [dataset[i] for i in range(len(dataset))]
    return [torch.stack([torch.as_tensor(item[k]) for item in items]) for k in range(3)]


def assert_same(some: list[Tensor], others: list[Tensor]) -> None:
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)


def double(x: Tensor) -> Tensor:
    return 2 * x


def next_class(y: int) -> int:
    return y + 1


# --- data of our own -------------------------------------------------------------------------


def test_items_are_prepared_and_columns_are_as_stored():
    x, y = columns(7)
    data = TensorData(x, y, 3, PREPARE)
    assert len(data) == 7
    for i in range(7):
        item, label = data[i]
        assert torch.equal(item, PREPARE(x[i : i + 1])[0])
        assert label == int(y[i])
    assert data.columns[0] is x
    assert_same(data.columns[1:], [y, torch.full((7,), 3)])


def test_labels_of_any_integer_type_become_long():
    x, y = columns(4)
    assert TensorData(x, y.to(torch.uint8)).columns[1].dtype == torch.long


def test_samples_and_labels_of_different_number_are_refused():
    x, y = columns(7)
    with pytest.raises(ValueError, match="x holds 7 samples but y holds 6 labels"):
        TensorData(x, y[:6])


def test_avalanche_sees_targets_and_task_labels():
    dataset = ours(7, task=2)
    assert list(dataset.targets) == columns(7)[1].tolist()
    assert set(dataset.targets_task_labels) == {2}
    x, y, task = dataset[5]
    assert torch.equal(x, PREPARE(columns(7)[0])[5])
    assert (y, task) == (1, 2)


@given(data=st.data())
def test_any_tree_of_subsets_and_concatenations_gives_its_samples_in_order(data):
    leaves = [ours(5), ours(3, start=20, task=1), ours(4, start=40, task=2)]
    stored = [leaf._flat_data._datasets[0].columns for leaf in leaves]
    dataset, expected = leaves[0], [(0, row) for row in range(5)]  # (leaf, row) of each sample
    for _ in range(data.draw(st.integers(0, 4), "operations")):
        if data.draw(st.booleans(), "concatenate"):
            k = data.draw(st.integers(0, 2), "leaf")
            dataset = dataset.concat(leaves[k])
            expected = expected + [(k, row) for row in range(len(leaves[k]))]
        else:
            rows = st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=8)
            index = data.draw(rows, "subset")
            dataset, expected = dataset.subset(index), [expected[i] for i in index]
    naive = [torch.stack([stored[k][c][row] for k, row in expected]) for c in range(3)]
    assert_same(tensors_of(dataset), naive)
    assert_same(tensors_of(dataset, stored=False), item_by_item(dataset))


def test_task_labels_that_were_replaced_win_over_those_of_the_data():
    dataset = ours(6).update_data_attribute("targets_task_labels", [0, 1, 2, 0, 1, 2])
    relabelled = AvalancheDataset([ours(6)], data_attributes=[TaskLabels([5, 4, 3, 2, 1, 0])])
    subset = relabelled.subset([4, 0])
    for one in (dataset, relabelled, subset, ours(3).concat(relabelled)):
        assert tensors_of(one)[2].tolist() == item_by_item(one)[2].tolist()


def test_data_of_our_own_is_not_copied():
    x, y = columns(7)
    assert tensors_of(avalanche_dataset(TensorData(x, y)))[0].data_ptr() == x.data_ptr()


# --- data of others --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dataset",
    [
        of_tensors(task=3),
        of_tensors().subset([6, 0, 0, 2]),
        of_tensors().concat(of_tensors(3, task=1)),
        of_tensors().concat(of_tensors(3, task=1)).subset([9, 1, 8]),
        of_tensors(transform_groups=TransformGroups({"train": (double, None)})),
        of_tensors(transform_groups=TransformGroups({"train": (double, next_class)})),
        of_tensors(transform_groups=TransformGroups({"train": None, "eval": double})),
        of_tensors(transform_groups=TransformGroups({"train": None, "eval": double})).eval(),
        of_tensors(transform_groups=TransformGroups({"train": double})).freeze_transforms(),
        of_tensors(transform_groups=TransformGroups({"train": double})).subset([3, 1]),
        of_tensors().concat(of_tensors(transform_groups=TransformGroups({"train": double}))),
        of_tensors(frozen_transform_groups=TransformGroups({"train": double})),
        of_tensors(transform_groups=DefaultTransformGroups(double)),
        of_tensors(frozen_transform_groups=DefaultTransformGroups((None, next_class))),
        AvalancheDataset(
            [[(torch.full((2,), float(i)), 9 - i) for i in range(5)]],
            data_attributes=[DataAttribute(range(9, 4, -1), "targets"), TaskLabels(range(5))],
        ),
    ],
    ids=[
        "plain",
        "subset",
        "concatenation",
        "subset of a concatenation",
        "transform",
        "target transform",
        "transform of the other mode",
        "transform in evaluation",
        "transform that was frozen",
        "subset of a transform",
        "concatenation of a transform",
        "frozen transform",
        "transform for every mode",
        "target transform for every mode",
        "list of items",
    ],
)
def test_data_of_any_kind_gives_what_its_items_are(dataset):
    taken = tensors_of(dataset)  # before any item is read
    expected = item_by_item(dataset)
    assert_same(taken, expected)
    assert_same(tensors_of(dataset, stored=False), expected)


def test_classes_that_avalanche_renumbers_are_renumbered_here():
    x, y = columns(12)
    data = AvalancheDataset([TensorDataset(x, y)], data_attributes=[DataAttribute(y, "targets")])
    benchmark = nc_benchmark(
        data, data, 2, task_labels=True, seed=1, class_ids_from_zero_in_each_exp=True
    )
    for experience in benchmark.train_stream:
        taken = tensors_of(experience.dataset)  # before any item is read
        assert_same(taken, item_by_item(experience.dataset))
        assert set(taken[1].tolist()) == {0, 1}


def test_our_data_beside_that_of_others_is_read_item_by_item():
    dataset = ours(4).concat(of_tensors(3))
    assert_same(tensors_of(dataset), item_by_item(dataset))


def test_our_data_under_a_transform_is_read_item_by_item():
    dataset = AvalancheDataset(
        [ours(4, task=2)], transform_groups=TransformGroups({"train": double})
    )
    assert_same(tensors_of(dataset), item_by_item(dataset))
    assert_same(tensors_of(dataset, stored=False), item_by_item(dataset))


def test_data_without_task_labels_is_of_task_0():
    assert tensors_of(of_tensors(5, task=None))[2].tolist() == [0] * 5


def test_more_items_than_a_loaders_batch_keep_their_order():
    dataset = AvalancheDataset(
        [[(torch.tensor([float(i)]), i) for i in range(1100)]],
        data_attributes=[DataAttribute(range(1100), "targets")],
    )
    x, y, _ = tensors_of(dataset)
    assert x[:, 0].tolist() == y.tolist() == list(range(1100))


# --- bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "size"),
    [
        (ours(7), 7 * 6),  # as stored, one byte a pixel
        (ours(7).subset([1, 1, 4]), 3 * 6),
        (ours(7).concat(ours(2)), 9 * 6),
        (of_tensors(7), 7 * 6 * 4),
        (of_tensors(7).subset([0]), 6 * 4),
    ],
)
def test_bytes_are_those_of_the_inputs_as_tensors(dataset, size):
    assert bytes_of(dataset) == size
    x = tensors_of(dataset)[0]
    assert x.numel() * x.element_size() == size


def test_a_target_for_each_part_of_a_sample_is_kept_whole():
    """As in language modelling: to Avalanche such samples are of one class."""
    x, y = torch.rand(5, 3), torch.arange(15).reshape(5, 3)
    dataset = avalanche_dataset(TensorData(x, y, task=2))
    found = tensors_of(dataset)
    assert torch.equal(found[1], y)
    assert found[2].tolist() == [2] * 5
    assert dataset.targets.uniques == {0}
    assert torch.equal(dataset[3][1], y[3])
