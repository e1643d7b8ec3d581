"""What a run holds and takes, in bytes."""

import pytest
import torch

from clplat.backbones.heads import NearestMean
from clplat.backbones.prototypes import Prototypes
from clplat.footprint import memory_bytes, peak_memory
from clplat.memory import Memory


class Holds:
    def __init__(self, state):
        self.state = state

    def state_dict(self):
        return self.state


def test_memory_counts_every_tensor_of_the_state_and_nothing_else():
    state = {
        "a": torch.zeros(3, 2),
        "n": 7,
        "deep": {"list": [torch.zeros(5, dtype=torch.uint8), None, "text"]},
    }
    assert memory_bytes(Holds(state), None) == 3 * 2 * 4 + 5


def test_a_replay_memory_is_counted_in_the_datas_own_dtype():
    memory = Memory(10)
    memory.add(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    columns = 10 * 64 + 10 * 8
    assert memory.bytes == columns
    bookkeeping = 10 * 8 + 10 * 8  # keys and labels
    assert memory_bytes(Holds({"memory": memory.state_dict()}), None) == columns + bookkeeping


def test_a_strategy_may_say_itself_and_one_that_says_nothing_is_unknown():
    class Says:
        memory_bytes = 12.0

    assert memory_bytes(Says(), None) == 12
    assert memory_bytes(object(), None) is None


def test_peak_memory_is_that_of_the_process():
    assert 10 * 2**20 < peak_memory(torch.device("cpu")) < 2**40


@pytest.mark.parametrize("head", [Prototypes, NearestMean])
def test_what_a_head_remembers_is_counted_with_what_the_strategy_holds(head):
    class Model:
        pass

    Model.head = head(features=3, classes=5)

    class Nothing:
        memory_bytes = 0

    assert memory_bytes(Nothing(), Model) == 0
    Model.head.fit(torch.randn(4, 3), torch.tensor([1, 1, 4, 1]))
    assert memory_bytes(Nothing(), Model) == 2 * 3 * 4
    assert memory_bytes(object(), Model) is None
