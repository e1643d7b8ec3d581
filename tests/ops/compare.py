"""An op held against its reference: values, and the gradient of every input."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Inputs = dict[str, Any]


def _is_number(value: Any) -> bool:
    """A tensor that gradients may flow to, real or complex."""
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())


def converted(inputs: Inputs, dtype: torch.dtype) -> Inputs:
    """Floating tensors in `dtype`, complex ones in its complex kind; all else as it is."""
    return {
        name: value.to(dtype.to_complex() if value.is_complex() else dtype)
        if _is_number(value)
        else value
        for name, value in inputs.items()
    }


def results(
    function: Callable[..., Any], inputs: Inputs, dtype: torch.dtype, device: str = "cpu"
) -> dict[str, Tensor]:
    """Outputs of `function(**inputs)` and the gradients of a random loss, by name, in float64.

    Floating inputs are rounded to `dtype` (complex ones to its complex kind); the loss weighs
    every output, final states included.
    """

    inputs = {
        name: value.detach().to(device).requires_grad_(_is_number(value))
        if isinstance(value, Tensor)
        else value
        for name, value in converted(inputs, dtype).items()
    }
    leaves = {n: v for n, v in inputs.items() if isinstance(v, Tensor) and v.requires_grad}
    outputs = _flat(function(**inputs))
    generator = torch.Generator().manual_seed(1)
    loss = torch.zeros((), dtype=torch.float64, device=device)
    for output in outputs:
        weight = torch.randn(output.shape, dtype=torch.float64, generator=generator).to(device)
        wide = output.to(torch.complex128) if output.is_complex() else output.double()
        loss = loss + (wide * weight).abs().square().sum().sqrt() + (wide.real * weight).sum()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {f"output {k}": output for k, output in enumerate(outputs)}
    for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True):
        found[f"gradient of {name}"] = torch.zeros_like(leaf) if gradient is None else gradient
    found = {name: value.detach().cpu() for name, value in found.items()}
    return converted(found, torch.float64)


def _flat(outputs: Any) -> list[Tensor]:
    if isinstance(outputs, Tensor):
        return [outputs]
    return [tensor for output in outputs for tensor in _flat(output)]


def assert_matches(
    op: Callable[..., Any],
    reference: Callable[..., Any],
    inputs: Inputs,
    dtype: torch.dtype = torch.float64,
    device: str = "cpu",
) -> None:
    """The op's error against the float64 reference is at most twice that of the reference at
    `dtype`, plus a small absolute term (two roundings of the largest value).
    """
    rounded = converted(inputs, dtype)
    wide = converted(rounded, torch.float64)
    exact = results(reference, wide, torch.float64)
    eager = results(reference, rounded, dtype)
    ours = results(op, rounded, dtype, device)
    assert ours.keys() == exact.keys()
    for name, value in exact.items():
        assert ours[name].shape == value.shape, f"{name}: {ours[name].shape} != {value.shape}"
        scale = max(1.0, value.abs().max().item())
        # In float64 the reference rounds as we do, in another order and along many steps.
        floor = 1e-12 * scale if dtype == torch.float64 else 2 * torch.finfo(dtype).eps * scale
        bound = 2 * (eager[name] - value).abs().max().item() + floor
        error = (ours[name] - value).abs().max().item()
        assert error <= bound, f"{name}: error {error:.2e}, allowed {bound:.2e}"
