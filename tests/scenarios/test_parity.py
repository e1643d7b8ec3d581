"""Bit strings that grow: what they hold, and that the labels are their parity."""

import pytest
import torch

from clplat.data import tensors_of
from clplat.errors import InputError
from scenarios.parity import PAD, bit_strings, parity


def streams(**settings):
    scenario = parity(**{"experiences": 4, "samples": 300, "test_samples": 50, **settings})
    return [
        [tensors_of(experience.dataset)[:2] for experience in stream]
        for stream in (scenario.train_stream, scenario.test_stream)
    ]


def test_a_label_says_whether_the_ones_are_odd():
    for stream in streams():
        for x, y in stream:
            assert set(x.unique().tolist()) == {0.0, 1.0, 2.0}
            assert y.tolist() == [row.count(1) % 2 for row in x.int().tolist()]


def test_each_experience_allows_twice_as_many_bits():
    train, test = streams()
    for k, ((x, _), (tested, _)) in enumerate(zip(train, test, strict=True)):
        length = 2 ** (k + 1)
        assert x.shape == (300, 24)
        assert tested.shape == (50, 24)
        for tokens in (x, tested):
            assert (tokens[:, : 24 - length] == PAD).all()
            # Fair coins at every place that the length allows: none is ever constant.
            assert (tokens[:, 24 - length :] == 1).any(0).all()
            assert (tokens[:, 24 - length :] == 0).any(0).all()
        assert (tested[:, 24 - length :] != PAD).all()


def test_training_strings_are_of_all_lengths_up_to_the_longest():
    bits, _ = bit_strings(torch.tensor([1, 2, 16] * 200), 16, torch.Generator().manual_seed(0))
    one, two, sixteen = bits.view(200, 3, 16).unbind(1)
    assert (one[:, :15] == PAD).all()
    assert (two[:, :14] == PAD).all()
    assert not (two[:, 14:] == PAD).any()
    torch.testing.assert_close(sixteen.mean(0), torch.full((16,), 0.5), rtol=0, atol=0.15)


def test_the_seed_draws_the_bits():
    (one, *_), _ = streams(seed=1)
    (same, *_), _ = streams(seed=1)
    (other, *_), _ = streams(seed=2)
    assert torch.equal(one[0], same[0])
    assert not torch.equal(one[0], other[0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"experiences": 0}, "scenario.experiences=0: expected 1 to 12"),
        ({"experiences": 13}, "scenario.experiences=13: expected 1 to 12"),
        ({"samples": 0}, "scenario.samples=0: expected at least 1"),
        ({"test_samples": -1}, "scenario.test_samples=-1: expected at least 1"),
    ],
)
def test_bad_settings_are_told(settings, message):
    with pytest.raises(InputError, match=message):
        parity(**settings)
