"""Every sample once an epoch, in an order that its own generator alone decides."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from clplat.batches import (
    Batches,
    experience_batches,
    make_batches,
    prepared,
    stored_inputs,
)
from clplat.data import TensorData, avalanche_dataset
from clplat.prepare import Prepare

CPU = torch.device("cpu")
PREPARE = Prepare(mean=(0.25,), std=(0.5,), flip=True)


def columns(size: int) -> list[torch.Tensor]:
    number = torch.arange(size)
    return [torch.stack([number, -number], 1), number % 3, number * 2]


def numbers(batches) -> list[int]:
    """The samples of an epoch, each batch being checked for rows that went astray."""
    seen = []
    for x, y, task in batches:
        assert (-x[:, 0]).tolist() == x[:, 1].tolist()
        assert (x[:, 0] % 3).tolist() == y.tolist()
        assert (x[:, 0] * 2).tolist() == task.tolist()
        seen += x[:, 0].tolist()
    return seen


def dataset(size: int):
    x = (torch.arange(size)[:, None] + torch.arange(6)).to(torch.uint8).reshape(size, 1, 2, 3)
    return avalanche_dataset(TensorData(x, torch.arange(size), 1, PREPARE))


def in_label_order(batches) -> list[torch.Tensor]:
    """All columns of an epoch; labels tell the samples apart."""
    every = [torch.cat(column) for column in zip(*map(list, batches), strict=True)]
    return [column[every[1].argsort()] for column in every]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# --- resident batches ------------------------------------------------------------------------


@given(size=st.integers(0, 40), batch_size=st.integers(1, 12), shuffled=st.booleans())
def test_each_epoch_has_every_sample_once_in_full_batches_but_the_last(size, batch_size, shuffled):
    batches = Batches(columns(size), batch_size, generator() if shuffled else None)
    for _ in range(2):
        assert sorted(numbers(batches)) == list(range(size))
    sizes = [len(y) for _, y, _ in batches]
    assert len(batches) == len(sizes)
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert all(0 < s <= batch_size for s in sizes)


@given(size=st.integers(0, 40), batch_size=st.integers(1, 12), shuffled=st.booleans())
def test_drop_last_leaves_only_full_batches_and_loses_less_than_one(size, batch_size, shuffled):
    batches = Batches(columns(size), batch_size, generator() if shuffled else None, drop_last=True)
    seen, sizes = numbers(batches), [len(y) for _, y, _ in batches]
    assert sizes == [batch_size] * (size // batch_size)
    assert len(batches) == len(sizes)
    assert len(set(seen)) == len(seen) == size - size % batch_size


def test_without_a_generator_samples_come_in_their_order():
    assert numbers(Batches(columns(11), 4)) == list(range(11))


def test_the_same_seed_gives_the_same_orders_and_another_seed_others():
    def two_epochs(seed: int) -> list[list[int]]:
        batches = Batches(columns(30), 7, generator(seed))
        return [numbers(batches), numbers(batches)]

    assert two_epochs(3) == two_epochs(3)
    assert two_epochs(3)[0] != two_epochs(4)[0]
    assert two_epochs(3)[0] != two_epochs(3)[1]  # each epoch has an order of its own


def test_the_order_does_not_depend_on_the_batch_size():
    assert numbers(Batches(columns(30), 7, generator())) == numbers(
        Batches(columns(30), 4, generator())
    )


def test_drawing_an_order_leaves_torchs_own_generator_alone():
    before = torch.get_rng_state()
    numbers(Batches(columns(30), 7, generator()))
    assert torch.equal(torch.get_rng_state(), before)


# --- resident or loaded ----------------------------------------------------------------------


@pytest.mark.parametrize(("spare", "kind"), [(0, Batches), (-1, DataLoader)])
def test_data_stays_resident_up_to_the_limit_and_is_loaded_beyond_it(spare, kind):
    assert isinstance(make_batches(dataset(7), 3, CPU, resident_bytes=7 * 6 + spare), kind)


@pytest.mark.parametrize("order", [None, 5])
def test_a_loader_gives_the_same_samples_prepared(order):
    resident, loaded = (
        make_batches(dataset(11), 4, CPU, order and generator(order), resident_bytes=limit)
        for limit in (float("inf"), 0)
    )
    for a, b in zip(in_label_order(resident), in_label_order(loaded), strict=True):
        assert torch.equal(PREPARE(a), b)


@pytest.mark.parametrize(("drop_last", "sizes"), [(False, [4, 4, 3]), (True, [4, 4])])
@pytest.mark.parametrize("limit", [float("inf"), 0])
def test_resident_or_loaded_batches_have_the_same_sizes(limit, drop_last, sizes):
    batches = make_batches(dataset(11), 4, CPU, None, limit, drop_last=drop_last)
    assert [len(y) for _, y, _ in batches] == sizes
    assert len(batches) == len(sizes)


def test_a_loaders_order_follows_the_generator():
    def labels(seed: int) -> list[int]:
        batches = make_batches(dataset(30), 7, CPU, order=generator(seed), resident_bytes=0)
        return torch.cat([y for _, y, _ in batches]).tolist()

    assert labels(1) == labels(1)
    assert labels(1) != labels(2)
    assert sorted(labels(1)) == list(range(30))


# --- what strategies read --------------------------------------------------------------------


def test_in_our_loop_strategies_read_inputs_as_stored_and_prepare_them():
    x = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3)
    strategy = SimpleNamespace(stored_x=x, mb_x=PREPARE(x), prepare=PREPARE)
    assert stored_inputs(strategy) is x
    assert torch.equal(prepared(strategy, x, training=False), PREPARE(x))


def test_preparing_for_training_augments():
    x = torch.arange(6, dtype=torch.uint8).reshape(1, 1, 2, 3).expand(64, -1, -1, -1)
    strategy = SimpleNamespace(prepare=PREPARE)
    assert len(prepared(strategy, x, training=False).unique(dim=0)) == 1
    assert len(prepared(strategy, x, training=True).unique(dim=0)) == 2


def test_in_avalanches_loop_inputs_are_the_batchs_and_ready():
    x = torch.rand(2, 1, 2, 3)
    strategy = SimpleNamespace(mb_x=x)
    assert stored_inputs(strategy) is x
    assert prepared(strategy, x, training=True) is x


def strategy_with(**attributes) -> SimpleNamespace:
    experience = SimpleNamespace(dataset=dataset(7))
    return SimpleNamespace(experience=experience, eval_mb_size=3, device="cpu", **attributes)


def test_an_experiences_batches_are_stored_samples_in_order_in_our_loop():
    strategy = strategy_with(make_batches=lambda data, size: make_batches(data, size, CPU))
    batches = list(experience_batches(strategy))
    assert [y.tolist() for _, y, _ in batches] == [[0, 1, 2], [3, 4, 5], [6]]
    x = torch.cat([x for x, _, _ in batches])
    assert torch.equal(x, dataset(7)._flat_data._datasets[0].columns[0])


def test_an_experiences_batches_are_prepared_samples_in_order_in_avalanches_loop():
    batches = list(experience_batches(strategy_with(), batch_size=5))
    assert [y.tolist() for _, y, _ in batches] == [[0, 1, 2, 3, 4], [5, 6]]
    x = torch.cat([x for x, _, _ in batches])
    assert torch.equal(x, PREPARE(dataset(7)._flat_data._datasets[0].columns[0]))
    assert {task for _, _, tasks in batches for task in tasks.tolist()} == {1}
