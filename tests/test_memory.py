"""Memories against naive lists, iCaRL's own loop, and the distributions they promise."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from clplat.errors import InputError
from clplat.memory import POLICIES, Memory, herding, herding_keys, rank_within, shares
from tests.handed_over import through_a_file

label_lists = st.lists(st.integers(0, 5), min_size=1, max_size=40)


def samples(labels: list[int], first: int = 0) -> list[torch.Tensor]:
    """x, y, task in which every entry tells the sample's number and label."""
    y = torch.tensor(labels, dtype=torch.long)
    number = torch.arange(first, first + len(labels))
    return [torch.stack([number, y], 1), y, 7 * number]


def offer(memory: Memory, labels: list[int], sizes: list[int], keys: torch.Tensor | None = None):
    """Add the samples in calls of the given sizes (the last takes what is left)."""
    keys = torch.rand(len(labels)) if keys is None and memory.policy == "herding" else keys
    start = 0
    for size in [*sizes, len(labels)]:
        part = slice(start, start + size)
        if labels[part]:
            memory.add(*samples(labels[part], start), keys=None if keys is None else keys[part])
        start += size


def held_numbers(memory: Memory) -> set[int]:
    numbers = memory.all()[0][:, 0].tolist()
    assert len(set(numbers)) == len(numbers)  # no sample is held twice
    return set(numbers)


def quotas(labels: list[int], capacity: int) -> dict[int, int]:
    """Slots dealt one at a time, like cards, to the classes in the order of their appearance."""
    classes, quota = list(dict.fromkeys(labels)), Counter()
    for slot in range(capacity):
        quota[classes[slot % len(classes)]] += 1
    return quota


# --- the parts -------------------------------------------------------------------------------


@given(capacity=st.integers(0, 100), groups=st.integers(1, 20))
def test_shares_add_up_and_differ_by_one_at_most_the_first_being_larger(capacity, groups):
    given_out = shares(capacity, groups).tolist()
    assert sum(given_out) == capacity
    assert max(given_out) - min(given_out) <= 1
    assert given_out == sorted(given_out, reverse=True)


@given(
    pairs=st.lists(st.tuples(st.integers(0, 4), st.integers(-3, 3)), max_size=30),
)
def test_rank_within_equals_the_naive_count_of_smaller_keys(pairs):
    naive = [
        sum(g == group and (k, j) < (key, i) for j, (g, k) in enumerate(pairs))
        for i, (group, key) in enumerate(pairs)
    ]
    groups, keys = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    assert rank_within(groups.numpy(), keys.double().numpy()).tolist() == naive


def assert_icarls_choice(features: np.ndarray, chosen: list[int], rounding: float) -> None:
    """Algorithm 4 of Rebuffi et al. 2017, step by step; of equally good ones either will do."""
    mean, total = features.mean(0), np.zeros(features.shape[1])
    assert len(set(chosen)) == len(chosen)
    for k, choice in enumerate(chosen, start=1):
        free = [i for i in range(len(features)) if i not in chosen[: k - 1]]
        distance = {i: np.linalg.norm(mean - (features[i] + total) / k) for i in free}
        assert distance[choice] <= min(distance.values()) + rounding
        total += features[choice]


@given(
    size=st.integers(1, 12), width=st.integers(2, 5), count=st.integers(0, 14), seed=st.integers(0)
)
def test_each_sample_that_herding_chooses_is_icarls(size, width, count, seed):
    features = np.random.default_rng(seed).standard_normal((size, width))
    chosen = herding(torch.from_numpy(features), count).tolist()
    assert len(chosen) == min(count, size)
    assert_icarls_choice(features, chosen, 1e-14)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=20), seed=st.integers(0))
