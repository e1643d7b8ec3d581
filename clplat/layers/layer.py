"""What every sequence layer is: a map of sequences that carries a state."""

from typing import Any

from torch import Tensor, nn

State = Any  # a tensor or a tuple of states; the first axis of every tensor is the batch


class Layer(nn.Module):
    """A layer (B, T, width) -> (B, T, width); a subclass writes `mix`.

    The law that holds for every layer, gradients included: step by step == forward == forward in
    two pieces, where the state of the first piece is handed to the second.
    """

    def __init__(self, width: int):
        super().__init__()
        self.width = self.inputs = width  # of the outputs and the inputs: see `recurrent.reading`

    def mix(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """The outputs and the state after the last token; `state` None is the empty past."""
        raise NotImplementedError

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """x (B, T, width) -> y of the same shape, and the state to go on from."""
        if x.ndim != 3 or x.shape[-1] != self.inputs or x.shape[1] == 0:
            raise ValueError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}; "
                f"expected (B, T, {self.inputs}) with T at least 1"
            )
        return self.mix(x, state)

    def step(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """One token: x (B, width) -> y (B, width), and the next state."""
        y, state = self(x.unsqueeze(1), state)
        return y.squeeze(1), state


def check_state(layer: Layer, state: Tensor, *axes: int | str) -> None:
    """Raises ValueError where a state is not of these lengths; a name stands for any length."""
    fits = state.ndim == len(axes) and all(
        isinstance(axis, str) or axis == size for axis, size in zip(axes, state.shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(axis) for axis in axes)
        raise ValueError(
            f"{type(layer).__name__}: the state has shape {tuple(state.shape)}; "
            f"expected ({expected})"
        )


def per_head(width: int, heads: int) -> int:
    """The width of a head. Raises ValueError where the heads do not divide the width."""
    if heads < 1 or width % heads:
        raise ValueError(f"heads={heads} do not divide the width {width}; choose a divisor of it")
    return width // heads
