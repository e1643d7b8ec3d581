"""Weights layer by layer from a recurrent network, so that a layer depends on those before it.

Our reading of the dependency-preserving hypernetwork of Chandra et al. (WACV 2023, arXiv
2209.07712), whose abstract alone we could read: it names the recurrent generator and its growth.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clplat.errors import InputError, at_least
from clplat.grown import leading
from clplat.layers.layer import Layer
from clplat.layers.recurrent import GRU, LSTM, SLSTM, LeakyRNN, reading
from hypernets.chunked import clipped
from hypernets.layout import Layout

WITH_MATRIX = (LeakyRNN, LSTM, GRU, SLSTM)
GROWS = (LeakyRNN, LSTM, GRU)
FREQUENCIES = 4  # of a chunk's position in its layer


def positions(counts: list[int]) -> Tensor:
    """For each chunk of each layer, in order: sines and cosines of its place in the layer.

    Of as many octaves as tell hundreds of places apart; (chunks, 2 FREQUENCIES).
    """
    place = torch.cat([torch.arange(n, dtype=torch.float64) for n in counts])
    angles = place[:, None] * 8.0 ** -torch.arange(FREQUENCIES, dtype=torch.float64)
    return torch.cat([angles.sin(), angles.cos()], 1).float()


class RNN(nn.Module):
    """Task embeddings (K, embedding) to the numbers (K, size) of a layout, chunk after chunk.

    Step k reads [task embedding; embedding of the layer; position in the layer], and a linear map
    of the state gives chunk k. A layer begins with a chunk of its own, and of its last chunk, what
    is over is left out. `layer` makes any layer of `clplat.layers` of a given width.
    """

    place: Tensor

    def __init__(
        self,
        layout: Layout,
        embedding: int = 32,
        layer_embedding: int = 32,
        hidden: int = 32,
        chunk: int = 256,
        layer: Callable[[int], Layer] = LSTM,
    ):
        super().__init__()
        at_least(
            "hypernet.generator",
            1,
            embedding=embedding,
            layer_embedding=layer_embedding,
            hidden=hidden,
            chunk=chunk,
        )
        self.width, self.layer = embedding, layer
        chunk = clipped(chunk, max(size for _, size, _ in layout.layers))
        self.sizes = [size for _, size, _ in layout.layers]
        self.counts = [-(-size // chunk) for size in self.sizes]
        self.layers = nn.Parameter(torch.randn(len(self.sizes), layer_embedding))
        self.register_buffer("place", positions(self.counts), persistent=False)
        inputs = embedding + layer_embedding + 2 * FREQUENCIES
        made = layer(hidden)
        self.recurrent, self.input = made, nn.Identity()
        if isinstance(made, WITH_MATRIX):
            self.recurrent = reading(made, inputs)
        else:
            self.input = nn.Linear(inputs, hidden)
        self.output = nn.Linear(hidden, chunk)

    def embedding(self) -> Tensor:
        """A new task's, as it begins."""
        return torch.randn(self.width)

    @property
    def hidden(self) -> int:
        return self.recurrent.width

    @property
    def grows(self) -> bool:
        return isinstance(self.recurrent, GROWS)

    @torch.no_grad()
    def grow(self, hidden: int) -> None:
        """Make the hidden state larger; what is generated stays as it is.

        New units are drawn as the first ones were, but for what leads from them to old units and to
        the outputs: that is zero. Parameters stay the objects they are.
        """
        layer: Any = self.recurrent
        if not self.grows:
            raise InputError(
                f"hypernet: a generator of {type(layer).__name__} does not grow; choose LSTM, GRU "
                "or LeakyRNN"
            )
        if hidden <= self.hidden:
            raise InputError(
                f"hidden={hidden}: the generator has {self.hidden} units and only gains some; "
                f"ask for {self.hidden + 1} or more"
            )
        old = self.hidden
        made: Any = self.layer(hidden)
        larger: Any = reading(made, layer.inputs)
        drawn = {f"recurrent.{name}": p for name, p in larger.named_parameters()}
        drawn["recurrent.recurrent"][:, :, old:, :old] = 0
        drawn["output.weight"] = self.output.weight.new_zeros(self.output.out_features, hidden)
        for name, fill in drawn.items():
            parameter = self.get_parameter(name)
            parameter.data = self.placed(name, parameter.data, fill.to(parameter))
            parameter.grad = None
        layer.width, self.output.in_features = hidden, hidden
        layer.input.out_features = larger.input.out_features

    def placed(self, name: str, old: Tensor, into: Tensor) -> Tensor:
        """A copy of `into`, of a parameter's shape now, with what it was before growth in it."""
        axes = {
            "recurrent.input.weight": [0],
            "recurrent.input.bias": [0],
            "recurrent.recurrent": [2, 3],
        }.get(name, [])
        layer: Any = self.recurrent
        gates = layer.input.out_features // layer.width if "input" in name else 1
        after = into.clone()
        before, view = old, after
        for axis in reversed(axes):  # the gates' units lie behind each other
            split: list[int] = [gates, -1]
            before, view = before.unflatten(axis, split), view.unflatten(axis, split)
        leading(view, before).copy_(before)
        return after

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *more: Any) -> None:  # type: ignore[override]
        """Grows to the state's size first."""
        hidden = state_dict.get(f"{prefix}output.weight", self.output.weight).shape[1]
        if hidden > self.hidden:
            self.grow(hidden)
        super()._load_from_state_dict(state_dict, prefix, *more)

    def forward(self, embeddings: Tensor) -> Tensor:
        tasks = len(embeddings)
        steps = torch.cat(
            [row.expand(n, -1) for row, n in zip(self.layers, self.counts, strict=True)]
        )
        steps = torch.cat([steps, self.place.to(steps)], 1)
        inputs = [
            embeddings.unsqueeze(1).expand(-1, len(steps), -1),
            steps.expand(tasks, -1, -1),
        ]
        states, _ = self.recurrent(self.input(torch.cat(inputs, 2)))
        chunks = self.output(states).split(self.counts, 1)
        of_layers = zip(chunks, self.sizes, strict=True)
        return torch.cat([chunk.flatten(1)[:, :size] for chunk, size in of_layers], 1)
