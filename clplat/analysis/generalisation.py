"""Strings and levels beyond those of training. Both are our reading of what is asked of a network
that has learned ever longer memories: that it hold them for longer, and that they reach further.
"""

from collections.abc import Callable, Sequence

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from clplat.data import Columns
from clplat.evaluation import Score


def lengthened(x: Tensor, time: int, generator: torch.Generator) -> Tensor:
    """Strings x (B, T, D) with more before them, (B, time, D): steps of their own, drawn evenly.

    So the share of ones of each string stays what it was, and a label that hangs on its end holds.
    ValueError where `time` is less than T.
    """
    batch, own, channels = x.shape
    if time < own:
        raise ValueError(f"time={time}; expected at least the {own} steps of the strings")
    steps = torch.randint(own, (batch, time - own, 1), generator=generator).to(x.device)
    return torch.cat([x.gather(1, steps.expand(-1, -1, channels)), x], 1)


def mean_score(model: nn.Module, batches: Sequence[Columns], score: Score) -> float:
    """Of a model (x, task) in its present mode, over batches [x, y, task]."""
    return float(torch.cat([score(model(x, task), y) for x, y, task in batches]).double().mean())


def decoding_accuracy(features: Tensor, labels: Tensor) -> float:
    """The share of labels (B,) that a linear read-out of features (B, D), fitted anew, gets right.

    Logistic regression of the standardised features with an L2 penalty of 1, fitted to every second
    sample and measured on the others. Where the first have one label alone, that is the answer.
    """
    x, y = features.detach().double().cpu().numpy(), labels.cpu().numpy()
    mean, deviation = x[::2].mean(0), x[::2].std(0)
    x = (x - mean) / (deviation + 1e-12)
    if len(set(y[::2].tolist())) == 1:
        return float((y[1::2] == y[0]).mean())
    readout = LogisticRegression(max_iter=1000).fit(x[::2], y[::2])
    return float((readout.predict(x[1::2]) == y[1::2]).mean())


def decoded_levels(
    encode: Callable[[Tensor], Tensor], levels: Sequence[Sequence[Columns]]
) -> list[float]:
    """For the batches [x, y (B, 1), task] of each level, how well its labels can be read out.

    Parities of strings with few ones, or few zeros, can be guessed, so that the least is above 0.5.
    """
    accuracies = []
    for batches in levels:
        features = torch.cat([encode(x) for x, _, _ in batches])
        accuracies.append(decoding_accuracy(features, torch.cat([y[:, 0] for _, y, _ in batches])))
    return accuracies
