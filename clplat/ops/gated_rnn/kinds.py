"""The sizes by which the kinds of recurrent network differ, and what each keeps of a forward pass.

Kept a step, for the backward pass: as many `gates` as the kind has, and its `cells`.

- tanh, relu, leaky_relu: phi, where there is a leak; without, phi is h, which is kept anyway
- lstm: i, f, g, o; c
- gru: r, z, q = R_n h + bias; n
- slstm: i', f', tanh(z), sigmoid(o); c, n, sigmoid(-f)

Gates stay in the state's precision: the gradient that goes back along the state is multiplied by
them at every step, and one near 1, rounded in half precision, would wear it down or let it stay.
"""

from dataclasses import dataclass

from torch import Tensor

from clplat.ops.tier import state_dtype

ELMAN = ("tanh", "relu", "leaky_relu")  # h = phi(x + R h), with a leak if there is one
SLOPE = 0.01  # of leaky_relu where its argument is negative, as torch's


@dataclass(frozen=True)
class Kind:
    gates: int
    states: int
    cells: int


KINDS = {
    **dict.fromkeys(ELMAN, Kind(gates=1, states=1, cells=0)),
    "lstm": Kind(gates=4, states=2, cells=1),
    "gru": Kind(gates=3, states=1, cells=1),
    "slstm": Kind(gates=4, states=4, cells=3),
}


def empty_trace(kind: str, h: Tensor, weight: Tensor, per_unit: object) -> tuple[Tensor, Tensor]:
    """Room for gates (T, heads, B, G, P) and cells (T, heads, B, cells, P), of h (B, T, H)."""
    (batch, time, _), (heads, _, size, _) = h.shape, weight.shape
    gates = 0 if kind in ELMAN and per_unit is None else KINDS[kind].gates
    return (
        h.new_empty(time, heads, batch, gates, size, dtype=state_dtype(h)),
        h.new_empty(time, heads, batch, KINDS[kind].cells, size),
    )
