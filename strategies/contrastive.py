"""The supervised contrastive loss (Khosla et al. 2020): samples of a class near one another.

Of unit vectors z, i over the samples that have another of their class among A(i), all others:
L = mean_i -1/|P(i)| sum_{p in P(i)} log exp(z_i z_p / T) / sum_{a in A(i)} exp(z_i z_a / T).
The published code multiplies this by T / 0.07.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize


def supervised_contrastive(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Of features (N, D), of any length, and labels (N,); 0 where no two samples share a label.

    Several views of a sample are rows with the same label.
    """
    unit = normalize(features, dim=1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    similarities = (unit @ unit.T / temperature).masked_fill(itself, float("-inf"))
    positive = (labels[:, None] == labels).logical_and(~itself)
    counts = positive.sum(1)
    log_shares = similarities.log_softmax(1).masked_fill(~positive, 0)
    of_anchors = log_shares.sum(1) / counts.clamp(min=1)
    return -of_anchors.sum() / counts.count_nonzero().clamp(min=1)
