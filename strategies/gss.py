"""Gradient-based sample selection, GSS-greedy (Aljundi, Lin et al. 2019).

A sample's score is c = 1 + max_i cos(g, G_i), g the gradient of its loss and G_i that of a batch
drawn from the memory. While there is room every sample is taken in. Then, one after the other, a
sample with c < 1 meets a held one, drawn with probability C_i / sum of C, and takes its place with
probability C_i / (C_i + c).

As in the released code and in Avalanche, and other than in the paper, the memory's batches are as
large as the incoming one, where the paper's are single samples, and samples contend only where the
gradient of the incoming batch is opposed to those of all of them. Scores are computed after the
update, in evaluation mode and full precision; samples are offered once, in the first epoch, and
score 1 where there is nothing to compare them with: our reading.

Of gradients only scalar products are needed. In a linear layer a sample's gradient is the outer
product of two vectors, and their products are products of those of the vectors: one pass gives all.
With other layers torch.func gives each sample's gradient or, where it cannot, a pass for each does.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.utils import is_multi_task_module
from torch import Tensor, nn
from torch.func import grad, vmap

from clplat.batches import prepared
from clplat.data import Columns
from clplat.errors import at_least
from clplat.memory import Array, Memory
from clplat.modes import in_evaluation
from strategies.er_ace import first_pass
from strategies.importance import Weights, at_a_time
from strategies.mir import sample_losses
from strategies.replay import WithMemory, fresh_samples

LEAST = 1e-6  # of a score: held samples of score 0 could not be drawn

# Of the gradients g of B samples, and the mean gradients G of N batches of a size, one after the
# other in the memory's columns: g.G (B, N), |g| (B,), |G| (N,).
Products = tuple[Tensor, Tensor, Tensor]
Multiply = Callable[[nn.Module, Columns, Columns, int], Products]


def split(columns: Columns, size: int) -> list[Columns]:
    return [list(part) for part in zip(*(c.split(size) for c in columns), strict=True)]


# --- any layers ----------------------------------------------------------------------------------

PerSample = Callable[[nn.Module, Columns], Iterator[tuple[Tensor, Tensor]]]


def mean_gradient(model: nn.Module, batch: Columns) -> Tensor:
    """The gradient of a batch's mean loss, all trainable parameters' in a row, (P,)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = sample_losses(model, None, *batch).mean()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in gradients])


def one_by_one(model: nn.Module, batch: Columns) -> Iterator[tuple[Tensor, Tensor]]:
    """The samples' gradients, (b, P), and the places of those b samples, (b,)."""
    for place, one in enumerate(split(batch, 1)):
        yield torch.tensor([place]), mean_gradient(model, one)[None]


def vectorised(model: nn.Module, batch: Columns) -> Iterator[tuple[Tensor, Tensor]]:
    """As `one_by_one`, as many at a time as memory allows."""
    x, y, tasks = batch
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    multi = is_multi_task_module(model)
    # Task by task: inside vmap no head can be chosen by a sample's label.
    for task in tasks.unique().tolist() if multi else [0]:

        def loss(weights: Weights, x: Tensor, y: Tensor, task: Any = task) -> Tensor:
            return sample_losses(model, weights, x[None], y[None], task)[0]

        per_sample = vmap(grad(loss), in_dims=(None, 0, 0))
        rows = (tasks == task).nonzero()[:, 0] if multi else torch.arange(len(y), device=y.device)
        for places in rows.split(at_a_time(weights)):
            gradients = per_sample(weights, x[places], y[places])
            yield places, torch.cat([g.flatten(1) for g in gradients.values()], 1)


def of_samples(
    model: nn.Module, batch: Columns, memory: Columns, size: int, per_sample: PerSample
) -> Products:
    """See `Products`."""
    directions = torch.stack([mean_gradient(model, part) for part in split(memory, size)])
    products = directions.new_empty(len(batch[1]), len(directions))
    norms = directions.new_empty(len(batch[1]))
    for places, gradients in per_sample(model, batch):
        products[places] = gradients @ directions.T
        norms[places] = gradients.norm(dim=1)
    return products, norms, directions.norm(dim=1)


