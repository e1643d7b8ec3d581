"""neural_memory against its loop over tokens, in every form."""

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clplat.ops.neural_memory import _backward, _forward, neural_memory
from clplat.ops.neural_memory.reference import apply, retain, surprise
from clplat.ops.neural_memory.reference import neural_memory as reference
from clplat.ops.tier import INTERPRETED, runs_triton
from tests.ops.compare import Inputs, assert_matches

BATCH, HEADS, WIDTH, HIDDEN = 2, 2, 5, 6
LAYERS = [1] if INTERPRETED else [1, 2]  # two have no kernel
GATES = ("momentum", "decay")


def make(
    time: int,
    layers: int = 1,
    batch: int = BATCH,
    gates: tuple[str, ...] = GATES,
    width: int = WIDTH,
) -> dict[str, Any]:
    """All tensors by name: `start00` is matrix 0 of the initial A, `start11` matrix 1 of S."""
    generator = torch.Generator().manual_seed(time)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {1: [(HEADS, width, width)], 2: [(HEADS, width, HIDDEN), (HEADS, HIDDEN, width)]}
    found: Inputs = {name: draw(batch, time, HEADS, width) for name in ("q", "k", "v")}
    found["k"] = torch.nn.functional.normalize(found["k"], dim=-1)
    found["rate"] = draw(batch, time, HEADS).sigmoid() / 8
    found |= {gate: (1 + draw(batch, time, HEADS).sigmoid()) / 2 for gate in gates}
    found |= {f"weight{i}": draw(*shape) / 2 for i, shape in enumerate(shapes[layers])}
    for part in range(3):
        for i, shape in enumerate(shapes[layers]):
            found[f"start{part}{i}"] = draw(batch, *shape) / 2
    return found


Four = tuple[Tensor, Tensor, Tensor, Tensor]


def split(inputs: Inputs, position: int | None) -> tuple[Four, tuple[Tensor, ...], Any, Inputs]:
    """(q, k, v, rate), weights, the initial state (None where position is), and the gates."""
    tensors = inputs["q"], inputs["k"], inputs["v"], inputs["rate"]
    weights = tuple(inputs[name] for name in sorted(inputs) if name.startswith("weight"))
    state = None
    if position is not None:
        layers = range(len(weights))
        parts = (tuple(inputs[f"start{part}{i}"] for i in layers) for part in range(3))
        state = (*parts, position)
    return tensors, weights, state, {gate: inputs.get(gate) for gate in GATES}


def flat(result: tuple[Tensor, Any]) -> list[Tensor]:
    y, (weights, velocity, anchor, _) = result
    return [y, *weights, *velocity, *anchor]


def ours(position: int | None = 0, **settings: Any) -> Callable[..., list[Tensor]]:
    def call(**inputs: Any) -> list[Tensor]:
        tensors, weights, state, gates = split(inputs, position)
        return flat(neural_memory(*tensors, weights, state, **gates, **settings))

    return call


def loop(
    position: int | None = 0,
    loss: str = "l2",
    loss_parameter: float = 1.0,
    retention: str = "decay",
    retention_parameter: float = 4.0,
    chunk: int = 16,
) -> Callable[..., list[Tensor]]:
    def call(**inputs: Any) -> list[Tensor]:
        tensors, weights, state, gates = split(inputs, position)
        if state is None:
            batch = len(tensors[0])
            rows = tuple(w.expand(batch, *w.shape) for w in weights)
            anchor = tuple(retain(w, retention, retention_parameter) for w in rows)
            state = rows, tuple(torch.zeros_like(w) for w in rows), anchor, 0
        rule = (loss, loss_parameter, retention, retention_parameter, chunk)
        return flat(reference(*tensors, state, gates["momentum"], gates["decay"], *rule))

    return call


def check(inputs: Inputs, device: str, dtype: torch.dtype = torch.float64, **settings: Any) -> None:
    assert_matches(ours(**settings), loop(**settings), inputs, dtype, device)


RULES = [
    {},
    {"loss": "huber", "loss_parameter": 0.3, "retention": "lq"},
    {"loss": "lp", "loss_parameter": 3.0, "retention": "lq", "retention_parameter": 2.5},
    {"loss": "lp", "loss_parameter": 1.8, "retention": "softmax"},
    {"loss": "huber", "loss_parameter": 0.5},
]
PLACES = [(1, 16, 15), (7, 16, 3), (17, 16, 0), (33, 16, 5), (7, 1, 0), (17, 4, 3), (7, 64, 20)]


@pytest.mark.parametrize(("time", "chunk", "position"), PLACES)
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_values_and_gradients(
    time: int, chunk: int, position: int, layers: int, rule: dict[str, Any], device: str
) -> None:
    check(make(time, layers), device, chunk=chunk, position=position, **rule)


