"""How much something depends on each weight: means over samples, computed task by task."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from clplat.batches import experience_batches, prepared
from clplat.data import Columns
from clplat.errors import InputError

Weights = dict[str, Tensor]
OfBatch = Callable[[nn.Module, Weights, Tensor, Tensor, int], Weights]  # model, weights, x, y, task
CHUNK_BYTES = 2**28  # of per-sample gradients at a time


def at_a_time(weights: Weights) -> int:
    """Of how many samples the gradients fit into `CHUNK_BYTES`, at least 1."""
    return max(1, CHUNK_BYTES // (4 * sum(w.numel() for w in weights.values())))


def mean_importance(
    model: nn.Module, batches: Iterable[Columns], of_batch: OfBatch, whole: bool, key: str
) -> Weights:
    """Of every trainable parameter: sums that `of_batch` gives, over the number of samples.

    `batches` of (x, y, task) ready for the model; `whole`: a task's samples of a batch are never
    parted; `key` is what the config calls the choice of `of_batch`. In evaluation mode: no dropout,
    and batch norm by its running statistics.
    """
    was_training = model.training
    model.eval()
    weights = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    chunk = at_a_time(weights)
    count = 0
    for x, y, tasks in batches:
        for task in tasks.unique().tolist():
            rows = tasks == task
            size = int(rows.sum()) if whole else chunk
            for px, py in zip(x[rows].split(size), y[rows].split(size), strict=True):
                for name, value in _explained(key, of_batch, model, weights, px, py, task).items():
                    total[name] += value
        count += len(x)
    model.train(was_training)
    return {name: value / count for name, value in total.items()}


def _explained(key: str, of_batch: OfBatch, *arguments: Any) -> Weights:
    """What `of_batch` gives; layers that torch.func cannot go through are named."""
    try:
        return of_batch(*arguments)
    except RuntimeError as error:
        if "setup_context" not in str(error) and "atching rule" not in str(error):
            raise
        raise InputError(
            f"{key}: this backbone's layers give no gradients sample by sample, which all its "
            f"values but batch need; set {key}=batch"
        ) from error


def samples(strategy: Any) -> Iterable[Columns]:
    """The experience that was trained on, in batches ready for the model, not augmented."""
    for x, y, tasks in experience_batches(strategy, strategy.train_mb_size):
        yield [prepared(strategy, x, False), y, tasks]
