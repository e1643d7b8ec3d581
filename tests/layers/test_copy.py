"""Each layer can carry tokens over a gap: a model of one layer learns a tiny copy task by heart."""

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import nn

from clplat.backbones.sequence import SequenceModel
from tests.layers.test_law import NAMES

TOKENS, LENGTH, BLANK = 4, 5, 4
# A hybrid has two layers; a single Aaren sees what is before a token, but not its order.
TWO_BLOCKS = ("hybrid", "aaren")
# Shorter than the sequence, so that a memory's chunks and a context's segments end inside it.
SHORT = {"chunk": 2, "segment": 5}


def build(name: str) -> SequenceModel:
    with initialize_config_module("clplat.conf", version_base="1.3"):
        node = compose("config", overrides=[f"backbone={name}", "backbone.width=16"]).backbone
    for layer in node.layer if name == "hybrid" else [node.layer]:
        layer.update({key: value for key, value in SHORT.items() if key in layer})
    node.update(depth=2 if name in TWO_BLOCKS else 1, pooling="none", vocabulary=TOKENS + 1)
    torch.manual_seed(0)
    return instantiate(node, input_shape=(2 * LENGTH,), _convert_="all")


@pytest.mark.parametrize("name", NAMES)
def test_learns_to_copy(name: str) -> None:
    """Five tokens, then five blanks at which the tokens are to be told in their order."""
    model, head = build(name), nn.Linear(16, TOKENS)
    tokens = torch.randint(TOKENS, (8, LENGTH), generator=torch.Generator().manual_seed(0))
    x = torch.cat([tokens, torch.full_like(tokens, BLANK)], 1)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=0.01, fused=True)
    for _ in range(600):
        logits = head(model(x))[:, LENGTH:]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
        if loss < 0.02:
            break
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    assert loss < 0.2
    assert torch.equal(logits.argmax(-1), tokens)
