"""The law of every layer: step by step == forward == forward in two pieces, gradients included."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch import Tensor

import clplat.conf
from clplat.backbones.sequence import SequenceModel

CONF = Path(clplat.conf.__file__).parent
NAMES = sorted(
    file.stem for file in (CONF / "backbone").glob("*.yaml") if "[sequence" in file.read_text()
)
TIME = 37  # longer than every default window and chunk


def build(name: str, time: int = TIME) -> SequenceModel:
    """The backbone of a config file, small."""
    with initialize_config_module("clplat.conf", version_base="1.3"):
        node = compose("config", overrides=[f"backbone={name}", "backbone.width=8"]).backbone
    torch.manual_seed(0)
    return instantiate(node, input_shape=(time, 3), _convert_="all")


def in_pieces(model: SequenceModel, x: Tensor, *ends: int) -> Tensor:
    """All features, where each stretch of x begins at the states that the one before it left."""
    states, outputs, start = None, [], 0
    for end in (*ends, x.shape[1]):
        y, states = model.unroll(x[:, start:end], states)
        outputs.append(y)
        start = end
    return torch.cat(outputs, 1)


def features_and_gradients(
    model: SequenceModel, x: Tensor, run: Callable[[SequenceModel, Tensor], Tensor]
) -> dict[str, Tensor]:
    x = x.clone().requires_grad_()
    y = run(model, x)
    weight = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=y.dtype)
    leaves = {"x": x, **dict(model.named_parameters())}
    gradients = torch.autograd.grad((y * weight).sum(), list(leaves.values()))
    return {"features": y, **dict(zip(leaves, gradients, strict=True))}


@pytest.mark.parametrize("name", NAMES)
def test_step_by_step_is_forward_is_forward_in_two_pieces(name: str) -> None:
    model = build(name).double()
    x = torch.randn(2, TIME, 3, dtype=torch.float64)
    whole = features_and_gradients(model, x, lambda model, x: model.unroll(x)[0])
    for ends in ((21,), tuple(range(1, TIME))):
        pieces = features_and_gradients(model, x, lambda model, x, e=ends: in_pieces(model, x, *e))
        for key, value in whole.items():
            torch.testing.assert_close(pieces[key], value, rtol=1e-9, atol=1e-9, msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_a_later_token_changes_nothing_before_it(name: str) -> None:
    model = build(name).double()
    x = torch.randn(1, TIME, 3, dtype=torch.float64)
    changed = x.clone()
    changed[:, 20] += 1
    y, other = model.unroll(x)[0], model.unroll(changed)[0]
    torch.testing.assert_close(other[:, :20], y[:, :20], rtol=0, atol=1e-9)
    assert not torch.allclose(other[:, 20], y[:, 20])


@pytest.mark.parametrize("name", NAMES)
def test_step_takes_one_token_of_each_sequence(name: str) -> None:
    layer: Any = build(name).blocks[0].layer
    x = torch.randn(3, 2, 8)
    y, _ = layer(x)
    first, state = layer.step(x[:, 0])
    second, _ = layer.step(x[:, 1], state)
    torch.testing.assert_close(torch.stack([first, second], 1), y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_compiles_without_a_break(name: str) -> None:
    torch._dynamo.reset()  # what it holds of the layers before
    layer: Any = build(name).blocks[0].layer
    x = torch.randn(2, 3, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    y, _ = compiled(x)
    torch.testing.assert_close(y, layer(x)[0], rtol=1e-4, atol=1e-5)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@pytest.mark.parametrize("name", NAMES)
def test_trains_under_autocast(name: str) -> None:
    model = build(name)
    x = torch.randn(2, TIME, 3)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(x)
    y.float().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
