"""Streams without boundaries: what order the samples come in, and where rows are taken."""

import pytest
import torch

from clplat.data import tensors_of
from clplat.errors import InputError
from scenarios.online import ORDERS, blurry_order, gaussian_order, online, split_order
from scenarios.sources import digits


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stream(**settings):
    scenario = online("digits", **settings)
    x, y, task = tensors_of(scenario.train_stream[0].dataset)
    assert not task.any()
    return scenario, x, y


def groups_of(scenario, y):
    """The test experience that each training sample's class belongs to."""
    of_class = torch.empty(10, dtype=torch.long)
    for k, experience in enumerate(scenario.test_stream):
        of_class[list(experience.classes_in_this_experience)] = k
    return of_class[y]


def test_split_order_goes_from_part_to_part_and_shuffles_each():
    part = torch.tensor([1, 0, 1, 0, 0, 2] * 20)
    order = split_order(part, generator())
    assert torch.equal(part[order], part.sort().values)
    assert torch.equal(order.sort().values, torch.arange(120))
    within = order[:60]
    assert not torch.equal(within, within.sort().values)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_blurry_order_moves_a_share_of_each_part_evenly_to_the_others(share):
    part = torch.arange(4).repeat_interleave(3000)
    order, now = blurry_order(part, 4, share, generator())
    assert torch.equal(order.sort().values, torch.arange(len(part)))
    assert torch.equal(now, now.sort().values)
    came_from = torch.zeros(4, 4)
    came_from.index_put_((now, part[order]), torch.ones(len(part)), accumulate=True)
    expected = torch.full((4, 4), 1000 * share).fill_diagonal_(3000 * (1 - share))
    torch.testing.assert_close(came_from, expected, rtol=0, atol=90)  # three deviations


def test_gaussian_order_lets_each_class_come_and_go_around_a_moment_of_its_own():
    label = torch.arange(5).repeat_interleave(2000)
    places = {}
    for deviation in (0.001, 0.1, 50.0):
        order = gaussian_order(label, 5, deviation, generator())
        assert torch.equal(order.sort().values, torch.arange(10000))
        place = torch.empty(10000)
        place[order] = torch.arange(10000) / 10000
        places[deviation] = place.view(5, 2000)
    torch.testing.assert_close(
        places[0.001].mean(1), 0.1 + 0.2 * torch.arange(5), rtol=0, atol=0.01
    )
    torch.testing.assert_close(places[50.0].mean(1), torch.full((5,), 0.5), rtol=0, atol=0.03)
    smooth = places[0.1]
    assert torch.equal(smooth.mean(1), smooth.mean(1).sort().values)
    assert smooth[0].max() > smooth[1].median()  # neighbours overlap
    assert smooth[0].max() < smooth[4].min() + 0.05  # the first and the last hardly do
    middle = (smooth[2] - 0.5) / smooth[2].std()
    assert (middle.abs() < 1).float().mean() == pytest.approx(0.68, abs=0.04)  # as a normal's


@pytest.mark.parametrize("order", ORDERS)
def test_every_training_sample_comes_once(order):
    source = digits()
    scenario, x, y = stream(order=order)
    assert len(scenario.train_stream) == 1
    x_given, y_given = source.train
    back = torch.tensor(scenario.class_order)[y]

    def sorted_rows(x, y):
        rows = torch.cat([x.flatten(1).long(), y[:, None].long()], 1).tolist()
        return sorted(rows)

    assert sorted_rows(x, back) == sorted_rows(x_given, y_given)


@pytest.mark.parametrize("order", ORDERS)
def test_marks_end_with_the_stream_and_a_test_experience_counts_from_its_first_sample(order):
    scenario, _, y = stream(order=order, experiences=3)
    assert len(scenario.test_stream) == len(scenario.marks) == len(scenario.begins) == 3
    assert scenario.marks[-1] == len(y)
    assert list(scenario.marks) == sorted(scenario.marks)
    group = groups_of(scenario, y)
    for k, begin in enumerate(scenario.begins):
        assert group[begin - 1] == k
        assert not (group[: begin - 1] == k).any()


def test_a_split_stream_takes_a_row_where_a_group_ends():
    scenario, _, y = stream(order="split")
    group = groups_of(scenario, y)
    assert torch.equal(group, group.sort().values)
    assert list(scenario.marks) == group.bincount().cumsum(0).tolist()
    assert list(scenario.begins) == [1, *(mark + 1 for mark in scenario.marks[:-1])]


def test_orders_mix_the_groups_more_and_more():
    """The share of neighbours in the stream that are of one group."""
    shares = []
    for order in ORDERS:
        scenario, _, y = stream(order=order)
        group = groups_of(scenario, y)
        shares.append(float((group[1:] == group[:-1]).float().mean()))
    split, blurry, gaussian, random = shares
    assert split > 0.99 > blurry > 0.7 > gaussian > 0.3 > random > 0.1


def test_the_seed_sets_classes_and_order():
    (one, x, _), (_, same, _), (other, different, _) = (stream(seed=s) for s in (1, 1, 2))
    assert torch.equal(x, same)
    assert not torch.equal(x, different)
    assert one.class_order != other.class_order
    assert stream(shuffle_classes=False)[0].class_order == list(range(10))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": "sorted"}, "scenario.order=sorted: expected one of split, blurry, gaussian, ra"),
        ({"blur": 1.5}, r"scenario.blur=1.5: a share of a group is in 0..1; choose 0.1"),
        ({"deviation": 0.0}, "scenario.deviation=0.0: expected more than 0, a share of the stream"),
        ({"task_labels": True}, "scenario.task_labels=true: a stream without boundaries has no"),
        ({"experiences": 11}, "scenario.experiences=11: more experiences than the 10 classes"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        online("digits", **settings)
