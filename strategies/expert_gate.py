"""Expert Gate (Aljundi, Chakravarty & Tuytelaars 2017): a network a task, autoencoders choose one.

The autoencoder of a task is relu(W s + b), then sigmoid(W' h + b'), of s = sigmoid((x - m) / d);
it is trained by cross-entropy before the network, and its error E on a sample is the squared
distance to s. How an earlier task a is related to the new one k: 1 - (E_a - E_k) / E_k, of mean
errors on samples of k. The new expert begins with the weights of the most related one; where that
relatedness is above a threshold it also keeps that expert's answers (learning without forgetting),
otherwise it is fine-tuned. A sample to be told goes to the expert with the most of
softmax(-E / temperature) over autoencoders, which answers with the classes of its task.

Forms of loss, error and softmax are those of the released code. Ours reads prepared inputs, theirs
features of a pre-trained AlexNet; m and d are one number each, of the first experience, theirs of
ImageNet's features; relatedness is measured on training samples, theirs on a tenth held out; Adam
trains, there Adagrad. Each experience is a task. In training all classes but its own are masked,
in place of a head for each task (our reading).

The loop's model is the latest expert. The others are held here and answer in evaluation only, so
what looks at the model itself sees the latest.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from avalanche.models.dynamic_modules import MultiTaskModule
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from clplat.backbones.heads import MASKED
from clplat.batches import experience_batches, prepared
from clplat.errors import InputError, at_least, not_negative
from clplat.grown import leading
from clplat.modes import frozen_copy
from strategies.importance import Weights
from strategies.lwf import distillation

RATE, BATCH = 1e-3, 32  # of the autoencoders' training
TEMPERATURE = 2.0  # of the gate and of the distillation

Autoencoder = Sequence[Tensor]  # (hidden, D), (hidden,), (D, hidden), (D,)


def reconstruction(x: Tensor, autoencoder: Autoencoder) -> Tensor:
    """Of inputs (B, D) in 0..1, before its sigmoid."""
    encoder, bias, decoder, other_bias = autoencoder
    return linear(linear(x, encoder, bias).relu(), decoder, other_bias)


def errors(x: Tensor, autoencoders: Sequence[Autoencoder]) -> Tensor:
    """Squared distances of inputs (B, D) to each of K reconstructions, (B, K)."""
    found = [(reconstruction(x, one).sigmoid() - x).square().sum(1) for one in autoencoders]
    return torch.stack(found, 1)


def relatedness(earlier: Tensor, own: Tensor) -> Tensor:
    """Of tasks with the mean errors `earlier` (K,) to one whose autoencoder has the error `own`."""
    return 1 - (earlier - own) / own


def gate(errors: Tensor, temperature: float) -> Tensor:
    """How sure each of K autoencoders is of a sample, (B, K), from their errors (B, K)."""
    return (-errors / temperature).softmax(1)


def fitted(x: Tensor, hidden: int, epochs: int) -> list[Tensor]:
    """An autoencoder trained on inputs (N, D) in 0..1; drawn from the global generator."""
    width = x.shape[1]
    layers = nn.Sequential(nn.Linear(width, hidden), nn.Linear(hidden, width)).to(x.device)
    autoencoder = [*layers.parameters()]
    optimizer = torch.optim.Adam(autoencoder, RATE)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).to(x.device).split(BATCH):
            optimizer.zero_grad()
            output = reconstruction(x[chosen], autoencoder)
            binary_cross_entropy_with_logits(output, x[chosen]).backward()
            optimizer.step()
    return [weight.detach() for weight in autoencoder]


@torch.no_grad()
def give(model: nn.Module, weights: Weights) -> None:
    """Give a model the weights and buffers that it, or it before it grew, had."""
    for name, tensor in model.state_dict().items():
        if name in weights:
            leading(tensor, weights[name]).copy_(weights[name])


class ExpertGate(SupervisedPlugin):
    """`strength` of the distillation, where the relatedness is above `threshold`.

    An autoencoder has `hidden` units and is trained for `epochs` passes over its experience.
    """

    one_target = True  # a class for each sample
    owns = ("the model", "the batches", "the forward pass", "the outputs")

    def __init__(
        self, threshold: float = 0.85, strength: float = 1.0, hidden: int = 100, epochs: int = 100
    ):
        super().__init__()
        at_least("strategy", 1, hidden=hidden, epochs=epochs)
        not_negative("strategy", strength=strength)
        if isinstance(threshold, str):
            raise InputError(f"strategy.threshold={threshold}: expected a number, such as 0.85")
        self.threshold, self.strength = threshold, strength
        self.hidden, self.epochs = hidden, epochs
        self.moments: tuple[float, float] | None = None  # mean and deviation of inputs
        self.autoencoders: list[list[Tensor]] = []  # of each task
        self.classes: list[Tensor] = []
        self.experts: list[Weights] = []  # of each task but the latest, whose the model is
        self.related: int | None = None  # the task whose answers are kept
        self.begun = False  # this experience
        self._teacher: nn.Module | None = None
        self._raw: Tensor | None = None  # the batch's outputs of all classes

    def check(self, scenario: Any) -> None:
        """Refuse inputs that are no numbers."""
        if scenario.vocabulary is not None:
            raise InputError(
                "strategy=expert_gate: its autoencoders read images and series, and this "
                "scenario's samples are tokens; choose another strategy"
            )

    def check_model(self, model: Any) -> None:
        """Refuse a network that has parts for each task."""
        if hasattr(model, "generator"):
            raise InputError(
                "hypernet: Expert Gate has a network for each task, and a hypernetwork is one for "
                "all; set hypernet=none"
            )
        if isinstance(model, MultiTaskModule):
            raise InputError(
                "head: Expert Gate has a network for each task and finds the task by itself; set "
                "head=single, or head=growing"
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        if not self.begun:
            self._begin(strategy)
        self.begun, self._teacher = True, None

    def _begin(self, strategy: Any) -> None:
        """Keep the latest expert, and make an autoencoder and an expert for this experience."""
        if self.autoencoders:
            weights = strategy.model.state_dict()
            self.experts.append({name: w.detach().clone() for name, w in weights.items()})
        pairs = [
            (prepared(strategy, x, False).flatten(1), y)
            for x, y, *_ in experience_batches(strategy)
        ]
        x, labels = (torch.cat(part) for part in zip(*pairs, strict=True))
        self.moments = self.moments or (float(x.mean()), float(x.std()))
        x = self._scaled(x.to(strategy.device))
        self.autoencoders.append(fitted(x, self.hidden, self.epochs))
        self.classes.append(labels.unique().to(strategy.device))
        self.related = None
        if not self.experts:
            return
        *earlier, own = errors(x, self.autoencoders).mean(0)
        related = relatedness(torch.stack(earlier), own)
        most = int(related.argmax())
        if related[most] > self.threshold:
            self.related = most
        give(strategy.model, self.experts[most])
        strategy.make_optimizer(reset_optimizer_state=True)

    def _scaled(self, x: Tensor) -> Tensor:
        mean, deviation = self.moments or (0.0, 1.0)
        return ((x.float() - mean) / deviation).sigmoid()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        self._raw = strategy.mb_output
        strategy.mb_output = _of_classes(strategy.mb_output, self.classes[-1])

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        if self.related is not None and self._raw is not None:
            if self._teacher is None:  # here, as a state may be loaded in mid-experience
                self._teacher = frozen_copy(strategy.model)
                give(self._teacher, self.experts[self.related])
            with torch.no_grad():
                old = self._teacher(strategy.mb_x)
            kept = self.classes[self.related]
            new, old = (z.index_select(1, kept).float() for z in (self._raw, old))
            strategy.loss = strategy.loss + self.strength * distillation(new, old, TEMPERATURE)
        self._raw = None

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self.begun, self._teacher = False, None

    @torch.no_grad()
    def after_eval_forward(self, strategy: Any, **kwargs: Any) -> None:
        """In place of the latest expert's answers, those of each sample's own."""
        if not self.autoencoders:
            return
        x, latest = strategy.mb_x, strategy.mb_output
        found = errors(self._scaled(x.flatten(1)), self.autoencoders)
        chosen = gate(found, TEMPERATURE).argmax(1)
        strategy.mb_output = torch.full_like(latest, MASKED)
        for task in chosen.unique().tolist():
            rows = (chosen == task).nonzero()[:, 0]
            if task < len(self.experts):
                answer = functional_call(strategy.model, self.experts[task], (x[rows],))
            else:
                answer = latest[rows]
            answer = _of_classes(answer.to(latest.dtype), self.classes[task])
            strategy.mb_output[rows] = answer

    def state_dict(self) -> dict[str, Any]:
        return {
            "moments": self.moments,
            "autoencoders": [list(one) for one in self.autoencoders],
            "classes": list(self.classes),
            "experts": [dict(one) for one in self.experts],
            "related": self.related,
            "begun": self.begun,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._teacher = self._raw = None
        for name, value in state.items():
            setattr(self, name, copy.copy(value))


def _of_classes(outputs: Tensor, classes: Tensor) -> Tensor:
    """Outputs (B, C) of these classes, the others MASKED."""
    masked = torch.full_like(outputs, MASKED)
    return masked.index_copy(1, classes, outputs.index_select(1, classes))