def test_herding_keys_are_icarls_ranks_in_the_class_and_infinite_beyond_the_count(labels, seed):
    features = np.random.default_rng(seed).standard_normal((len(labels), 4)).astype(np.float32)
    keys = herding_keys(torch.from_numpy(features), torch.tensor(labels), 3).numpy()
    for label in set(labels):
        of_class = np.array(labels) == label
        ranks, rows = keys[of_class], features[of_class].astype(np.float64)
        chosen = ranks.argsort(kind="stable")[:3].tolist()
        assert sorted(ranks.tolist()) == [0, 1, 2][: len(rows)] + [np.inf] * (len(rows) - 3)
        assert_icarls_choice(rows / np.linalg.norm(rows, axis=1, keepdims=True), chosen, 1e-6)


def test_herding_keys_do_not_depend_on_the_length_of_features():
    features, labels = torch.randn(9, 3, generator=torch.Generator().manual_seed(1)), [0, 1, 1] * 3
    lengths = torch.linspace(0.1, 30, 9)[:, None]
    one, other = (herding_keys(f, torch.tensor(labels), 9) for f in (features, features * lengths))
    assert one.tolist() == other.tolist()


# --- which samples stay ----------------------------------------------------------------------


@given(labels=label_lists, sizes=st.lists(st.integers(1, 9)), capacity=st.integers(1, 12))
def test_ring_holds_the_latest_of_each_class_however_they_came(labels, sizes, capacity):
    memory = Memory(capacity, "ring")
    offer(memory, labels, sizes)
    naive = set()
    for label, quota in quotas(labels, capacity).items():
        of_class = [i for i, y in enumerate(labels) if y == label]
        naive |= set(of_class[-quota:])
    assert held_numbers(memory) == naive


@given(
    labels=label_lists,
    sizes=st.lists(st.integers(1, 9)),
    capacity=st.integers(1, 12),
    seed=st.integers(0),
)
def test_herding_holds_the_first_of_each_class_however_they_came(labels, sizes, capacity, seed):
    features = np.random.default_rng(seed).standard_normal((len(labels), 5)).astype(np.float32)
    keys = herding_keys(torch.from_numpy(features), torch.tensor(labels), capacity)
    memory = Memory(capacity, "herding")
    offer(memory, labels, sizes, keys)
    quota = quotas(labels, capacity)
    naive = {i for i, (y, key) in enumerate(zip(labels, keys, strict=True)) if key < quota[y]}
    assert held_numbers(memory) == naive


@pytest.mark.parametrize("policy", POLICIES)
@given(labels=label_lists, sizes=st.lists(st.integers(1, 9)), capacity=st.integers(1, 12))
def test_rows_stay_together_and_slots_are_shared_equally(policy, labels, sizes, capacity):
    memory = Memory(capacity, policy)
    offer(memory, labels, sizes)
    x, y, task = memory.all()
    assert x[:, 1].tolist() == y.tolist()
    assert [labels[i] for i in x[:, 0].tolist()] == y.tolist()
    assert (7 * x[:, 0]).tolist() == task.tolist()
    assert len(memory) == len(held_numbers(memory)) <= capacity
    if policy == "reservoir":
        assert len(memory) == min(capacity, len(labels))
        return
    seen, quota = Counter(labels), quotas(labels, capacity)
    assert Counter(y.tolist()) == {c: min(seen[c], quota[c]) for c in quota}


@pytest.mark.parametrize("policy", POLICIES)
@given(capacity=st.integers(1, 30), classes=st.integers(1, 8), seed=st.integers(0, 2**32 - 1))
def test_classes_with_enough_samples_hold_equal_shares_to_within_one(
    policy, capacity, classes, seed
):
    labels = np.random.default_rng(seed).permutation(np.repeat(range(classes), capacity)).tolist()
    memory = Memory(capacity, policy)
    offer(memory, labels, [5, 1, 17])
    assert len(memory) == capacity
    if policy != "reservoir":
        counts = torch.bincount(memory.all()[1], minlength=classes)
        assert int(counts.max() - counts.min()) <= 1


