"""Cyclical curriculum learning (Kesgin & Amasyali 2023): ever other shares of the data an epoch.

Shares n = start, start/alpha, ..., end, end alpha, ..., start, ... until the budget is spent, which
is train.epochs passes over the data: an epoch of share n counts n. Each epoch draws floor(n |D|)
samples without replacement, sample i with probability

    p_i = s_i / sum_j s_j,    s_i = 1 / max(loss_i, least_loss),

its loss being that of another model. `strategy=curriculum` is another thing: by mastery.

Where we differ from the released code, or it from the paper:
- The last epoch is cut (there the budget is overrun), and batches run on from one epoch to the
  next: as many samples and as many updates as plain training, which start=end=1 is to the bit.
- An experience is scored by a copy of the model as the experience begins (the first: untrained).
- Losses are clamped from below; there at 1e-7, by what Keras does to probabilities.
- Increasing and decreasing go through the shares of half a cycle, as many epochs of each (there so
  many as a setting says, then the last for good). Self-paced is increasing with the losses of the
  model in training, taken anew for each epoch and drawn by; Kumar et al. 2010 have a threshold.
A model that scores is trained beside the budget, by default for as long: `measured` has its cost.
The controls: strategy=cyclical_random, and strategy=finetune with train.epochs doubled.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from avalanche.core import SupervisedPlugin
from torch import Tensor

from clplat.backbones.heads import NearestMean
from clplat.batches import Batches
from clplat.data import Columns, tensors_of
from clplat.drawn import drawn_data
from clplat.errors import InputError
from strategies.difficulty import losses_of, read_losses, trained_copy, write_losses
from strategies.pacing import CURRICULA

SCORES = ("self", "reverse", "transfer", "random")


def probabilities(losses: Tensor, least: float, reverse: bool = False) -> Tensor:
    """Of each sample (N,), proportional to 1/loss, or to the loss if `reverse`.

    Losses below `least` count as it.
    """
    losses = losses.double().clamp(min=least)
    scores = losses if reverse else 1 / losses
    return scores / scores.sum()


def draw(probability: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Indices of `size` samples drawn one after the other without replacement, in random order.

    All samples come by the one permutation that plain training draws.
    """
    if size < len(probability):
        # The first to arrive, if each comes at a random time with its probability as the rate.
        arrival = torch.empty_like(probability).exponential_(generator=generator) / probability
        drawn = arrival.topk(size, largest=False).indices
        return drawn[torch.randperm(size, generator=generator)]
    return torch.randperm(len(probability), generator=generator)


