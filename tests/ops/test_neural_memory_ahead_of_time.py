"""The kernels of neural_memory compile for every target."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from clplat.ops.neural_memory import triton as tier
from clplat.ops.neural_memory.rule import Rule
from tests.ops.ahead_of_time import TARGETS, assert_compiles, kernels

RULES = [
    Rule("lp", 3.0, "decay", 4.0, 64, 0),
    Rule("l2", 1.0, "decay", 4.0, 16, 0),
    Rule("lp", 3.0, "lq", 4.0, 64, 0),
    Rule("huber", 0.1, "softmax", 4.0, 64, 0),
]


def calls(dtype: torch.dtype, rule: Rule) -> list[Callable[[], Any]]:
    q = torch.empty(8, 4096, 16, 64, dtype=dtype, device="meta")
    gate = torch.empty(8, 4096, 16, device="meta")
    state = [torch.empty(8, 16, 64, 64, device="meta")] * 3
    inputs = (q, q, q, gate, state, gate, gate, rule)
    return [lambda: tier.forward(*inputs), lambda: tier.backward([q, *state], *inputs)]


# In float32 the weights and gradients of a memory of 64 spill on sm_80, though they do not on later
# cards, where operands come from shared memory.
PAIRS = [(t, d) for t in TARGETS for d in (torch.bfloat16, torch.float32)]
PAIRS.remove(("sm_80", torch.float32))


@pytest.mark.parametrize(("target", "dtype"), PAIRS)
def test_kernels_compile(target: str, dtype: torch.dtype) -> None:
    """In float32 they fill all registers that a thread can have; none are spilled."""
    budget = {torch.bfloat16: 240, torch.float32: 255}[dtype]
    launched = [call for rule in RULES for call in calls(dtype, rule)]
    assert_compiles(launched, tier, target, budget, tuple(kernels(tier)))