def inclusion_statistic(times_held: np.ndarray, trials: int, of: int) -> float:
    """Chi-square (len - 1 degrees) of how often each sample was among the `of` held.

    For a uniform draw without replacement the indicators have variance p(1 - p) and covariance
    -p(1 - p)/(N - 1); scaled so, the sum of squares is chi-square for many trials.
    """
    size, share = len(times_held), of / len(times_held)
    squares = ((times_held - trials * share) ** 2).sum() / (trials * share * (1 - share))
    return squares * (size - 1) / size


@pytest.mark.parametrize("sizes", [[], [1] * 18, [3, 1, 7]])
@pytest.mark.parametrize("policy", ["reservoir", "class_balanced"])
def test_every_sample_is_held_equally_often_whether_offered_in_one_call_or_many(policy, sizes):
    torch.manual_seed(0)
    labels, trials = [0, 1, 0, 0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 0, 1], 300
    times_held = np.zeros(len(labels))
    for _ in range(trials):
        memory = Memory(6, policy)
        offer(memory, labels, sizes)
        times_held[memory.all()[0][:, 0].numpy()] += 1
    groups = [[0] * len(labels)] if policy == "reservoir" else [labels]
    for group in set(groups[0]):
        of_group = times_held[np.array(groups[0]) == group]
        of = 6 if policy == "reservoir" else 3
        statistic = inclusion_statistic(of_group, trials, of)
        assert 1e-4 < chi2.sf(statistic, len(of_group) - 1) < 1 - 1e-4


def test_class_balanced_is_uniform_within_a_class_that_lost_slots_to_later_ones():
    torch.manual_seed(0)
    trials, times_held = 300, np.zeros(10)
    for _ in range(trials):
        memory = Memory(6, "class_balanced")
        memory.add(*samples([0] * 10))
        memory.add(*samples([1] * 4 + [2] * 4, first=10))
        numbers = memory.all()[0][:, 0].numpy()
        times_held[numbers[numbers < 10]] += 1
    assert 1e-4 < chi2.sf(inclusion_statistic(times_held, trials, 2), 9) < 1 - 1e-4


@pytest.mark.parametrize("policy", POLICIES)
def test_offering_nothing_changes_nothing(policy):
    keys = torch.empty(0) if policy == "herding" else None
    memory = Memory(3, policy)
    memory.add(*samples([]), keys=keys)
    assert len(memory) == 0
    offer(memory, [0, 1, 0, 0], [])
    before = held_numbers(memory)
    memory.add(*samples([]), keys=keys)
    assert held_numbers(memory) == before


# --- drawing ---------------------------------------------------------------------------------


@given(labels=label_lists, capacity=st.integers(1, 12), count=st.integers(0, 20))
def test_sample_draws_without_replacement_from_what_is_held(labels, capacity, count):
    memory = Memory(capacity, "class_balanced")
    offer(memory, labels, [4])
    x, y, task = memory.sample(count)
    drawn = x[:, 0].tolist()
    assert len(drawn) == len(set(drawn)) == min(count, len(memory))
    assert set(drawn) <= held_numbers(memory)
    assert x[:, 1].tolist() == y.tolist()
    assert (7 * x[:, 0]).tolist() == task.tolist()


def test_sample_draws_every_held_sample_equally_often():
    torch.manual_seed(0)
    memory = Memory(12, "ring")
    offer(memory, [0] * 5 + [1] * 30, [])  # 5 + 6 of 12 slots taken
    times_drawn = np.zeros(35)
    for _ in range(1000):
        times_drawn[memory.sample(4)[0][:, 0].numpy()] += 1
    held = sorted(held_numbers(memory))
    assert len(held) == 11
    assert 1e-4 < chi2.sf(inclusion_statistic(times_drawn[held], 1000, 4), 10) < 1 - 1e-4


def test_an_empty_memory_gives_nothing():
    memory = Memory(3)
    assert (memory.sample(2), memory.all(), len(memory), memory.bytes) == ([], [], 0, 0)


