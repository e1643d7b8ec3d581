"""What an encoder learns before the first experience, from the scenario's general stream."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor, nn

from clplat.backbones.classifier import classifier
from clplat.backbones.heads import single
from clplat.backbones.prototypes import squared_distances
from clplat.data import tensors_of
from clplat.directory import ENCODER
from clplat.errors import InputError
from clplat.learner import Learner
from clplat.scenario import Scenario

Advance = Callable[[], None]  # told of each epoch that ends


def nothing() -> None:
    """No pre-training."""


def _general(scenario: Scenario) -> Any:
    if "general" not in scenario.streams:
        raise InputError(
            "pretraining: this scenario has no general data to pre-train on; set pretraining=none, "
            "or choose a scenario that has, such as cfsl/classes_and_samples_4"
        )
    return scenario.streams["general"][0]


class EpochsDone(SupervisedPlugin):
    def __init__(self, advance: Advance):
        super().__init__()
        self.advance = advance

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.advance()


class FromFile:
    """Weights of an encoder of the same form, as a run with pre-training leaves them behind."""

    epochs = 0

    def __init__(self, path: str):
        self.path = Path(path)

    def __call__(
        self, encoder: Any, scenario: Scenario, device: torch.device, seed: int, advance: Advance
    ) -> None:
        """Load the weights; InputError where there are none, or those of another encoder."""
        given = f"pretraining.path={self.path}"
        mend = f"give the {ENCODER} of a run with the same backbone"
        if not self.path.is_file():
            raise InputError(f"{given}: no such file; {mend}")
        try:
            weights = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, UnpicklingError, EOFError) as error:
            raise InputError(f"{given}: not a file of weights; {mend}") from error
        try:
            encoder.load_state_dict(weights)
        except (RuntimeError, TypeError) as error:
            raise InputError(f"{given}: holds weights of another encoder; {mend}") from error


class Supervised:
    """Ordinary training on the general stream, with a head that is then left behind (Adam)."""

    def __init__(self, epochs: int = 10, batch_size: int = 64, lr: float = 0.001):
        self.epochs, self.batch_size, self.lr = epochs, batch_size, lr

    def __call__(
        self, encoder: Any, scenario: Scenario, device: torch.device, seed: int, advance: Advance
    ) -> None:
        """Train the encoder in place; `seed` draws the order of samples."""
        experience = _general(scenario)
        classes = int(tensors_of(experience.dataset)[1].max()) + 1
        learner = Learner(
            classifier(encoder, single(encoder.width, classes)),
            partial(torch.optim.Adam, lr=self.lr, fused=True),
            plugins=[EpochsDone(advance)],
            criterion=scenario.criterion,
            batch_size=self.batch_size,
            epochs=self.epochs,
            device=device,
            order=torch.Generator().manual_seed(seed),
            prepare=scenario.prepare,
        )
        learner.train(experience)


def draw_episode(
    members: list[Tensor], ways: int, shots: int, queries: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Indices (ways, shots) and (ways, queries) of samples of random classes, none twice.

    `members` has the indices of each class's samples.
    """
    classes = torch.randperm(len(members), generator=generator)[:ways].tolist()
    drawn = [
        members[c][torch.randperm(len(members[c]), generator=generator)[: shots + queries]]
        for c in classes
    ]
    support, query = torch.stack(drawn).split([shots, queries], 1)
    return support, query


def prototypical_loss(support: Tensor, query: Tensor) -> Tensor:
    """Cross-entropy over minus squared distances to the classes' means (Snell et al. 2017).

    Of features (ways, shots, D) and (ways, queries, D).
    """
    ways, queries = query.shape[:2]
    logits = -squared_distances(query.flatten(0, 1), support.mean(1))
    label = torch.arange(ways, device=query.device).repeat_interleave(queries)
    return nn.functional.cross_entropy(logits, label)


class Prototypical:
    """Training on episodes: a few classes, told apart by the means of a few samples (Snell et al.).

    `epochs` of `episodes` each. The paper's advice: more `ways` than later, and as many `shots`.
    """

    def __init__(
        self,
        epochs: int = 10,
        episodes: int = 100,
        ways: int = 20,
        shots: int = 1,
        queries: int = 5,
        lr: float = 0.001,
    ):
        self.epochs, self.episodes, self.lr = epochs, episodes, lr
        self.ways, self.shots, self.queries = ways, shots, queries

    def __call__(
        self, encoder: Any, scenario: Scenario, device: torch.device, seed: int, advance: Advance
    ) -> None:
        """Train the encoder in place; `seed` draws the episodes."""
        x, y, _ = tensors_of(_general(scenario).dataset)
        if y.ndim > 1:
            raise InputError(
                "pretraining=prototypical: episodes are made of samples of one class each, and "
                "the general data has several targets a sample; set pretraining=supervised"
            )
        members = [(y == label).nonzero()[:, 0] for label in y.unique()]
        fewest = min(map(len, members))
        if self.ways > len(members) or self.shots + self.queries > fewest:
            raise InputError(
                f"pretraining.ways={self.ways}, shots={self.shots}, queries={self.queries}: the "
                f"general stream has {len(members)} classes of {fewest} samples or more; lower them"
            )
        x, generator = x.to(device), torch.Generator().manual_seed(seed)
        encoder.to(device).train()
        optimizer = torch.optim.Adam(encoder.parameters(), lr=self.lr, fused=True)
        for _ in range(self.epochs):
            for _ in range(self.episodes):
                support, query = draw_episode(
                    members, self.ways, self.shots, self.queries, generator
                )
                index = torch.cat([support, query], 1)
                inputs = scenario.prepare(x[index.flatten().to(device)], True)
                features = encoder(inputs).unflatten(0, index.shape)
                loss = prototypical_loss(*features.split([self.shots, self.queries], 1))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            advance()
