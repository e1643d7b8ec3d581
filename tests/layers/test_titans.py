"""The three ways in which Titans join a window of attention and a memory, token by token."""

import pytest
import torch
from torch import Tensor

from clplat.layers.attention import SlidingWindowAttention
from clplat.layers.layer import State
from clplat.layers.memory import TitansMemory
from clplat.layers.titans import TitansContext, TitansGate, TitansLayer
from tests.layers import naive
from tests.layers.compare import (
    CHECKS,
    assert_matches,
    assert_matches_twice,
    assert_state,
    count,
    leaves,
    made,
    mapped,
    sequence,
)

LAYERS = {
    "layer": lambda: TitansLayer(8, 2, window=3, persistent=2, chunk=3),
    "gate": lambda: TitansGate(8, 2, window=3, persistent=2, chunk=3),
    "context": lambda: TitansContext(8, 2, segment=3, persistent=2),
    "context of single tokens": lambda: TitansContext(8, 1, segment=1, persistent=1, hidden=1),
}


def naive_layer(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    far, near = (None, None) if state is None else state
    remembered, far = naive.memory(layer.memory, x, far)
    y, near = naive.window(layer.attention, naive.rms_norm(layer.norm, remembered), near)
    return y, (far, near)


def naive_gate(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    far, near = (None, None) if state is None else state
    remembered, far = naive.memory(layer.memory, x, far)
    y, near = naive.window(layer.attention, x, near)
    gate = naive.sigmoid(naive.rms_norm(layer.far_norm, remembered))
    return naive.rms_norm(layer.near_norm, y) * gate, (far, near)


def naive_context(layer, x: Tensor, state: State) -> tuple[Tensor, State]:
    split = lambda part: naive.heads(part, layer.heads)  # noqa: E731
    if state is None:
        empty = x.new_zeros(len(x), 0, 2, layer.heads, layer.width // layer.heads)
        state = (empty, empty), naive.untaught(layer, len(x))
    (keys, values), learned = state
    # What a token sees of its segment: of every token so far itself and its recollection.
    keys, values = (list(part.flatten(1, 2).unbind(1)) for part in (keys, values))
    _, *persistent = naive.linear(layer.input, layer.persistent).chunk(3, 1)
    always = [[split(token)[None] for token in part] for part in persistent]
    outputs = []
    for x_t in x.unbind(1):
        position = learned[3]
        recalled = naive.answer(learned[2], naive.unit(split(naive.linear(layer.recall, x_t))))
        for token in (x_t, recalled.flatten(1)):
            _, k, v = (split(p) for p in naive.linear(layer.input, token).chunk(3, 1))
            keys.append(naive.rotated(k, position))
            values.append(v)
        q = naive.rotated(split(naive.linear(layer.input, x_t).chunk(3, 1)[0]), position)
        y = naive.attended(q, always[0] + keys, always[1] + values).flatten(1)

        q, k, v = (split(p) for p in naive.linear(layer.learn, y).chunk(3, 1))
        tokens, gates = (naive.unit(q), naive.unit(k), v), naive.inner_gates(layer, y)
        remembered, learned = naive.learn(tokens, gates, learned, layer.segment)
        gate = naive.sigmoid(naive.rms_norm(layer.norm, remembered.flatten(1)))
        outputs.append(naive.linear(layer.output, y * gate))
        if learned[3] == 0:
            keys, values = [], []
    none = x.new_zeros(len(x), 0, layer.heads, layer.width // layer.heads)
    cache = (
        torch.cat([none, *(part[:, None] for part in kept)], 1).unflatten(1, (-1, 2))
        if kept
        else none.unsqueeze(2).expand(-1, -1, 2, -1, -1)
        for kept in (keys, values)
    )
    return torch.stack(outputs, 1), (tuple(cache), learned)


def equations(name: str):
    return {"layer": naive_layer, "gate": naive_gate}.get(name, naive_context)


@pytest.mark.parametrize(("time", "then"), [(1, 1), (4, 4), (6, 5)])
@pytest.mark.parametrize("name", LAYERS)
def test_equals_a_loop_over_tokens(name, time, then):
    assert_matches_twice(made(LAYERS[name]), equations(name), time, then)


@pytest.mark.parametrize("name", ["layer", "gate", "context"])
def test_from_any_state(name):
    layer, generator = made(LAYERS[name]), torch.Generator().manual_seed(1)
    _, state = layer(sequence(time=5))

    def draw(part: Tensor) -> Tensor:
        if part.dtype == torch.int64:
            return part
        return torch.randn(part.shape, dtype=part.dtype, generator=generator)

    assert_matches(layer, equations(name), sequence(time=4), mapped(state, draw))


MEMORY = [(2, 2, 4, 8), (2, 2, 8, 4)]


@pytest.mark.parametrize("name", ["layer", "gate"])
def test_has_the_state_and_the_parameters_of_its_parts(name):
    layer = made(LAYERS[name])
    assert_state(layer, (2, 3, 24), *3 * MEMORY, *2 * [(2, 2, 2, 4)], (2,))
    parts = count(TitansMemory(8, 2)) + count(SlidingWindowAttention(8, 2, 3, 2))
    assert count(layer) == parts + (8 if name == "layer" else 16)  # norms


@pytest.mark.parametrize("time", [1, 2, 3])
def test_context_has_the_documented_state_and_size(time):
    layer = made(LAYERS["context"])
    _, state = layer(sequence(time=3 + time))
    taken = time % 3
    expected = [(2, taken, 2, 2, 4)] * 2 + 3 * MEMORY
    assert [tuple(part.shape) for part in leaves(state)] == expected
    assert state[1][3] == taken
    memory = 2 * 2 * 4 * 8
    assert count(layer) == 8 * 8**2 + memory + 2 * 8 + 3 * 9 * 2 + 8


@pytest.mark.parametrize("name", ["layer", "gate", "context"])
def test_without_learning_the_far_past_is_lost(name):
    """A memory that takes no steps leaves what window, convolution or segment reach."""
    layer, x = made(LAYERS[name]), sequence(time=12)
    changed = x.clone()
    changed[:, 0] += 1
    gates = layer.gates if name == "context" else layer.memory.gates
    for bias, lost in ((-1000.0, True), (0.0, False)):
        with torch.no_grad():
            gates.rate.bias.fill_(bias)
            gates.decay.bias.fill_(1000.0)
        last = [layer(part)[0][:, -1] for part in (x, changed)]
        assert torch.allclose(*last, rtol=0, atol=1e-12) == lost


def test_persistent_tokens_are_always_seen():
    for name in ("layer", "gate", "context"):
        layer, x = made(LAYERS[name]), sequence(time=7)
        before = layer(x)[0]
        owner = layer if name == "context" else layer.attention
        with torch.no_grad():
            owner.persistent[0] += 1
        assert (layer(x)[0] != before).any(2).all()


@pytest.mark.parametrize("check", CHECKS[:-1])  # inputs a hundred times as large: it diverges
@pytest.mark.parametrize("name", LAYERS)
def test_is_as_every_layer_is(name, check):
    check(LAYERS[name])


@pytest.mark.parametrize("kind", [TitansLayer, TitansGate, TitansContext])
def test_bad_arguments_are_named(kind):
    with pytest.raises(ValueError, match="heads=3 do not divide the width 8; choose a divisor"):
        kind(8, 3)
    context = kind is TitansContext
    with pytest.raises(
        ValueError, match="segment=0; expected 1 to 64" if context else "chunk is 0; expected 1"
    ):
        kind(8, 2, **{"segment" if context else "chunk": 0})
