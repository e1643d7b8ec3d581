"""A memory that learns at test time: its weights follow the gradients of an inner loss."""

import torch
from torch import Tensor

from clplat.ops.checks import check_inputs
from clplat.ops.neural_memory.reference import Weights, retain
from clplat.ops.neural_memory.rule import Rule, check_settings
from clplat.ops.tier import run_tier, state_dtype

State = tuple[Weights, Weights, Weights, int]


def neural_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    weights: Weights,
    initial: State | None = None,
    *,
    momentum: Tensor | None = None,
    decay: Tensor | None = None,
    loss: str = "l2",
    loss_parameter: float = 1.0,
    retention: str = "decay",
    retention_parameter: float = 4.0,
    chunk: int = 16,
) -> tuple[Tensor, State]:
    """What a memory f answers to q while it learns f(k) = v by gradient descent, token by token:
    TTT (Sun et al. 2024), Titans (Behrouz et al. 2025a), Moneta, Yaad, Memora (2025b).

        S_t = eta_t S_{t-1} - theta_t u_t        A_t = alpha_t A_{t-1} + S_t

    q, k, v: (B, T, H, D). rate, the inner step size theta >= 0: (B, T, H); momentum, eta in [0, 1):
    (B, T, H), or None for none; decay, alpha in [0, 1]: (B, T, H), or None to keep all. weights:
    (W,) with W (H, D, D) for f(x) = x W, or (W1 (H, D, F), W2 (H, F, D)) for f(x) = gelu(x W1) W2,
    gelu in its tanh form; every row of the batch starts from them.

    u_t is the gradient of the loss at the anchor, the weights at the start of the token's chunk of
    `chunk` tokens (1 to 64; a chunk of 1 is the plain recurrence). By the error e = f(k) - v it is
    e ("l2"), e clamped to loss_parameter ("huber": Yaad), or sign(e) |e|^(p-1), p = loss_parameter
    ("lp": Moneta; the factor p is left to the rate).

    Under retention "decay" a token reads f(q; A_t), after its own update. Else the anchor is a
    function of A, and a token reads the newest anchor: the one its own update completes, if it is
    the last of its chunk, else that of the chunk's start. "lq" (Moneta): A / ||A||_q^(q-2), with
    q = retention_parameter. "softmax" (Memora): over the input axis of A; `weights` are logarithms.

    Returns y (B, T, H, D) and the state to go on from: (A, S, anchor, position), three tuples of
    (B, H, ., .) like `weights`, and the count of tokens that the current chunk took. Without
    momentum S is left as it was. With `initial`, such a state, `weights` only say the shapes.

    Raises: ValueError for shapes or settings that do not fit, TypeError for dtypes or devices that
    differ.
    """
    check_settings(loss, loss_parameter, retention, retention_parameter, chunk)
    axes = _check_tensors(q, k, v, rate, weights, initial, momentum, decay)
    if initial is None:
        initial = _start(q, weights, retention, retention_parameter)
    *state, position = initial
    if not 0 <= position < chunk:
        raise ValueError(
            f"neural_memory: the initial state is at position {position} of a chunk of {chunk}; "
            "go on with the chunk that the state was made with"
        )
    y, *flat = _forward(
        q, k, v, rate, [matrix for part in state for matrix in part], momentum, decay,
        loss, loss_parameter, retention, retention_parameter, chunk, position,
    )  # fmt: skip
    count = len(axes)
    final = tuple(flat[:count]), tuple(flat[count : 2 * count]), tuple(flat[2 * count :])
    return y, (*final, (position + q.shape[1]) % chunk)


