"""N-parity and N-delayed match-to-sample: ever longer memory (Khajehabdollahi et al. 2024)."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clplat.backbones.levels import CURRICULA, trained_levels
from clplat.drawn import DrawnData
from clplat.errors import InputError, at_least
from clplat.scenario import Scenario
from scenarios.streams import stream_of

TASKS = ("parity", "match")


def parities(bits: Tensor, lengths: Sequence[int]) -> Tensor:
    """Of bits (B, T), whether each of the last N has an odd sum, for every N: (B, len(lengths))."""
    odd = bits.flip(1).cumsum(1)
    return odd[:, [length - 1 for length in lengths]].long() % 2


def matches(bits: Tensor, lengths: Sequence[int]) -> Tensor:
    """Of bits (B, T), whether the N-th from the end is the last one's equal: (B, len(lengths))."""
    return (bits[:, [-length for length in lengths]] == bits[:, -1:]).long()


def draw_strings(
    task: str, lengths: Sequence[int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Bits (count, T, 1) as floats, and the labels (count, len(lengths)) for every N.

    T is drawn once, from N + 2 to 4 N + 1 of the largest N. A string's bits are 1 with a chance
    that is uniform in 0..1 for parity, so that sums are not all alike, and a half for matching.
    """
    device, longest = generator.device, max(lengths)
    time = int(torch.randint(longest + 2, 4 * longest + 2, (), generator=generator, device=device))
    chance = torch.rand(count, 1, generator=generator, device=device) if task == "parity" else 0.5
    bits = (torch.rand(count, time, generator=generator, device=device) < chance).float()
    labels = parities(bits, lengths) if task == "parity" else matches(bits, lengths)
    return bits.unsqueeze(-1), labels


def summed_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """Of logits (B, heads, 2) and labels (B, heads): the mean over samples, summed over heads."""
    losses = cross_entropy(output.flatten(0, 1), target.flatten(), reduction="none")
    return losses.view(target.shape).mean(0).sum()


def accuracy(output: Tensor, target: Tensor) -> Tensor:
    """The share of heads that are right, of logits (B, heads, 2) and labels (B, heads)."""
    return (output.argmax(2) == target).float().mean(1)


def curriculum(
    task: str = "parity",
    curriculum: str = "multi_head",
    shortest: int = 2,
    experiences: int = 9,
    window: int = 5,
    samples: int = 25600,
    test_samples: int = 6400,
    task_labels: bool = True,
    seed: int = 0,
) -> Scenario:
    """Experience k asks for N = shortest + k, with fresh strings in every batch.

    Tasks: "parity" of the last N bits, or "match": is the N-th bit from the end the last one's
    equal. Curricula: "single_head" trains on N alone, "multi_head" on all N so far at once,
    "sliding_window" on the latest `window`, and "none" is one experience of the longest N alone.
    The labels of a batch are one column for each N trained; test experience k has that of its own
    N. `samples` are those of an epoch, `seed` draws the test strings.
    """
    _check(task, curriculum, shortest, experiences, window, samples, test_samples, task_labels)
    levels = [experiences - 1] if curriculum == "none" else range(experiences)
    train, test = [], []
    for k, level in enumerate(levels):
        trained = [shortest + other for other in trained_levels(curriculum, level, window)]
        train.append(DrawnData(partial(draw_strings, task, trained), samples, k, seed))
        own = [shortest + level]
        test.append(DrawnData(partial(draw_strings, task, own), test_samples, k, seed + 1 + k))
    return Scenario(
        [stream_of("train", train), stream_of("test", test)],
        n_classes=2,
        input_shape=(4 * (shortest + experiences), 1),
        task_labels=True,
        score=accuracy,
        criterion=summed_cross_entropy,
        head="levels",
    )


def _check(
    task: str,
    curriculum: str,
    shortest: int,
    experiences: int,
    window: int,
    samples: int,
    test_samples: int,
    task_labels: bool,
) -> None:
    for key, value, choices in (("task", task, TASKS), ("curriculum", curriculum, CURRICULA)):
        if value not in choices:
            raise InputError(f"scenario.{key}={value}: expected one of {', '.join(choices)}")
    at_least("scenario", 2, shortest=shortest)
    sizes = {"window": window, "samples": samples, "test_samples": test_samples}
    at_least("scenario", 1, experiences=experiences, **sizes)
    if not task_labels:
        raise InputError(
            "scenario.task_labels=false: each N has a head of its own, or of its time; set "
            "scenario.task_labels=true"
        )
