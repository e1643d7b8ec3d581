"""A layer held against naive equations, and what the tests ask of every layer."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.layers.layer import Layer, State

Naive = Callable[[Any, Tensor, State], tuple[Tensor, State]]
Make = Callable[[], Layer]


def sequence(width: int = 8, time: int = 5, seed: int = 0) -> Tensor:
    """Two random sequences in float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, time, width, dtype=torch.float64, generator=generator)


def made(make: Make, seed: int = 0) -> Layer:
    """The layer in float64, its parameters moved off their first values, which hide mistakes."""
    torch.manual_seed(seed)
    layer = make().double()
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer


def leaves(state: State) -> Iterator[Tensor]:
    """The tensors of a state, in order; counts are no part of them."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, tuple | list):
        for part in state:
            yield from leaves(part)


def mapped(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """The state with every tensor changed."""
    if isinstance(state, Tensor):
        return change(state)
    if isinstance(state, tuple | list):
        return tuple(mapped(part, change) for part in state)
    return state


def results(run: Naive, layer: Layer, x: Tensor, state: State) -> dict[str, Tensor]:
    """y, the final state, and the gradients of x, of the parameters and of the state."""

    def leaf(value: Tensor) -> Tensor:
        floating = value.is_floating_point() or value.is_complex()
        return value.detach().clone().requires_grad_(floating)

    x, state = leaf(x), mapped(state, leaf)
    y, final = run(layer, x, state)
    outputs = [y, *leaves(final)]
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=x.dtype)
    for value in (part for part in outputs if part.dtype != torch.int64):
        weight = torch.randn(value.shape, dtype=value.dtype, generator=generator)
        if value.requires_grad:
            product = value * weight
            loss = loss + (product.real if value.is_complex() else product).sum()
    sources = {"x": x, **dict(layer.named_parameters())}
    given = enumerate(part for part in leaves(state) if part.requires_grad)
    sources |= {f"state {k}": part for k, part in given}
    gradients = torch.autograd.grad(loss, list(sources.values()), allow_unused=True)
    found = {"y": y, **{f"final state {k}": part for k, part in enumerate(outputs[1:])}}
    for (name, source), gradient in zip(sources.items(), gradients, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(source) if gradient is None else gradient
    return {name: value.detach() for name, value in found.items()}


def assert_equal_results(
    ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-10
) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = max([1.0, *value.abs().flatten().tolist()])
        close = {"rtol": tolerance, "atol": tolerance * scale}
        torch.testing.assert_close(
            ours[name], value, **close, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_matches(
    layer: Layer, naive: Naive, x: Tensor, state: State = None, tolerance: float = 1e-10
) -> State:
    """Values, states and gradients; returns the final state, to go on from."""
    run = lambda layer, x, state: layer(x, state)  # noqa: E731
    ours = results(run, layer, x, state)
    assert_equal_results(ours, results(naive, layer, x, state), tolerance)
    return layer(x, state)[1]


def assert_matches_twice(layer: Layer, naive: Naive, time: int = 5, then: int = 4) -> None:
    """From nothing, and from the state that a first stretch left, moved at random."""
    x = sequence(layer.width, time + then)
    state = assert_matches(layer, naive, x[:, :time])
    move = lambda part: part if part.dtype == torch.int64 else 1.25 * part  # noqa: E731
    assert_matches(layer, naive, x[:, time:], mapped(state, move))


def shapes(state: State) -> list[tuple[int, ...]]:
    return [tuple(part.shape) for part in leaves(state)]


def assert_state(layer: Layer, *expected: tuple[int, ...], time: int = 5) -> None:
    """The documented state, for two sequences of `time` tokens, from nothing and further on."""
    x = sequence(layer.width, time)
    _, state = layer(x)
    assert shapes(state) == list(expected)
    for token in x.unbind(1):
        _, state = layer.step(token, state)
    if time > 1:  # a state that grows with time is asked with time = 1
        assert shapes(state) == list(expected)


def every_parameter_learns(make: Make, time: int = 9) -> None:
    layer = made(make)
    layer(sequence(layer.width, time))[0].square().sum().backward()
    unreached = [n for n, p in layer.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def count(layer: Layer) -> int:
    return sum(parameter.numel() for parameter in layer.parameters())


def refuses_bad_input(make: Make) -> None:
    """Wrong rank, wrong width, no token; and every tensor of the state of another shape."""
    layer = made(make)
    name, width = type(layer).__name__, layer.width
    for shape in ((2, width), (2, 3, width + 1), (2, 0, width), (2, 3, 1, width)):
        with pytest.raises(ValueError, match="expected") as error:
            layer(torch.zeros(shape).double())
        assert str(error.value) == (
            f"{name}: x has shape {shape}; expected (B, T, {width}) with T at least 1"
        )
    x = sequence(width, 3)
    _, state = layer(x)
    for place, part in enumerate(leaves(state)):
        for wrong in (torch.cat([part, part[:1]]), part.unsqueeze(-1)):
            parts = [*leaves(state)]
            parts[place] = wrong
            broken = mapped(state, lambda _, parts=parts: parts.pop(0))
            with pytest.raises(ValueError, match=r"has shape \(.*\); expected \(") as error:
                layer(x, broken)
            given = str(error.value).split("has shape (")[1].split(")")[0]
            sizes = [int(size) for size in given.split(",") if size.strip()]
            assert torch.Size(sizes).numel() == wrong.numel()  # it is this tensor that is named


def _distance(one: Tensor, other: Tensor) -> float:
    """Relative, but for gradients that cancel to next to nothing."""
    floor = 0.2 * other.numel() ** 0.5
    return ((one.double() - other.double()).norm() / other.double().norm().clamp(min=floor)).item()


def works_in_half_precision(make: Make, near: float = 0.2, time: int = 9) -> None:
    """Under autocast near float32, gradients included; a module in bfloat16 near it in value."""
    torch.manual_seed(0)
    layer = make()
    x = sequence(layer.width, time).float()

    def run(half: bool) -> dict[str, Tensor]:
        source = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            first, state = layer(source[:, : time - 3])
            y = torch.cat([first, layer(source[:, time - 3 :], state)[0]], 1)
        generator = torch.Generator().manual_seed(1)
        loss = (y.float() * torch.randn(y.shape, generator=generator)).sum()
        names, parameters = zip(*layer.named_parameters(), strict=True)
        found = torch.autograd.grad(loss, [source, *parameters], allow_unused=True)
        kept = zip(["y", "gradient of x", *names], [y, *found], strict=True)
        return {name: value.detach() for name, value in kept if value is not None}

    full, half = run(False), run(True)
    assert full.keys() == half.keys()
    for name, value in full.items():
        distance = _distance(half[name], value)
        assert distance < near, f"{name}: {distance:.3f} of {value.norm():.2e} ({value.numel()})"

    module = copy.deepcopy(layer).to(torch.bfloat16)
    y, _ = module(x.to(torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert _distance(y, layer(x)[0]) < near


def stays_finite_at_extremes(make: Make, time: int = 20) -> None:
    """Gates fully open and fully shut by turns: no NaN, no infinity, in value or gradient."""
    for scale in (100.0, -100.0):
        torch.manual_seed(0)
        layer = make()
        x = (scale * sequence(layer.width, time).float()).requires_grad_()
        y, state = layer(x)
        y, state = layer(x, state)
        y.sum().backward()
        assert y.isfinite().all()
        assert all(part.isfinite().all() for part in leaves(state))
        assert x.grad is not None
        assert x.grad.isfinite().all()
        gradients = [p.grad for p in layer.parameters() if p.grad is not None]
        assert all(gradient.isfinite().all() for gradient in gradients)


def bears_tokens_of_nothing(make: Make) -> None:
    """Zeros in the middle of a sequence: what divides by a length must not divide by nothing."""
    layer, x = made(make), sequence(make().width, 12)
    x[:, 4:9] = 0
    x.requires_grad_()
    y, _ = layer(x)
    gradients = torch.autograd.grad(y.sum(), [x, *layer.parameters()], allow_unused=True)
    assert y.isfinite().all()
    assert all(g.abs().max() < 1e6 for g in gradients if g is not None)


CHECKS = [
    every_parameter_learns,
    bears_tokens_of_nothing,
    refuses_bad_input,
    works_in_half_precision,
    stays_finite_at_extremes,
]