def _check_tensors(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    weights: Weights,
    initial: State | None,
    momentum: Tensor | None,
    decay: Tensor | None,
) -> list[str]:
    """The axes of each matrix of the memory."""
    axes = {1: ["H D D"], 2: ["H D F", "H F D"]}.get(len(weights))
    if axes is None:
        raise ValueError(f"neural_memory: weights are {len(weights)} matrices; expected 1 or 2")
    inputs = {name: (x, "B T H D") for name, x in (("q", q), ("k", k), ("v", v))}
    gates = {"rate": rate, "momentum": momentum, "decay": decay}
    wide = {name: (x, "B T H") for name, x in gates.items()}
    wide |= {f"weights[{i}]": (x, axes[i]) for i, x in enumerate(weights)}
    if initial is not None:
        if len(initial) != 4 or any(len(part) != len(axes) for part in initial[:3]):
            raise ValueError(
                "neural_memory: initial is not a state of this memory; expected (A, S, anchor, "
                f"position), the first three tuples of {len(axes)}"
            )
        wide |= {
            f"initial[{j}][{i}]": (x, f"B {axes[i]}")
            for j, part in enumerate(initial[:3])
            for i, x in enumerate(part)
        }
    check_inputs("neural_memory", tuple(wide), **inputs, **wide)
    return axes


def _start(q: Tensor, weights: Weights, retention: str, parameter: float) -> State:
    """The state before the first token."""
    rows = tuple(w.to(state_dtype(q)).expand(len(q), *w.shape) for w in weights)
    anchor = tuple(
        retain(w.to(state_dtype(q)), retention, parameter).expand(len(q), *w.shape) for w in weights
    )
    return rows, tuple(torch.zeros_like(w) for w in rows), anchor, 0


@torch.library.custom_op("clplat::neural_memory", mutates_args=())
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    state: list[Tensor],
    momentum: Tensor | None,
    decay: Tensor | None,
    loss: str,
    loss_parameter: float,
    retention: str,
    retention_parameter: float,
    chunk: int,
    position: int,
) -> list[Tensor]:
    """y, then the final A, S and anchor."""
    rule = Rule(loss, loss_parameter, retention, retention_parameter, chunk, position)
    inputs = (q, k, v, rate, state, momentum, decay)
    return run_tier(__name__, "forward", q, *inputs, rule)


@torch.library.custom_op("clplat::neural_memory_backward", mutates_args=())
def _backward(
    gradients: list[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    state: list[Tensor],
    momentum: Tensor | None,
    decay: Tensor | None,
    loss: str,
    loss_parameter: float,
    retention: str,
    retention_parameter: float,
    chunk: int,
    position: int,
) -> list[Tensor]:
    """Gradients of q, k, v, rate, the state, and of momentum and decay where there are any."""
    rule = Rule(loss, loss_parameter, retention, retention_parameter, chunk, position)
    inputs = (q, k, v, rate, state, momentum, decay)
    return run_tier(__name__, "backward", q, gradients, *inputs, rule)


@_forward.register_fake
def _(q, k, v, rate, state, momentum, decay, *settings):
    dtype = state_dtype(q)
    return [q.new_empty(q.shape), *(x.new_empty(x.shape, dtype=dtype) for x in state)]


@_backward.register_fake
def _(gradients, q, k, v, rate, state, momentum, decay, *settings):
    gates = [gate for gate in (momentum, decay) if gate is not None]
    return [x.new_empty(x.shape) for x in (q, k, v, rate, *state, *gates)]


def _save(ctx, inputs, output):
    q, k, v, rate, state, momentum, decay, *ctx.settings = inputs
    ctx.save_for_backward(q, k, v, rate, momentum, decay, *state)


def _differentiate(ctx, gradients):
    q, k, v, rate, momentum, decay, *state = ctx.saved_tensors
    found = _backward(gradients, q, k, v, rate, state, momentum, decay, *ctx.settings)
    gates = iter(found[4 + len(state) :])
    return (
        *found[:4],
        found[4 : 4 + len(state)],
        None if momentum is None else next(gates),
        None if decay is None else next(gates),
        *[None] * len(ctx.settings),
    )


_forward.register_autograd(_differentiate, setup_context=_save)
