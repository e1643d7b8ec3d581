"""Associative recall and passkey retrieval: what a layer forgets inside one sequence."""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from clplat.data import TensorData
from clplat.drawn import DrawnData
from clplat.errors import InputError, at_least
from clplat.scenario import Scenario
from scenarios.positions import check_positions
from scenarios.streams import stream_of

FILLER = 0  # the token; keys follow it, and values follow them
UNASKED = -1  # the target of positions where nothing is asked


def draw_segments(
    count: int,
    segments: int,
    pairs: int,
    filler: int,
    keys: int,
    values: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (count, segments, 2 pairs + filler), keys and values (count, segments, pairs).

    A segment has its pairs, a key token and then a value token, at random places among filler
    tokens. No key comes twice in a sequence; values are drawn evenly, each by itself. Pairs are
    listed in an order that says nothing of their places. Keys are from 0 to `keys` - 1, values
    from 0 to `values` - 1, tokens numbered behind FILLER.
    """
    shape, device = (count, segments, pairs), generator.device
    key = torch.rand(count, keys, generator=generator, device=device).argsort(1)
    key = key[:, : segments * pairs].reshape(shape)
    value = torch.randint(values, shape, generator=generator, device=device)
    # A pair counts as one item here, and then takes one more token than a filler does.
    items = torch.rand(count, segments, pairs + filler, generator=generator, device=device)
    item = items.argsort(2)[:, :, :pairs]
    place = item + (item.unsqueeze(3) > item.unsqueeze(2)).sum(3)
    tokens = torch.full((count, segments, 2 * pairs + filler), FILLER, device=device)
    tokens.scatter_(2, place, 1 + key).scatter_(2, place + 1, 1 + keys + value)
    return tokens, key, value


def ask(read: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """What was read (B, T) and then the keys (B, Q) as queries; their values are the targets.

    x (B, T + Q) as floats; y (B, T + Q) with a query's value at its place and UNASKED elsewhere.
    """
    x = torch.cat([read, 1 + key], 1).float()
    return x, torch.cat([torch.full_like(read, UNASKED), value], 1)


def draw_sequences(
    segments: int,
    pairs: int,
    filler: int,
    keys: int,
    values: int,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """For training: the first 1 to `segments`, drawn once, then all their keys in any order."""
    device = generator.device
    written = int(torch.randint(1, segments + 1, (), generator=generator, device=device))
    drawn = draw_segments(count, written, pairs, filler, keys, values, generator)
    read, key, value = (part.flatten(1) for part in drawn)
    order = torch.rand(key.shape, generator=generator, device=device).argsort(1)
    return ask(read, key.gather(1, order), value.gather(1, order))


def asked_cross_entropy(output: Tensor, target: Tensor) -> Tensor:
    """The mean over what is asked, of logits (B, T, values) and targets (B, T)."""
    check_positions(output, target)
    return cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=UNASKED)


def share_recalled(output: Tensor, target: Tensor) -> Tensor:
    """Of each sample the share of what is asked that is right (B,)."""
    check_positions(output, target)
    asked = target != UNASKED
    return ((output.argmax(2) == target) & asked).sum(1) / asked.sum(1)


def recall(
    experiences: int = 8,
    pairs: int = 4,
    filler: int = 0,
    keys: int = 64,
    values: int = 64,
    samples: int = 12800,
    test_samples: int = 500,
    task_labels: bool = False,
    seed: int = 0,
) -> Scenario:
    """A sequence of `experiences` segments, each writing pairs of key and value, and then queries.

    Multi-query associative recall (Arora et al. 2023, "Zoology"), and with one pair among much
    filler passkey retrieval (Mohtashami & Jaggi 2023). The one training experience draws fresh
    sequences for every batch. The matrix is that of forgetting inside a sequence: R[i, j] is the
    share of segment j's keys whose value is told after segments 0..i were read, always of the same
    test sequences. Where i < j the key is still to be written, and the score that of chance,
    1 / `values`. There are 1 + `keys` + `values` tokens. `seed` draws the test sequences.
    """
    _check(experiences, pairs, filler, keys, values, samples, test_samples, task_labels)
    sizes = (pairs, filler, keys, values)
    generator = torch.Generator().manual_seed(seed)
    tokens, key, value = draw_segments(test_samples, experiences, *sizes, generator)

    def asked_after(count: int) -> list[TensorData]:
        read = tokens[:, :count].flatten(1)
        return [TensorData(*ask(read, key[:, j], value[:, j])) for j in range(experiences)]

    segments = [stream_of("test", asked_after(count)) for count in (*range(1, experiences + 1), 0)]
    train = DrawnData(partial(draw_sequences, experiences, *sizes), samples, 0, seed)
    return Scenario(
        [stream_of("train", [train]), segments[experiences - 1]],
        n_classes=values,
        input_shape=(experiences * (3 * pairs + filler),),
        score=share_recalled,
        criterion=asked_cross_entropy,
        segments=segments,
        head="single",
        vocabulary=1 + keys + values,
    )


def _check(
    experiences: int,
    pairs: int,
    filler: int,
    keys: int,
    values: int,
    samples: int,
    test_samples: int,
    task_labels: bool,
) -> None:
    at_least("scenario", 1, experiences=experiences, pairs=pairs)
    at_least("scenario", 0, filler=filler)
    at_least("scenario", 2, values=values)
    at_least("scenario", 1, samples=samples, test_samples=test_samples)
    if keys < experiences * pairs:
        raise InputError(
            f"scenario.keys={keys}: expected at least {experiences * pairs}, for {experiences} "
            f"segments (scenario.experiences) of {pairs} pairs (scenario.pairs) have a key each; "
            "raise it, or lower one of these"
        )
    if task_labels:
        raise InputError(
            "scenario.task_labels=true: the segments of a sequence are no tasks to be told apart; "
            "set scenario.task_labels=false"
        )