# --- linear layers -------------------------------------------------------------------------------

Parts = list[tuple[nn.Linear, Tensor, Tensor]]  # a layer, its inputs, gradients of its outputs


def linear_parts(model: nn.Module, batch: Columns) -> Parts:
    """What the trainable linear layers' gradients of the summed loss are made of."""
    passed: list[Any] = []
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    handles = [
        layer.register_forward_hook(lambda *passing: passed.append(passing))
        for layer in layers
        if any(p.requires_grad for p in layer.parameters())
    ]
    try:
        total = sample_losses(model, None, *batch).sum()
    finally:
        for handle in handles:
            handle.remove()
    if not passed:
        return []
    outputs = [output for _, _, output in passed]
    gradients = torch.autograd.grad(total, outputs, allow_unused=True, materialize_grads=True)
    pairs = zip(passed, gradients, strict=True)
    return [(layer, inputs[0].detach(), g) for (layer, inputs, _), g in pairs]


def only_linear(model: nn.Module, batch: Columns) -> bool:
    """Whether every trainable weight is of a linear layer that each sample passes once."""
    parts = linear_parts(model, batch)
    if any(x.ndim != 2 or len(x) != len(batch[1]) for _, x, _ in parts):
        return False
    # A weight may be used more than once, or where no layer sees it, or an output be changed in
    # place: then the true gradient is another.
    made = {layer.weight: g.T @ x for layer, x, g in parts}
    made |= {layer.bias: g.sum(0) for layer, _, g in parts if layer.bias is not None}
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = sample_losses(model, None, *batch).sum()
    true = torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True)
    return all(
        torch.allclose(made.get(p, torch.zeros_like(p)), g, rtol=1e-3, atol=1e-5 * float(g.norm()))
        for p, g in zip(parameters, true, strict=True)
    )


def _inner(one: Parts, other: Parts) -> Tensor:
    """Scalar products of the gradients of (..., a) with (..., b) samples, (..., a, b)."""
    total: Any = 0
    for (layer, x, g), (_, z, h) in zip(one, other, strict=True):
        inputs: Any = x @ z.mT if layer.weight.requires_grad else 0
        if layer.bias is not None and layer.bias.requires_grad:
            inputs = inputs + 1
        total = total + inputs * (g @ h.mT)
    return total


def of_linear_layers(model: nn.Module, batch: Columns, memory: Columns, size: int) -> Products:
    """See `Products`; for models that are `only_linear`."""
    count = len(batch[1])
    joined = [torch.cat(pair) for pair in zip(batch, memory, strict=True)]
    parts = linear_parts(model, joined)

    def rows(which: slice, *shape: int) -> Parts:
        return [
            (m, x[which].unflatten(0, shape), g[which].unflatten(0, shape)) for m, x, g in parts
        ]

    samples, held = slice(count), slice(count, None)
    products = _inner(rows(samples, count), rows(held, -1)).unflatten(1, (-1, size)).mean(2)
    alone, batches = rows(samples, count, 1), rows(held, -1, size)
    lengths = _inner(batches, batches).mean((1, 2))
    return products, _inner(alone, alone).flatten().sqrt(), lengths.clamp_min(0).sqrt()


def pick_products(model: nn.Module, batch: Columns) -> Multiply:
    """The cheapest way that this model's layers allow."""
    if not is_multi_task_module(model) and only_linear(model, batch):
        return of_linear_layers
    try:
        next(vectorised(model, [column[:1] for column in batch]))
    except RuntimeError:  # torch.func cannot go through some layer, of which there are many kinds
        return partial(of_samples, per_sample=one_by_one)
    return partial(of_samples, per_sample=vectorised)


