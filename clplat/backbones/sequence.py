"""A residual sequence model around any layer of `clplat.layers`, or around several in turn."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from clplat.errors import InputError
from clplat.layers.layer import Layer
from clplat.layers.norm import RMSNorm

State = Any


class Block(nn.Module):
    """x + layer(norm(x)), then x + perceptron(norm(x)), `expansion` times as wide; 0: without."""

    def __init__(self, layer: Layer, width: int, expansion: int, dropout: float):
        super().__init__()
        self.norm, self.layer = RMSNorm(width), layer
        self.dropout = nn.Dropout(dropout)
        self.perceptron = None
        if expansion:
            self.perceptron = nn.Sequential(
                RMSNorm(width),
                nn.Linear(width, expansion * width),
                nn.GELU(),
                nn.Linear(expansion * width, width),
                nn.Dropout(dropout),
            )
        self.output = nn.Identity()  # where the sequence, without the state, can be tapped

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        y, state = self.layer(self.norm(x), state)
        x = x + self.dropout(y)
        return self.output(x if self.perceptron is None else x + self.perceptron(x)), state


class SequenceModel(nn.Module):
    """Embedding or linear input, `depth` blocks of layer and perceptron, norm, pooling.

    `layer` makes a layer of a given width, such as `clplat.layers.ssm.LRU`; a list of such is gone
    through in turn, block by block, and over again. Inputs by `input_shape`: images (C, H, W) are
    read pixel by pixel, rows from the top; (T, D) is a series of vectors, (T,) one of numbers; with
    `vocabulary` (T,) are tokens 0 .. vocabulary - 1. `pooling` gives (B, width): the "last" state,
    or the "mean" of all; "none" gives (B, T, width).
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        layer: Callable[[int], Layer] | Sequence[Callable[[int], Layer]],
        width: int = 64,
        depth: int = 2,
        expansion: int = 2,
        dropout: float = 0.0,
        pooling: str = "last",
        vocabulary: int | None = None,
    ):
        super().__init__()
        if pooling not in ("last", "mean", "none"):
            raise ValueError(f"pooling={pooling!r}; expected last, mean or none")
        if depth < 1:
            raise ValueError(f"depth={depth}; expected at least 1")
        self.input_shape, self.pooling, self.width = tuple(input_shape), pooling, width
        self.vocabulary = vocabulary
        self.input = self._input(vocabulary)
        layers = [layer] if callable(layer) else list(layer)
        if not layers:
            raise ValueError("layer is an empty list; expected at least one layer")
        self.blocks = nn.ModuleList(
            Block(layers[k % len(layers)](width), width, expansion, dropout) for k in range(depth)
        )
        self.norm = RMSNorm(width)

    @property
    def stage_outputs(self) -> list[nn.Module]:
        """Modules whose outputs are the blocks', (B, T, width)."""
        return [block.output for block in self.blocks]  # type: ignore[misc]

    def _input(self, vocabulary: int | None) -> nn.Module:
        dims = len(self.input_shape)
        if vocabulary is not None:
            if dims != 1:
                raise ValueError(f"tokens have the shape (T,); got {self.input_shape}")
            return nn.Embedding(vocabulary, self.width)
        if not 1 <= dims <= 3:
            raise ValueError(
                f"input_shape={self.input_shape}; expected an image (C, H, W), a series (T, D) or "
                "(T,), or tokens (T,) with a vocabulary"
            )
        channels = {1: lambda s: 1, 2: lambda s: s[1], 3: lambda s: s[0]}[dims](self.input_shape)
        return nn.Linear(channels, self.width)

    def embed(self, x: Tensor) -> Tensor:
        """The inputs as a sequence (B, T, width); any T for series and tokens."""
        fits = (
            x.shape[1:] == self.input_shape if x.ndim == 4 else x.shape[2:] == self.input_shape[1:]
        )
        if x.ndim != len(self.input_shape) + 1 or not fits:
            raise ValueError(
                f"SequenceModel: the input has shape {tuple(x.shape)}; expected a batch of "
                f"{self.input_shape}"
            )
        if isinstance(self.input, nn.Embedding):
            return _embed(self.input, x.long())
        if len(self.input_shape) == 3:
            x = x.flatten(2).mT  # (B, C, H, W) -> (B, H * W, C)
        elif len(self.input_shape) == 1:
            x = x.unsqueeze(-1)
        return self.input(x)

    def unroll(self, x: Tensor, states: Sequence[State] | None = None) -> tuple[Tensor, list]:
        """Features of every position (B, T, width), and each block's state to go on from."""
        h, after = self.embed(x), []
        for block, state in zip(self.blocks, states or [None] * len(self.blocks), strict=True):
            h, state = block(h, state)
            after.append(state)
        return self.norm(h), after

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.unroll(x)
        if self.pooling == "none":
            return h
        return h.mean(1) if self.pooling == "mean" else h[:, -1]


def _embed(embedding: nn.Embedding, tokens: Tensor) -> Tensor:
    try:
        return embedding(tokens)
    except IndexError as error:  # looked at only here: to check every batch would cost time
        least, largest = int(tokens.min()), int(tokens.max())
        raise InputError(
            f"backbone.vocabulary={embedding.num_embeddings}: the data has tokens from {least} to "
            f"{largest}; set backbone.vocabulary={largest + 1} or more"
        ) from error
