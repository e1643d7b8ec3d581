"""The last hidden states of a model for fixed texts, by the weights and texts they belong to."""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clplat.batches import prepared
from clplat.errors import InputError
from clplat.modes import in_evaluation
from clplat.taps import Tap


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors by name: of their types, shapes and bytes, on whatever device."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


@torch.no_grad()
def last_states(strategy: Any, columns: list[Tensor]) -> Tensor:
    """Of texts `[x, y, task]` as stored, what the encoder gives the head (N, T, D).

    By the loop's own pass, in its precision, without dropout; in batches of `eval_mb_size`.
    InputError: an encoder that does not answer at every position.
    """
    model, batch = strategy.model, strategy.mbatch
    parts = zip(*(column.split(strategy.eval_mb_size) for column in columns), strict=True)
    tap, found = Tap(model.encoder), []
    with in_evaluation(model):
        for x, *more in parts:
            strategy.mbatch = [prepared(strategy, x, False), *more]
            strategy.forward()
            found.append(tap.take())
    tap.close()
    strategy.mbatch = batch
    if found[0].ndim != 3:
        raise InputError(
            f"strategy: GeRe holds a hidden state at every position, and this backbone gives "
            f"{tuple(found[0].shape[1:])} for a text; set backbone.pooling=none"
        )
    return torch.cat(found)


class StateCache:
    """States (N, T, D), and the digests of the encoder's weights and of the texts behind them."""

    def __init__(self, states: Tensor, weights: str, texts: str):
        self.states, self.weights, self.texts = states, weights, texts

    def check(self, texts: str, weights: str, trained: str) -> None:
        """Refuse texts other than those behind the states, and weights of another model.

        `trained`: what the cache's own weights had become when it was saved.
        """
        if texts != self.texts:
            raise InputError(
                f"strategy: the hidden states that were restored are of other general texts (of "
                f"digest {self.texts[:8]}; this run's: {texts[:8]}); expected the same ones; set "
                "the scenario and its seed as they were, or begin without the saved state"
            )
        if weights not in (self.weights, trained):
            raise InputError(
                f"strategy: the hidden states that were restored are another model's (its weights "
                f"of digest {self.weights[:8]}, {trained[:8]} when saved; this run's: "
                f"{weights[:8]}); expected the same model; restore its weights too, or begin "
                "without the saved state"
            )