@pytest.mark.parametrize("rule", RULES)
def test_several_blocks_of_columns(rule: dict[str, Any], device: str) -> None:
    check(make(7, batch=1, width=20), device, chunk=3, position=1, **rule)


@pytest.mark.parametrize("gates", [(), ("momentum",), ("decay",)])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("retention", ["decay", "softmax"])
def test_without_momentum_or_decay(
    gates: tuple[str, ...], layers: int, retention: str, device: str
) -> None:
    check(make(9, layers, gates=gates), device, chunk=4, position=2, retention=retention)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("retention", ["decay", "lq", "softmax"])
def test_from_the_weights(layers: int, retention: str, device: str) -> None:
    check(make(7, layers), device, chunk=4, position=None, retention=retention)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layers", LAYERS)
def test_lower_precision(layers: int, dtype: torch.dtype, device: str) -> None:
    check(make(33, layers), device, dtype)


def test_wide_heads_run_without_a_kernel(device: str) -> None:
    """On every device; where others have a kernel, one warning says so."""
    wide = make(3, batch=1, width=65)
    told: AbstractContextManager = nullcontext()
    if runs_triton(torch.empty(0, device=device)):
        from clplat.ops.neural_memory import triton as tier

        tier._warn_of_width.cache_clear()
        told = pytest.warns(UserWarning, match="heads wider than 64 have no kernel")
    with told:
        check(wide, device)
    with warnings.catch_warnings(action="error"):
        ours()(**{name: x.to(device) for name, x in wide.items()})


def test_non_contiguous(device: str) -> None:
    inputs = make(9)
    for name in ("q", "k", "v", "rate"):
        inputs[name] = inputs[name].transpose(1, 2).contiguous().transpose(1, 2)
    check(inputs, device, chunk=4)


@pytest.mark.parametrize("loss", ["l2", "huber", "lp"])
@pytest.mark.parametrize("layers", LAYERS)
def test_surprise_is_the_gradient_of_the_loss(layers: int, loss: str) -> None:
    inputs, power = make(1, layers), 3.0
    anchor = tuple(inputs[f"start0{i}"].requires_grad_() for i in range(layers))
    k, v = inputs["k"][:, 0], inputs["v"][:, 0]
    error = apply(anchor, k) - v
    value = {
        "l2": error.square() / 2,
        "huber": torch.nn.functional.huber_loss(error, torch.zeros_like(error), "none", power),
        "lp": error.abs() ** power / power,
    }[loss]
    expected = torch.autograd.grad(value.sum(), anchor)
    torch.testing.assert_close(surprise(anchor, k, v, loss, power), expected)


def test_retention_keeps_the_norm_that_it_names() -> None:
    weights = make(1)["start00"]
    kept = retain(weights, "lq", 4.0)
    norm = torch.linalg.vector_norm(weights, 4, (-2, -1), keepdim=True)
    torch.testing.assert_close(kept, weights / norm**2)
    torch.testing.assert_close(
        retain(weights, "softmax", 4.0).sum(-2), torch.ones(2, 2, 5).double()
    )
    assert retain(torch.zeros(2, 2), "lq", 4.0).eq(0).all()


@pytest.mark.parametrize("rule", RULES[:4])
@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("cut", [2, 3])
def test_in_pieces_as_in_one(layers: int, rule: dict[str, Any], cut: int, device: str) -> None:
    def pieces(**inputs: Any) -> list[Tensor]:
        tensors, weights, state, gates = split(inputs, 1)
        outputs = []
        for part in (slice(0, cut), slice(cut, cut + 1), slice(cut + 1, None)):
            q, k, v, rate = (x[:, part] for x in tensors)
            own = {name: x[:, part] for name, x in gates.items()}
            y, state = neural_memory(q, k, v, rate, weights, state, **own, chunk=4, **rule)
            outputs.append(y)
        return flat((torch.cat(outputs, 1), state))

    assert_matches(pieces, loop(1, chunk=4, **rule), make(11, layers), device=device)


def test_step_by_step_as_in_one(device: str) -> None:
    def steps(**inputs: Any) -> list[Tensor]:
        tensors, weights, state, gates = split(inputs, None)
        outputs = []
        for t in range(len(tensors[0][0])):
            q, k, v, rate = (x[:, t : t + 1] for x in tensors)
            own = {name: x[:, t : t + 1] for name, x in gates.items()}
            y, state = neural_memory(q, k, v, rate, weights, state, **own, chunk=3)
            outputs.append(y)
        return flat((torch.cat(outputs, 1), state))

    assert_matches(steps, loop(None, chunk=3), make(7), device=device)


