"""The analyses of recurrent networks that learn ever longer memories (Khajehabdollahi et al.)."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from clplat.analysis.ablation import ablation_curve
from clplat.analysis.generalisation import decoded_levels, lengthened, mean_score
from clplat.analysis.perturbation import perturbation_curve
from clplat.analysis.timescales import network_time_constants
from clplat.analysis.weights import mean_recurrent_weight, recurrent_weights
from clplat.backbones.levels import Levels
from clplat.backbones.recurrent import Recurrent
from clplat.data import Columns
from clplat.errors import InputError, at_least
from clplat.evaluation import Score
from clplat.layers.recurrent import LeakyRNN
from clplat.modes import in_evaluation

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4)  # of the units that are silenced
NOISE = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)  # deviations, relative to that of the weights
TIMES = (1, 2, 5, 10)  # the longest of the strings of solved levels
BATCHES = 8  # that an accuracy is measured on: as many lengths of strings
LONG_BATCHES = 2  # of them, where the strings are lengthened, which takes most of the time

Measured = dict[str, float | Tensor]


class RecurrentAnalysis:
    """Time constants, weights, ablations, perturbations and generalisation of a `Recurrent`.

    Khajehabdollahi et al. 2024. `steps` and `trials` drive the network for its time constants, of
    which autocorrelations have so many `lags`; after an experience a tenth of the steps. Ablations
    and noise are the mean of `draws`. Accuracies are those of `samples` test strings. A level is
    solved if its exceeds `solved`; the last such is ablated and perturbed, or, if there is none,
    the one of highest accuracy. Read-outs are fitted for that level and as many as `beyond` after
    it, of those that the scenario has. Every call draws from `seed` anew, so that what differs
    between two is the network.
    """

    def __init__(
        self,
        steps: int = 10000,
        trials: int = 10,
        lags: int = 30,
        draws: int = 5,
        samples: int = 2000,
        beyond: int = 5,
        solved: float = 0.98,
        seed: int = 0,
    ):
        at_least("analysis", 1, trials=trials)
        at_least("analysis", 3, lags=lags)  # as many as two exponentials have parameters
        at_least("analysis", 20 * lags, steps=steps)
        at_least("analysis", 1, draws=draws)
        at_least("analysis", 10 * BATCHES, samples=samples)
        at_least("analysis", 0, beyond=beyond)
        if not 0 < solved < 1:
            raise InputError(f"analysis.solved={solved}: expected a score in 0..1; try 0.98")
        self.steps, self.trials, self.lags, self.draws = steps, trials, lags, draws
        self.samples, self.beyond, self.solved, self.seed = samples, beyond, solved, seed

    def check(self, model: Any) -> None:
        """InputError for a model that is not a `Recurrent` with the heads of a curriculum."""
        if not hasattr(model, "encoder"):
            raise InputError(
                "analysis=recurrent: it looks at the weights of one network, and a hypernetwork "
                "generates others for each task; set hypernet=none, or analysis=none"
            )
        if not isinstance(model.encoder, Recurrent):
            raise InputError(
                f"analysis: of recurrent networks, and the backbone is "
                f"{type(model.encoder).__name__}; set backbone=recurrent, or analysis=none"
            )
        if not isinstance(model.head, Levels):
            raise InputError(
                f"analysis: of the levels of a curriculum, and the head is "
                f"{type(model.head).__name__}; set scenario=n_parity head=levels, or analysis=none"
            )

    def after_experience(self, learner: Any, index: int) -> Measured:
        """Time constants and the mean recurrent weight: what is cheap."""
        self.check(learner.model)
        with torch.no_grad(), in_evaluation(learner.model):
            encoder = learner.model.encoder
            return _of_network(encoder, self._time_constants(encoder, self.steps // 10))

    def at_end(self, learner: Any, scenario: Any) -> Measured:
        """The same over all `steps`, how many levels are solved, and all curves, of x and y.

        - ablation/random, ablation/slowest_first: share of silent units, accuracy; the slowest by
          tau, or by the network's time constant where units have no tau
        - perturbation: noise on the recurrent weights relative to their deviation, accuracy
        - generalisation/length: steps of strings, 1 to 10 times the longest that solved levels
          have; accuracy in the mean over these levels
        - generalisation/longest: level, accuracy on the longest of these
        - generalisation/decoding: level, accuracy of a linear read-out fitted anew

        Levels count from 0, as experiences do. Layers without recurrent weights from unit to unit
        have neither ablation nor perturbation.
        """
        model, encoder = learner.model, learner.model.encoder
        self.check(model)
        with torch.no_grad(), in_evaluation(model):
            levels = [self._batches(learner, experience) for experience in scenario.test_stream]
            scores = [mean_score(model, batches, scenario.score) for batches in levels]
            solved = [k for k, score in enumerate(scores) if score > self.solved]
            level = max(solved, default=scores.index(max(scores)))
            constants = self._time_constants(encoder, self.steps)
            slowness = next(iter(constants.values())).nan_to_num(0)

            def accuracy() -> float:
                return mean_score(model, levels[level], scenario.score)

            last = min(level + self.beyond, len(levels) - 1)
            decoded = decoded_levels(encoder, levels[level : last + 1])
            return {
                **_of_network(encoder, constants),
                "levels_solved_at_end": float(len(solved)),
                "level_analysed": float(level),
                **self._robustness(encoder, accuracy, slowness),
                **self._lengths(model, scenario.score, levels, solved or [level]),
                "generalisation/decoding": _curve(range(level, last + 1), decoded),
            }

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _batches(self, learner: Any, experience: Any) -> list[Columns]:
        """Test samples, prepared; the strings of a batch are of one length."""
        size = -(-self.samples // BATCHES)
        batches = islice(learner.make_batches(experience.dataset.eval(), size), BATCHES)
        return [[learner.prepare(x, False), y, task] for x, y, task in batches]

    def _time_constants(self, encoder: Recurrent, steps: int) -> dict[str, Tensor]:
        """By name (units,): tau first, where units have one."""
        taus = {}
        if isinstance(encoder.layer, LeakyRNN):
            taus["tau"] = encoder.layer.tau.detach().clamp(min=1).cpu()
        generator, sizes = self._generator(), (steps, self.trials, self.lags)
        return {**taus, "network_time_constant": network_time_constants(encoder, generator, *sizes)}

    def _robustness(
        self, encoder: Recurrent, accuracy: Callable[[], float], slowness: Tensor
    ) -> Measured:
        weights, generator = recurrent_weights(encoder.layer), self._generator()
        if weights is None:
            return {}
        orders = [torch.randperm(encoder.width, generator=generator) for _ in range(self.draws)]
        random = [ablation_curve(encoder, accuracy, order, SHARES) for order in orders]
        slowest = slowness.argsort(descending=True)
        return {
            "ablation/random": torch.stack(random).mean(0),
            "ablation/slowest_first": ablation_curve(encoder, accuracy, slowest, SHARES),
            "perturbation": perturbation_curve(weights, accuracy, NOISE, self.draws, generator),
        }

    def _lengths(
        self, model: nn.Module, score: Score, levels: Sequence[list[Columns]], solved: list[int]
    ) -> Measured:
        generator = self._generator()
        longest = max(x.shape[1] for level in solved for x, _, _ in levels[level])
        times, rows = [longest * factor for factor in TIMES], []
        for level in solved:
            rows.append([])
            for time in times:
                few = levels[level][:LONG_BATCHES]
                longer = [[lengthened(x, time, generator), y, task] for x, y, task in few]
                rows[-1].append(mean_score(model, longer, score))
        accuracies = torch.tensor(rows)  # (solved levels, times)
        return {
            "generalisation/length": _curve(times, accuracies.mean(0).tolist()),
            "generalisation/longest": _curve(solved, accuracies[:, -1].tolist()),
        }


def _of_network(encoder: Recurrent, constants: dict[str, Tensor]) -> Measured:
    """Histograms and means over the units that have a time constant; the mean weight."""
    measured: Measured = {}
    for name, values in constants.items():
        known = values[values.isfinite()]
        if len(known):
            measured[name], measured[f"mean_{name}"] = known, float(known.mean())
    weights = recurrent_weights(encoder.layer)
    if weights is not None and encoder.width > 1:
        measured["mean_recurrent_weight"] = mean_recurrent_weight(weights.detach())
    return measured


def _curve(x: Sequence[float], y: Sequence[float]) -> Tensor:
    return torch.tensor([*zip(x, y, strict=True)])
