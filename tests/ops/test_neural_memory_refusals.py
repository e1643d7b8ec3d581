"""What neural_memory says of bad input."""

from typing import Any

import pytest
import torch

from clplat.ops.neural_memory import neural_memory
from tests.ops.compare import Inputs
from tests.ops.test_neural_memory import make, split


def bad(**changes: Any) -> Any:
    inputs = {name: x.float() for name, x in make(4).items()}
    tensors, weights, _, gates = split(inputs, None)
    names = ("q", "k", "v", "rate")
    given: Inputs = {**dict(zip(names, tensors, strict=True)), "weights": weights, **gates}
    return neural_memory(**(given | changes))


def test_bad_shapes_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"k has shape \(2, 3, 2, 5\); expected \(B, T, H, D\) = \(2, 4, 2, 5\)"
    ):
        bad(k=torch.rand(2, 3, 2, 5))
    with pytest.raises(
        ValueError, match=r"rate has shape \(2, 4\); expected \(B, T, H\) = \(2, 4, 2\)"
    ):
        bad(rate=torch.rand(2, 4))
    with pytest.raises(
        ValueError, match=r"weights\[0\] has shape \(2, 5, 6\); expected \(H, D, D\) = \(2, 5, 5\)"
    ):
        bad(weights=(torch.rand(2, 5, 6),))
    with pytest.raises(
        ValueError, match=r"weights\[1\] has shape \(2, 5, 5\); expected \(H, F, D\) = \(2, 6, 5\)"
    ):
        bad(weights=(torch.rand(2, 5, 6), torch.rand(2, 5, 5)))
    with pytest.raises(ValueError, match="weights are 3 matrices; expected 1 or 2"):
        bad(weights=(torch.rand(2, 5, 5),) * 3)


def test_bad_states_are_told() -> None:
    row = (torch.rand(2, 2, 5, 5),)
    with pytest.raises(ValueError, match="at position 16 of a chunk of 16; go on with the chunk"):
        bad(initial=(row, row, row, 16))
    with pytest.raises(ValueError, match=r"initial is not a state of this memory; expected \(A, S"):
        bad(initial=(row, row, row * 2, 0))
    with pytest.raises(
        ValueError, match=r"initial\[1\]\[0\] has shape \(2, 5, 5\); expected \(B, H, D, D\)"
    ):
        bad(initial=(row, (torch.rand(2, 5, 5),), row, 0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "l1"}, "loss is 'l1'; expected one of l2, huber, lp"),
        ({"retention": "none"}, "retention is 'none'; expected one of decay, lq, softmax"),
        ({"loss": "huber", "loss_parameter": 0.0}, "huber clamps to a positive number"),
        ({"loss": "lp", "loss_parameter": 0.5}, "lp takes a power of at least 1"),
        ({"retention": "lq", "retention_parameter": 0.5}, "lq takes a norm of at least 1"),
        ({"chunk": 0}, "chunk is 0; expected 1 to 64"),
        ({"chunk": 65}, "chunk is 65; expected 1 to 64"),
    ],
)
def test_bad_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bad(**settings)


def test_mixed_dtypes_and_devices_are_told() -> None:
    with pytest.raises(TypeError, match=r"v is torch.float64; expected torch.float32, as q is"):
        bad(v=torch.rand(2, 4, 2, 5, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"decay is on meta, but q is on cpu"):
        bad(decay=torch.rand(2, 4, 2, device="meta"))
