"""gated_rnn against its loop over time and against torch's own networks, in every form; and what
it says of bad input.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clplat.ops.gated_rnn import _backward, _forward, gated_rnn
from clplat.ops.gated_rnn.kinds import ELMAN, KINDS
from clplat.ops.gated_rnn.reference import gated_rnn as reference
from clplat.ops.tier import runs_triton
from tests.ops.compare import assert_matches

LENGTHS = [1, 7, 63, 65]
PER_UNIT = {**dict.fromkeys(ELMAN, "leak"), "gru": "bias"}


def make(
    kind: str, time: int, batch: int = 2, heads: int = 2, size: int = 3, plain: bool = False
) -> dict[str, Any]:
    """Inputs; `plain`: without leak and bias."""
    generator = torch.Generator().manual_seed(time)
    draw = {"generator": generator, "dtype": torch.float64}
    sizes, width = KINDS[kind], heads * size
    inputs = {
        "kind": kind,
        "x": torch.randn(batch, time, sizes.gates, width, **draw),
        "weight": torch.randn(heads, sizes.gates, size, size, **draw) / size**0.5,
        # At least 0.1, since sLSTM divides by a state.
        "initial": 0.1 + torch.rand(batch, sizes.states, width, **draw),
    }
    if kind in PER_UNIT and not plain:
        inputs[PER_UNIT[kind]] = 0.1 + 0.9 * torch.rand(width, **draw)
    return inputs


def loop(
    kind: str,
    x: Tensor,
    weight: Tensor,
    initial: Tensor | None = None,
    bias: Tensor | float | None = None,
    leak: Tensor | float | None = None,
) -> tuple[Tensor, Tensor]:
    if initial is None:
        initial = x.new_zeros(len(x), KINDS[kind].states, x.shape[3])
        if kind == "slstm":
            initial[:, 3] = -1e30
    bias, leak = 0.0 if bias is None else bias, 1.0 if leak is None else leak
    return reference(kind, x, weight, initial, bias=bias, leak=leak)


@pytest.mark.parametrize("time", LENGTHS)
@pytest.mark.parametrize("kind", KINDS)
def test_values_and_gradients(kind: str, time: int, device: str) -> None:
    assert_matches(gated_rnn, loop, make(kind, time), device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("heads", "size"), [(1, 5), (3, 1), (1, 17)])
def test_heads_and_widths(kind: str, heads: int, size: int, device: str) -> None:
    inputs = make(kind, 4, heads=heads, size=size, plain=True)
    assert_matches(gated_rnn, loop, inputs, device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_more_sequences_than_a_program_takes(kind: str, device: str) -> None:
    assert_matches(gated_rnn, loop, make(kind, 3, batch=19), device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_of_the_backward_pass(
    kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clplat.ops.gated_rnn.cpu.PIECE", 36)  # three steps
    assert_matches(gated_rnn, loop, make(kind, 8), device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_lower_precision(kind: str, dtype: torch.dtype, device: str) -> None:
    assert_matches(gated_rnn, loop, make(kind, 65), dtype, device)


@pytest.mark.parametrize("kind", KINDS)
def test_without_an_initial_state(kind: str, device: str) -> None:
    assert_matches(gated_rnn, loop, {**make(kind, 7), "initial": None}, device=device)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", [(1, 0, 2, 3), (0, 3, 1, 2), (3, 2, 1, 0)])
def test_non_contiguous(kind: str, order: tuple[int, ...], device: str) -> None:
    def laid_out(kind: str, x: Tensor, **inputs: Any) -> Any:
        back = [order.index(axis) for axis in range(4)]
        x = x.permute(order).contiguous().permute(back)
        h, final = gated_rnn(kind, x, **{**inputs, "weight": inputs["weight"].mT.contiguous().mT})
        return h.transpose(0, 1).contiguous().transpose(0, 1), final

    assert_matches(laid_out, loop, make(kind, 5), device=device)


def torch_network(kind: str, width: int) -> tuple[nn.RNNBase, Tensor]:
    """A network of torch, and its recurrent matrices as the op takes them."""
    torch.manual_seed(0)
    options = {"batch_first": True, "dtype": torch.float64}
    if kind in ("tanh", "relu"):
        network = nn.RNN(4, width, nonlinearity=kind, **options)
    else:
        network = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](4, width, **options)
    weight = network.weight_hh_l0.detach()
    return network, weight.unflatten(0, (1, KINDS[kind].gates, width)).mT


@pytest.mark.parametrize("kind", ["tanh", "relu", "lstm", "gru"])
def test_computes_what_torch_computes(kind: str, device: str) -> None:
    width, gates = 5, KINDS[kind].gates
    network, weight = torch_network(kind, width)
    signal = torch.randn(2, 9, 4, dtype=torch.float64)
    initial = torch.randn(2, KINDS[kind].states, width, dtype=torch.float64)
    state = tuple(part[None].contiguous() for part in initial.unbind(1))
    expected, final = network(signal, state if kind == "lstm" else state[0])
    final = torch.stack([part[0] for part in (final if kind == "lstm" else [final])], 1)

    x = nn.functional.linear(signal, network.weight_ih_l0, network.bias_ih_l0)
    x, bias = x.detach().unflatten(2, (gates, width)), network.bias_hh_l0.detach()
    if kind == "gru":  # the bias within the reset stands apart
        x[:, :, :2] += bias.view(3, width)[:2]
        more = {"bias": bias[2 * width :].to(device)}
    else:
        x, more = x + bias.view(gates, width), {}
    h, end = gated_rnn(kind, *(tensor.to(device) for tensor in (x, weight, initial)), **more)
    torch.testing.assert_close(h.cpu(), expected.detach())
    torch.testing.assert_close(end.cpu(), final.detach())


@pytest.mark.parametrize("kind", KINDS)
def test_final_state_continues_the_sequence(kind: str, device: str) -> None:
    inputs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in make(kind, 11).items()}
    x = inputs.pop("x")
    whole, final = gated_rnn(x=x, **inputs)
    first, state = gated_rnn(x=x[:, :4], **inputs)
    second, end = gated_rnn(x=x[:, 4:], **{**inputs, "initial": state})
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    torch.testing.assert_close(end, final)


@pytest.mark.parametrize("kind", KINDS)
def test_state_of_half_precision_is_float32(kind: str, device: str) -> None:
    inputs = make(kind, 7)
    x, weight = (inputs[name].to(device, torch.bfloat16) for name in ("x", "weight"))
    initial = inputs["initial"].to(device, torch.float32)
    h, final = gated_rnn(kind, x, weight, initial)
    assert (h.dtype, final.dtype) == (torch.bfloat16, torch.float32)


def test_slstm_withstands_large_gates(device: str) -> None:
    x = torch.ones(1, 6, 4, 2, device=device)
    x[:, 1::2, 0], x[:, ::2, 0] = 200, -200  # e^200 is infinite in float32
    x[:, :3, 1], x[:, 3:, 1] = 80, -80
    x.requires_grad_()
    h, final = gated_rnn("slstm", x, torch.ones(1, 4, 2, 2, device=device))
    (gradient,) = torch.autograd.grad(h.sum() + final[:, 1:3].sum(), x)
    assert h.isfinite().all()
    assert final.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_state_that_follows_is_differentiated(kind: str, device: str) -> None:
    inputs = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in make(kind, 3).items()}
    x = inputs["x"].requires_grad_()
    expected = torch.autograd.grad(loop(**inputs)[1].sum(), x)
    torch.testing.assert_close(torch.autograd.grad(gated_rnn(**inputs)[1].sum(), x), expected)
    expected = torch.autograd.grad(loop(**inputs)[0].sum(), x)
    torch.testing.assert_close(torch.autograd.grad(gated_rnn(**inputs)[0].sum(), x), expected)


def leaves(inputs: dict[str, Any], device: str) -> Iterator[Tensor]:
    return (v.to(device).requires_grad_() for v in inputs.values() if isinstance(v, Tensor))


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: str, device: str) -> None:
    inputs = make(kind, 3, 1, 1, 2)
    if kind == "slstm":  # the stabiliser is held constant, which only h does not notice
        del inputs["initial"]

    def call(x: Tensor, weight: Tensor, *more: Tensor) -> Any:
        h, final = gated_rnn(kind, x, weight, *more[:1], **dict(zip(names, more[1:], strict=True)))
        return h if kind == "slstm" else (h, final)

    names = [name for name in inputs if name in ("leak", "bias")]
    assert torch.autograd.gradcheck(call, tuple(leaves(inputs, device)))


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(kind: str, plain: bool, device: str) -> None:
    x, weight, initial, *per_unit = leaves(make(kind, 5, plain=plain), device)
    arguments = (kind, x, weight, initial, *(per_unit or [None]))
    torch.library.opcheck(_forward, arguments)
    h, final, gates, cells = (tensor.detach() for tensor in _forward(*arguments))
    weight, initial, *per_unit = (tensor.detach() for tensor in (weight, initial, *per_unit))
    arguments = (kind, h, final, h, gates, cells, weight, initial, *(per_unit or [None]))
    torch.library.opcheck(_backward, arguments)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_without_a_break(kind: str, device: str) -> None:
    compiled = torch.compile(gated_rnn, fullgraph=True, backend="aot_eager")
    assert_matches(compiled, loop, make(kind, 9), device=device)


@pytest.mark.parametrize("kind", KINDS)
def test_heads_that_do_not_fit_on_chip(
    kind: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another form computes them, and the user is told once."""
    tier = pytest.importorskip("clplat.ops.gated_rnn.triton")
    monkeypatch.setattr(tier, "told", set())
    monkeypatch.setattr(tier, "resident_limit", lambda shared: 0)
    inputs = make(kind, 3)
    if runs_triton(inputs["x"].to(device)):
        with pytest.warns(UserWarning, match=f"the kernel for {kind} holds 0; a slower form runs"):
            assert_matches(gated_rnn, loop, inputs, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_matches(gated_rnn, loop, inputs, device=device)


@pytest.mark.parametrize("kind", ["lstm", "slstm", "gru"])
def test_a_gate_near_1_carries_gradients_for_as_long_as_states(kind: str, device: str) -> None:
    """Rounded to bfloat16 it would be 0.996 or 1 instead of 0.998."""
    sizes = KINDS[kind]
    x = torch.zeros(1, 300, sizes.gates, 2, dtype=torch.bfloat16)
    x[:, :, 1] = 6.3  # the forget gate, or z
    weight, initial = torch.zeros(1, sizes.gates, 2, 2).to(x), torch.ones(1, sizes.states, 2).to(x)
    if kind == "slstm":
        initial[:, 3] = 0  # as the input gate, so that the stabiliser stays there
    initial = initial.to(device).requires_grad_()
    _, final = gated_rnn(kind, x.to(device), weight.to(device), initial)
    carried = 0 if kind == "gru" else 1  # h, or c
    (grad,) = torch.autograd.grad(final[:, carried].sum(), initial)
    kept = torch.sigmoid(x[0, 0, 1].double()) ** 300
    torch.testing.assert_close(grad[0, carried].double().cpu(), kept, rtol=0.02, atol=0)


def bad(kind: str = "gru", **changes: Any) -> Any:
    inputs = {n: v.float() if isinstance(v, Tensor) else v for n, v in make(kind, 4).items()}
    return gated_rnn(**{**inputs, **changes})


def test_unknown_kinds_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"kind is 'rnn'; expected one of tanh, relu, leaky_relu, lstm, gru, slstm"
    ):
        gated_rnn("rnn", torch.rand(2, 4, 1, 6), torch.rand(2, 1, 3, 3))


