"""Every op gives the same for inputs of any memory layout, laid out as its fake form says.

What is compiled relies on the latter: memory is planned by the fakes' strides.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from clplat.ops.delta_rule import delta_rule
from clplat.ops.gated_rnn import gated_rnn
from clplat.ops.gated_scan import gated_scan
from clplat.ops.linear_scan import linear_scan
from clplat.ops.neural_memory import neural_memory
from clplat.ops.newton_scan import newton_scan
from clplat.ops.selective_scan import selective_scan
from clplat.ops.ssd import ssd

B, T, H, D = 2, 3, 2, 4


def draw(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.rand(shape, generator=generator, dtype=torch.float64).requires_grad_()


def memory(**settings: Any) -> Any:
    matrices = [(draw(B, H, D, D),)] * 3
    return neural_memory(
        draw(B, T, H, D), draw(B, T, H, D), draw(B, T, H, D), draw(B, T, H),
        (draw(H, D, D),), (*matrices, 1), chunk=2, decay=draw(B, T, H), **settings,
    )  # fmt: skip


def rnn(kind: str, gates: int, states: int, **more: Tensor) -> Any:
    weight = draw(H, gates, D, D)
    return gated_rnn(kind, draw(B, T, gates, H * D), weight, draw(B, states, H * D), **more)


CALLS: dict[str, Callable[[], Any]] = {
    "linear_scan": lambda: linear_scan(draw(B, T, D), draw(B, T, D), draw(B, D)),
    "gated_scan": lambda: gated_scan(
        "mingru", draw(B, T, D), draw(B, T, D), initial=draw(B, D)
    ),
    "selective_scan": lambda: selective_scan(
        draw(B, T, D), draw(B, T, D), -draw(D, 5), draw(B, T, 5), draw(B, T, 5), draw(D),
        initial=draw(B, D, 5),
    ),
    "ssd": lambda: ssd(
        draw(B, T, H, D), draw(B, T, H, D), draw(B, T, H, 5), -draw(B, T, H), draw(B, H, D, 5)
    ),
    "delta_rule": lambda: delta_rule(
        draw(B, T, H, D), draw(B, T, H, D) / 4, draw(B, T, H, 5), draw(B, T, H),
        log_decay=-draw(B, T, H), initial=draw(B, H, D, 5),
    ),
    "leaky": lambda: rnn("tanh", 1, 1, leak=draw(H * D)),
    "lstm": lambda: rnn("lstm", 4, 2),
    "gru": lambda: rnn("gru", 3, 1, bias=draw(H * D)),
    "slstm": lambda: rnn("slstm", 4, 4),
    "neural_memory": memory,
    "neural_memory with momentum": lambda: memory(momentum=draw(B, T, H)),
    "neural_memory by norm": lambda: memory(retention="lq"),
    "newton_scan": lambda: newton_scan(
        "elman", draw(B, T, D), draw(D), initial=draw(B, D)
    ),
}  # fmt: skip


class Calls(TorchDispatchMode):
    """The calls of this library's ops, forward and backward."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, tuple]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "clplat":
            self.made.append((function, args))
        return function(*args, **(kwargs or {}))


def calls_of(name: str) -> list[tuple[Any, tuple]]:
    with Calls() as calls:
        outputs = [x for x in tree_leaves(CALLS[name]()) if isinstance(x, Tensor)]
        sum((x.square().sum() for x in outputs), torch.zeros(())).backward()
    return calls.made


def permuted(x: Tensor) -> Tensor:
    """The same values, the first axis changing fastest in memory."""
    back = list(range(x.ndim))[::-1]
    return x.permute(back).contiguous().permute(back)


def strides(outputs: Any) -> list[tuple[int, ...]]:
    leaves = [x for x in tree_leaves(outputs) if isinstance(x, Tensor)]
    return [x.contiguous().stride() if not x.numel() else x.stride() for x in leaves]


@pytest.mark.parametrize("name", CALLS)
def test_any_layout_of_any_input(name: str) -> None:
    made = calls_of(name)
    assert len(made) == 2  # forward and backward
    for function, args in made:
        flat, tree = tree_flatten(args)
        flat = [x.detach() if isinstance(x, Tensor) else x for x in flat]
        expected = function(*tree_unflatten(flat, tree))
        tried = [i for i, x in enumerate(flat) if isinstance(x, Tensor) and x.ndim > 1]
        assert tried
        for place in tried:
            changed = [permuted(x) if i == place else x for i, x in enumerate(flat)]
            given = tree_unflatten(changed, tree)
            found = function(*given)
            torch.testing.assert_close(found, expected)
            with FakeTensorMode(allow_non_fake_inputs=True) as mode:
                fakes = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in changed]
                planned = function(*tree_unflatten(fakes, tree))
            assert strides(found) == strides(planned), f"{function}, argument {place}"
