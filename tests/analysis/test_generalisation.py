"""Longer strings, whose labels hold, and read-outs that are fitted anew."""

import pytest
import torch

from clplat.analysis.generalisation import (
    decoded_levels,
    decoding_accuracy,
    lengthened,
    mean_score,
)
from scenarios.curriculum import draw_strings, matches, parities


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed))


@pytest.mark.parametrize(("task", "label"), [("parity", parities), ("match", matches)])
def test_longer_strings_keep_their_labels_and_their_share_of_ones(task, label):
    x, y = draw_strings(task, [7], 300, generator())
    longer = lengthened(x, 400, generator(1))
    assert longer.shape == (300, 400, 1)
    assert torch.equal(longer[:, -x.shape[1] :], x)
    assert torch.equal(label(longer[:, :, 0], [7]), y)
    added = longer[:, : -x.shape[1]].mean((1, 2))
    torch.testing.assert_close(added, x.mean((1, 2)), rtol=0, atol=0.12)  # over four deviations


def test_steps_are_taken_whole_from_each_string_and_evenly():
    x = torch.arange(2 * 5 * 3).view(2, 5, 3).float()
    longer = lengthened(x, 2005, generator())
    for own, string in zip(x, longer, strict=True):
        counts = [int((string == step).all(1).sum()) for step in own]
        assert sum(counts) == 2005
        assert max(counts) - min(counts) < 110
    assert not torch.equal(longer[0], longer[1] - 15)  # each has draws of its own


def test_as_long_as_before_is_the_same_and_shorter_is_refused():
    x = normal(2, 5, 1)
    assert torch.equal(lengthened(x, 5, generator()), x)
    with pytest.raises(ValueError, match="time=4; expected at least the 5 steps of the strings"):
        lengthened(x, 4, generator())


def test_a_mean_score_counts_samples_not_batches():
    class Model(torch.nn.Module):
        def forward(self, x, task):
            return x + task[:, None]

    batches = [
        [torch.ones(3, 1), torch.tensor([1.0, 2, 2]), torch.zeros(3)],
        [torch.zeros(1, 1), torch.tensor([4.0]), torch.full((1,), 4.0)],
    ]
    score = mean_score(Model(), batches, lambda output, target: output[:, 0] == target)
    assert score == 2 / 4


def test_what_is_linear_is_decoded_at_any_scale():
    x = normal(400, 5) * torch.tensor([1e3, 1, 1e-3, 1, 1]) + 100
    margin = (x[:, 0] - 100) / 1e3 - 1e3 * (x[:, 2] - 100)
    assert decoding_accuracy(x.double(), (margin > 0).long()) > 0.95


@pytest.mark.parametrize("seed", range(3))
def test_what_is_not_there_is_not_decoded(seed):
    x = normal(2000, 3, seed=seed)
    either = ((x[:, 0] > 0) ^ (x[:, 1] > 0)).long()  # no line parts it
    drawn = torch.randint(2, (2000,), generator=generator(seed + 9))
    for labels in (either, drawn):
        assert decoding_accuracy(x, labels) == pytest.approx(0.5, abs=0.06)


def test_it_is_measured_on_samples_that_it_was_not_fitted_to():
    x, labels = normal(40, 60), torch.randint(2, (40,), generator=generator(3))
    assert decoding_accuracy(x, labels) < 0.9  # the fitted ones could all be right
    labels = torch.arange(40) % 2 * torch.arange(40).ge(10)  # the even ones have 0 alone
    assert decoding_accuracy(x, labels) == 5 / 20


def test_constant_features_are_borne():
    x, labels = normal(200, 2), (normal(200, 2)[:, 1] > 0).long()
    x[:, 0] = 7
    assert decoding_accuracy(x, labels) > 0.9


def test_each_level_has_a_read_out_of_its_own():
    levels = []
    for seed, label in ((0, lambda x: x[:, 0]), (1, lambda x: 1 - x[:, 1]), (2, lambda x: x[:, 2])):
        drawn = [torch.randint(2, (150, 3), generator=generator(seed + 5 * k)) for k in range(3)]
        levels.append([[x, label(x)[:, None], torch.zeros(150)] for x in drawn])
    assert decoded_levels(lambda x: x[:, :2].float(), levels)[:2] == [1, 1]
    assert decoded_levels(lambda x: x[:, :2].float(), levels)[2] < 0.65
    assert decoded_levels(lambda x: x.float(), levels) == [1, 1, 1]