@pytest.mark.parametrize("kind", KINDS)
def test_leak_and_bias_where_there_are_none_are_told(kind: str) -> None:
    if PER_UNIT.get(kind) != "leak":
        with pytest.raises(ValueError, match=f"leak is for tanh, relu, leaky_relu; {kind} has"):
            bad(kind, leak=torch.rand(6))
    if PER_UNIT.get(kind) != "bias":
        with pytest.raises(ValueError, match=f"bias is for gru; with {kind}, add it to x"):
            bad(kind, bias=torch.rand(6))


def test_bad_shapes_are_told() -> None:
    with pytest.raises(
        ValueError, match=r"x has shape \(2, 4, 4, 6\); expected \(B, T, 3, H\) = \(B, T, 3, H\)"
    ):
        bad(x=torch.rand(2, 4, 4, 6))
    with pytest.raises(
        ValueError, match=r"weight has shape \(2, 4, 3, 3\); expected \(heads, 3, P, P\)"
    ):
        bad(weight=torch.rand(2, 4, 3, 3))
    with pytest.raises(
        ValueError, match=r"\(2, 3, 3, 4\); expected square matrices, \(heads, 3, P, P\)"
    ):
        bad(weight=torch.rand(2, 3, 3, 4))
    with pytest.raises(
        ValueError, match=r"x has 6 units, but weight has 2 heads of 2; expected H = heads \* P"
    ):
        bad(weight=torch.rand(2, 3, 2, 2))
    with pytest.raises(
        ValueError, match=r"initial has shape \(2, 6\); expected \(B, 1, H\) = \(2, 1, 6\)"
    ):
        bad(initial=torch.rand(2, 6))
    with pytest.raises(ValueError, match=r"bias has shape \(5,\); expected \(H\) = \(6\)"):
        bad(bias=torch.rand(5))
    with pytest.raises(ValueError, match=r"leak has shape \(1,\); expected \(H\) = \(6\)"):
        bad("tanh", leak=torch.rand(1))


def test_mixed_dtypes_and_devices_are_told() -> None:
    with pytest.raises(TypeError, match=r"weight is torch.float64; expected torch.float32"):
        bad(weight=torch.rand(2, 3, 3, 3, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"x is torch.int64; expected a floating dtype"):
        bad(x=torch.ones(2, 4, 3, 6, dtype=torch.int64))
    with pytest.raises(TypeError, match=r"bias is on meta, but x is on cpu"):
        bad(bias=torch.rand(6, device="meta"))