# --- what is kept ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float64]
)
def test_samples_keep_their_dtype_and_value_and_the_bytes_are_those_of_all_slots(dtype):
    x = torch.arange(5 * 6).reshape(5, 2, 3).to(dtype)
    memory = Memory(7, "ring")
    memory.add(x, torch.zeros(5, dtype=torch.long))
    assert memory.all()[0].dtype == dtype
    assert torch.equal(memory.all()[0], x)
    assert memory.bytes == 7 * (6 * dtype.itemsize + 8)


def test_a_memory_holds_copies_without_a_graph():
    x = torch.ones(3, 2, requires_grad=True)
    memory = Memory(3)
    memory.add(x * 2, torch.zeros(3, dtype=torch.long))
    with torch.no_grad():
        x.zero_()
    assert torch.equal(memory.all()[0], torch.full((3, 2), 2.0))
    assert not memory.all()[0].requires_grad


# --- saving ----------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_memory_that_was_saved_and_loaded_goes_on_identically(policy):
    torch.manual_seed(0)
    memory, loaded = Memory(5, policy), Memory(5, policy)
    labels = [2, 0, 0, 2, 2, 0, 1, 1, 0]
    offer(memory, labels[:6], [4])
    loaded.load_state_dict(through_a_file(memory.state_dict()))
    keys, went_on = torch.rand(3), []
    for one in (memory, loaded):
        torch.manual_seed(1)
        one.add(*samples(labels[6:], first=6), keys=keys if policy == "herding" else None)
        went_on.append([*one.all(), *one.sample(3)])
    for a, b in zip(*went_on, strict=True):
        assert torch.equal(a, b)
    assert memory.offered == loaded.offered == 9


@pytest.mark.parametrize("policy", POLICIES)
def test_a_loaded_memory_shares_nothing_with_the_one_it_came_from(policy):
    memory, loaded = Memory(4, policy), Memory(4, policy)
    offer(memory, [0, 1, 0, 1, 0], [])
    loaded.load_state_dict(memory.state_dict())
    before = [column.clone() for column in memory.all()]
    keys = -torch.ones(4) if policy == "herding" else None
    loaded.add(*samples([2, 3, 2, 3], first=5), keys=keys)
    for column, unchanged in zip(memory.all(), before, strict=True):
        assert torch.equal(column, unchanged)
    assert memory.classes == [0, 1]


def test_loading_into_another_capacity_names_both():
    with pytest.raises(ValueError, match="this memory's capacity is 4, the saved one's 5"):
        Memory(4).load_state_dict(Memory(5).state_dict())


# --- bad input -------------------------------------------------------------------------------


def test_an_unknown_policy_is_refused_and_the_known_ones_are_named():
    with pytest.raises(InputError) as error:
        Memory(5, "fifo")
    assert str(error.value) == (
        "strategy.memory=fifo: no such policy; choose one of reservoir, class_balanced, ring, "
        "herding"
    )


@pytest.mark.parametrize("capacity", [0, -3])
def test_a_capacity_below_one_is_refused(capacity):
    with pytest.raises(InputError) as error:
        Memory(capacity)
    assert str(error.value) == (
        f"strategy.capacity={capacity}: a memory holds at least 1 sample; raise it"
    )


def test_herding_asks_for_keys():
    with pytest.raises(ValueError, match="a herding memory needs keys: herding ranks within each"):
        Memory(5, "herding").add(*samples([0, 1]))


def test_samples_with_several_targets_are_held_as_one_class():
    memory = Memory(4, "class_balanced")
    x, y = torch.arange(6.0)[:, None], torch.arange(18).reshape(6, 3)
    memory.add(x, y, torch.zeros(6, dtype=torch.long))
    held_x, held_y, _ = memory.all()
    assert len(held_x) == 4
    assert torch.equal(held_y, y[held_x[:, 0].long()])