# --- the memory ----------------------------------------------------------------------------------


def replacements(held: Array, new: Array, uniform: Array) -> dict[int, int]:
    """Which held sample is replaced by which new one, once all have contended in their order.

    `held` and `new` are scores, `uniform` (new, 2) random numbers in 0..1: the first of a row draws
    a held sample, the second decides.
    """
    scores, taken = held.copy(), {}
    for sample, (score, (draw, decision)) in enumerate(zip(new, uniform, strict=True)):
        if score < 1:
            total = scores.cumsum()
            slot = int(total.searchsorted(draw * total[-1], side="right"))
            if decision < scores[slot] / (scores[slot] + score):
                scores[slot], taken[slot] = score, sample
    return taken


class GSS(SupervisedPlugin):
    """Each batch is joined by samples of a memory whose gradients differ as much as they can.

    `capacity` samples are held; `comparisons` is the number of batches of the memory that a new
    sample is compared with, `batch_size` that of samples replayed, the loop's own by default.
    """

    needs_boundaries = False
    owns = ("the batches",)
    one_target = True  # a class for each sample

    def __init__(self, capacity: int, comparisons: int = 5, batch_size: int | None = None):
        super().__init__()
        at_least("strategy", 1, comparisons=comparisons)
        if batch_size is not None:
            at_least("strategy", 1, batch_size=batch_size)
        self.memory = Memory(capacity)  # its keys are the scores
        self.comparisons, self.batch_size = comparisons, batch_size
        self._products: Multiply | None = None  # chosen anew in each experience

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._products = None
        size = self.batch_size or strategy.train_mb_size
        strategy.dataloader = WithMemory(strategy.dataloader, self.memory, size)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if first_pass(strategy):
            stored = fresh_samples(strategy)
            with in_evaluation(strategy.model):
                scores, opposed = self._scores(strategy, stored)
            self._admit(stored, scores.double().cpu(), opposed)

    def _scores(self, strategy: Any, stored: Columns) -> tuple[Tensor, bool]:
        """1 + the largest cosine, for each sample of a batch; whether it is opposed to all."""

        def ready(columns: Columns) -> Columns:
            x, y, task = (column.to(strategy.device) for column in columns)
            return [prepared(strategy, x, False), y, task]

        held, incoming = len(self.memory), len(stored[1])
        if not held:
            return torch.ones(incoming), False
        size = min(held, incoming)
        drawn = self.memory.sample(size * min(self.comparisons, held // size))
        batch, memory = ready(stored), ready(drawn)
        if self._products is None:
            self._products = pick_products(strategy.model, batch)
        products, norms, lengths = self._products(strategy.model, batch, memory, size)
        scale = (norms[:, None] * lengths).clamp_min(torch.finfo(norms.dtype).tiny)
        opposed = bool((products.mean(0) < 0).all())
        return 1 + (products / scale).amax(1).clamp_min(LEAST - 1), opposed

    def _admit(self, stored: Columns, scores: Tensor, contend: bool) -> None:
        """Takes in what finds room; the others contend, if they may."""
        room = self.memory.capacity - len(self.memory)
        uniform = torch.rand(len(scores), 2, dtype=torch.float64)
        if room:
            self.memory.add(*(column[:room] for column in stored), keys=scores[:room])
        if not contend:
            return
        contended = replacements(
            self.memory.keys.numpy(), scores[room:].numpy(), uniform[room:].numpy()
        )
        if contended:
            slots = sorted(contended)  # the order in which the memory fills those that are free
            which = torch.tensor([room + contended[slot] for slot in slots])
            self.memory.keys[slots] = float("inf")  # those are given up
            self.memory.add(*(c[which.to(c.device)] for c in stored), keys=scores[which])

    def state_dict(self) -> dict[str, Any]:
        return {"memory": self.memory.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.memory.load_state_dict(state["memory"])
