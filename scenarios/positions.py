"""Scenarios that ask at every position of a sequence."""

from torch import Tensor

from clplat.errors import InputError


def check_positions(output: Tensor, target: Tensor) -> None:
    """Refuse logits that are not (B, T, classes) where targets are (B, T)."""
    if output.ndim != 3 or output.shape[:2] != target.shape:
        raise InputError(
            f"backbone: the model's output has shape {tuple(output.shape)}; expected logits of "
            f"every position, {tuple(target.shape)} and classes; set backbone.pooling=none and "
            "backbone.vocabulary in a sequence model such as backbone=mingru, and head=single"
        )
