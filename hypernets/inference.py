"""Which task a sample is of, where nobody says: the one whose prediction is surest.

Least entropy, von Oswald et al. (2020).
"""

import torch
from torch import Tensor


def entropy(logits: Tensor) -> Tensor:
    """Of softmax over the last axis, in nats."""
    log_probabilities = logits.float().log_softmax(-1)
    return -(log_probabilities.exp() * log_probabilities).sum(-1)


def of_surest(answers: Tensor, classes: Tensor | None) -> Tensor:
    """Logits (K, B, ..., C) of K tasks to those (B, ..., C) of the task that is surest of a sample.

    `classes` (K,): how many a task has, None for all; its entropy counts as a share of the largest
    that so many allow.
    """
    tasks, batch = answers.shape[:2]
    unsure = entropy(answers).reshape(tasks, batch, -1).mean(2)  # over positions
    if classes is not None:
        unsure = unsure / classes.clamp_min(2).log()[:, None]
    return answers[unsure.argmin(0), torch.arange(batch, device=answers.device)]