def test_the_state_tells_the_position_in_its_chunk() -> None:
    tensors, weights, _, gates = split(make(11), None)
    _, state = neural_memory(*tensors, weights, **gates, chunk=4)
    assert state[3] == 3


def test_a_chunk_of_one_is_the_plain_recurrence(device: str) -> None:
    """Written out once more, without anchors."""
    inputs = {name: x.to(device) for name, x in make(5).items()}
    tensors, weights, _, gates = split(inputs, None)
    q, k, v, rate = tensors
    matrix = weights[0].expand(BATCH, *weights[0].shape)
    velocity, outputs = torch.zeros_like(matrix), []
    for t in range(5):
        error = torch.einsum("bhi, bhij -> bhj", k[:, t], matrix) - v[:, t]
        step = torch.einsum("bh, bhi, bhj -> bhij", rate[:, t], k[:, t], error)
        velocity = inputs["momentum"][:, t, :, None, None] * velocity - step
        matrix = inputs["decay"][:, t, :, None, None] * matrix + velocity
        outputs.append(torch.einsum("bhi, bhij -> bhj", q[:, t], matrix))
    y, _ = neural_memory(*tensors, weights, **gates, chunk=1)
    torch.testing.assert_close(y, torch.stack(outputs, 1))


@pytest.mark.parametrize("rule", RULES[1:4])
def test_a_memory_of_zeros_has_finite_gradients(rule: dict[str, Any], device: str) -> None:
    inputs = {name: torch.zeros_like(x).to(device) for name, x in make(5).items()}
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    outputs = ours(chunk=4, **rule)(**inputs)
    torch.stack([x.sum() for x in outputs]).sum().backward()
    found = [x.grad for x in inputs.values() if x.grad is not None]
    assert found
    assert all(x.isfinite().all() for x in found)


def test_state_of_half_precision_is_float32(device: str) -> None:
    inputs = {name: x.to(device, torch.bfloat16) for name, x in make(5).items()}
    y, *state = ours(None)(**inputs)
    assert y.dtype == torch.bfloat16
    assert {x.dtype for x in state} == {torch.float32}


class _Sizes(TorchDispatchMode):
    """The most elements of any tensor made."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.itemsize)
        return result


@pytest.mark.skipif(INTERPRETED, reason="of the form for processors")
@pytest.mark.parametrize("layers", LAYERS)
def test_no_tensor_holds_the_weights_of_every_token(layers: int) -> None:
    time, width = 64, 32
    shapes = {1: [(1, width, width)], 2: [(1, width, width), (1, width, width)]}[layers]
    weights = tuple(torch.rand(shape, requires_grad=True) for shape in shapes)
    q = torch.rand(1, time, 1, width, requires_grad=True)
    rate = torch.rand(1, time, 1, requires_grad=True) / 100
    with _Sizes() as sizes:
        y, _ = neural_memory(q, q, q, rate, weights, momentum=rate, decay=rate, chunk=16)
        y.sum().backward()
    assert sizes.largest <= time * width * 4 < time * width * width


@pytest.mark.parametrize("rule", RULES[:3])
@pytest.mark.parametrize("layers", LAYERS)
def test_gradcheck(layers: int, rule: dict[str, Any], device: str) -> None:
    inputs = {name: x.to(device) for name, x in make(3, layers, 1, width=2).items()}
    names = [name for name in inputs if not name.startswith("weight")]
    leaves = [inputs[name].detach().requires_grad_() for name in names]

    def call(*tensors: Tensor) -> list[Tensor]:
        given = inputs | dict(zip(names, tensors, strict=True))
        return ours(1, chunk=2, **rule)(**given)

    assert torch.autograd.gradcheck(lambda *x: tuple(call(*x)), leaves, fast_mode=INTERPRETED)


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize("gates", [GATES, ()])
def test_opcheck(layers: int, gates: tuple[str, ...], device: str) -> None:
    inputs = {name: x.to(device) for name, x in make(5, layers, gates=gates).items()}
    tensors, _, state, own = split(inputs, 1)
    parts = [x for part in state[:3] for x in part]
    settings = (*own.values(), "huber", 1.0, "softmax", 4.0, 4, 1)
    gradients = [tensors[0], *parts]
    torch.library.opcheck(_backward, (gradients, *tensors, parts, *settings))
    for x in inputs.values():
        x.requires_grad_()
    torch.library.opcheck(_forward, (*tensors, parts, *settings))


def test_compiles_without_a_break(device: str) -> None:
    compiled = torch.compile(ours(1, chunk=4), fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop(1, chunk=4), make(9), device=device)