class CurriculumBatches:
    """Iterate over `[x, y, task]`: as many samples as there are, and the next time the next ones.

    They come from one epoch of the curriculum after another; `draw` gives the indices of the k-th.
    `epoch` have been drawn, and `rest` of the last is to come.
    """

    def __init__(self, columns: Columns, batch_size: int, draw: Callable[[int], Tensor]):
        self.columns, self.batch_size, self.draw = columns, batch_size, draw
        self.epoch = 0
        self.rest = torch.empty(0, dtype=torch.long, device=columns[0].device)

    def __len__(self) -> int:
        return -(-len(self.columns[1]) // self.batch_size)

    def __iter__(self) -> Iterator[Columns]:
        return self.after(0)

    def after(self, count: int) -> Iterator[Columns]:
        """Those after the first `count` batches, which have been taken before."""
        left = len(self.columns[1]) - count * self.batch_size
        while left > 0:
            index = self._take(min(self.batch_size, left))
            left -= len(index)
            yield [column.index_select(0, index) for column in self.columns]

    def _take(self, size: int) -> Tensor:
        while len(self.rest) < size:
            self.rest = torch.cat([self.rest, self.draw(self.epoch).to(self.rest.device)])
            self.epoch += 1
        index, self.rest = self.rest[:size], self.rest[size:]
        return index


def resident(strategy: Any) -> Columns:
    """The experience's samples, as our loop holds them or as items come out in Avalanche's."""
    if isinstance(strategy.dataloader, Batches):
        return strategy.dataloader.columns
    if hasattr(strategy, "make_batches"):
        raise InputError(
            "strategy: Cyclical draws from samples that are held as tensors, and these are read by "
            "a DataLoader; raise data.resident_gigabytes, or choose finetune"
        )
    columns = tensors_of(strategy.adapted_dataset, stored=False)
    return [column.to(strategy.device) for column in columns]


class Cyclical(SupervisedPlugin):
    """Trains an experience on epochs of ever other sizes, easy samples more often than hard ones.

    `curriculum`: cyclical, increasing, decreasing, or self_paced. `scores`: self (1/loss of a model
    trained plainly first, for `scorer_epochs` passes or None for train.epochs), reverse (its loss),
    transfer (1/loss as another run left it in the folder `read_losses` by its `write_losses`), or
    random (all alike).
    """

    needs_boundaries = True
    one_target = True  # a class for each sample
    owns = ("the batches",)

    def __init__(
        self,
        curriculum: str = "cyclical",
        scores: str = "self",
        start: float = 0.25,
        end: float = 1.0,
        alpha: float = 0.5,
        least_loss: float = 0.1,
        scorer_epochs: int | None = None,
        read_losses: str | None = None,
        write_losses: str | None = None,
    ):
        super().__init__()
        self.curriculum, self.scores, self.least_loss = curriculum, scores, least_loss
        self.start, self.end, self.alpha, self.scorer_epochs = start, end, alpha, scorer_epochs
        self.read_losses, self.write_losses = read_losses, write_losses
        self.measured = {"scorer_iterations": 0, "scored_samples": 0, "scoring_seconds": 0.0}
        self._losses = torch.empty(0)  # (N,) of the current experience
        self._experience = 0
        self._batches: CurriculumBatches | None = None  # None between experiences
        self._place: dict[str, Any] | None = None  # in an experience, as it was saved
        self._check_numbers()
        self._check_choices()

    def _check_numbers(self) -> None:
        start, end, alpha, epochs = self.start, self.end, self.alpha, self.scorer_epochs
        if not (0 < start <= end <= 1 and 0 < alpha < 1):
            raise InputError(
                f"strategy.start={start}, strategy.end={end}, strategy.alpha={alpha}: expected "
                "shares of the data, 0 < start <= end <= 1, and a ratio between them, "
                "0 < alpha < 1; for example 0.25, 1 and 0.5"
            )
        if not self.least_loss > 0:
            raise InputError(
                f"strategy.least_loss={self.least_loss}: expected more than 0, for 1/loss to be "
                "finite; for example strategy.least_loss=0.1"
            )
        if epochs is not None and (not isinstance(epochs, int) or epochs < 1):
            raise InputError(
                f"strategy.scorer_epochs={epochs}: expected a whole number of at least 1; raise "
                "it, or leave it null for train.epochs"
            )

    def _check_choices(self) -> None:
        choices = {"curriculum": tuple(CURRICULA), "scores": SCORES}
        for key, known in choices.items():
            if getattr(self, key) not in known:
                given = f"strategy.{key}={getattr(self, key)}"
                raise InputError(f"{given}: choose one of {', '.join(known)}")
        if self.curriculum == "self_paced" and self.scores != "self":
            raise InputError(
                f"strategy.scores={self.scores}: a self-paced curriculum goes by the losses of the "
                "model in training; set strategy.scores=self, or strategy.curriculum=increasing"
            )
        if (self.scores == "transfer") != (self.read_losses is not None):
            raise InputError(
                f"strategy.scores={self.scores}, "
                f"strategy.read_losses={self.read_losses or 'null'}: transfer goes by the folder "
                "that another run wrote by strategy.write_losses, and nothing else does; set both, "
                "or neither"
            )
        if self.write_losses is not None and not self._trains_scorer:
            raise InputError(
                f"strategy.write_losses={self.write_losses}: no other model is trained here; set "
                "strategy.scores=self or reverse, and a curriculum that is not self_paced"
            )

    @property
    def _trains_scorer(self) -> bool:
        return self.scores in ("self", "reverse") and self.curriculum != "self_paced"

    def check(self, scenario: Any) -> None:
        """Refuse samples that do not stay, and files that are not of these samples."""
        if drawn_data(scenario.train_stream[0].dataset):
            raise InputError(
                "strategy: Cyclical draws again and again from samples that lie ready, and this "
                "scenario draws fresh ones for every batch; choose finetune, or a scenario of "
                "samples, such as split_digits"
            )
        if scenario.tasks and (self.read_losses or self.write_losses):
            raise InputError(
                "strategy.read_losses, strategy.write_losses: a folder holds the losses of one "
                f"task's experiences, and this scenario has {len(scenario.tasks)} tasks; set both "
                "to null"
            )
        if self.read_losses is not None:
            for experience in scenario.train_stream:
                read_losses(self.read_losses, experience)

    def check_model(self, model: Any) -> None:
        """Refuse a head that does not answer in evaluation by what is trained."""
        if self.scores in ("self", "reverse") and isinstance(
            getattr(model, "head", None), NearestMean
        ):
            raise InputError(
                "head=nearest_mean: samples are scored by what the model answers in evaluation, "
                "and its means are of earlier experiences then; set head=auto, or "
                "strategy.scores=random"
            )

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        columns = resident(strategy)
        shape = (self.start, self.end, self.alpha, strategy.train_epochs, len(columns[1]))
        sizes = CURRICULA[self.curriculum](*shape)
        self._batches = CurriculumBatches(
            columns,
            strategy.train_mb_size,
            lambda epoch: self._draw(strategy, columns, sizes[epoch]),
        )
        strategy.dataloader = self._batches
        place, self._place = self._place, None
        if place is not None and place["experience"] == strategy.clock.train_exp_counter:
            self._go_on(self._batches, place)
        else:
            self._losses = self._score(strategy, columns)
        self._experience = strategy.clock.train_exp_counter

    def _score(self, strategy: Any, columns: Columns) -> Tensor:
        """What the samples of an experience are drawn by from its beginning to its end."""
        if self.read_losses is not None:
            return read_losses(self.read_losses, strategy.experience)
        if not self._trains_scorer:
            return torch.ones(len(columns[1]))
        began, epochs = time.perf_counter(), self.scorer_epochs or strategy.train_epochs
        loop = trained_copy(strategy, columns, epochs)
        self.measured["scorer_iterations"] += loop.clock.train_iterations
        losses = self._measure(loop, columns, began)
        if self.write_losses is not None:
            write_losses(self.write_losses, strategy.experience, losses, columns[1])
        return losses

    def _measure(self, loop: Any, columns: Columns, began: float) -> Tensor:
        losses = losses_of(loop, columns)
        self.measured["scored_samples"] += len(losses)
        self.measured["scoring_seconds"] += time.perf_counter() - began
        return losses

    def _draw(self, strategy: Any, columns: Columns, size: int) -> Tensor:
        losses = self._losses
        if self.curriculum == "self_paced" and size < len(columns[1]):
            losses = self._measure(strategy, columns, time.perf_counter())
        probability = probabilities(losses, self.least_loss, self.scores == "reverse")
        return draw(probability, size, getattr(strategy, "order", None))

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        self._batches, self._losses = None, torch.empty(0)

    def state_dict(self) -> dict[str, Any]:
        place = self._place
        if self._batches is not None:
            place = {
                "experience": self._experience,
                "losses": self._losses,
                "epoch": self._batches.epoch,
                "rest": self._batches.rest.clone(),
            }
        return {"place": place, "measured": dict(self.measured)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._place, self.measured = state["place"], dict(state["measured"])
        if self._batches is not None and self._place is not None:  # in the midst of an experience
            self._go_on(self._batches, self._place)
            self._place = None

    def _go_on(self, batches: CurriculumBatches, place: dict[str, Any]) -> None:
        self._losses, batches.epoch = place["losses"], place["epoch"]
        batches.rest = place["rest"].to(batches.rest.device)
