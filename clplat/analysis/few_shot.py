"""Few-shot accuracy on classes yet to come, by the nearest class mean of the encoder's features."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from clplat.backbones.prototypes import squared_distances
from clplat.errors import InputError, at_least
from clplat.modes import in_evaluation
from clplat.pretraining import draw_episode


def episode_accuracy(support: Tensor, query: Tensor) -> Tensor:
    """The share of queries whose own class has the nearest mean of supports (Euclidean).

    Of features (ways, shots, D) and (ways, queries, D).
    """
    nearest = squared_distances(query.flatten(0, 1), support.mean(1)).argmin(1)
    label = torch.arange(len(query), device=query.device).repeat_interleave(query.shape[1])
    return (nearest == label).double().mean()


def held_out(stream: Sequence[Any], experiences: int, ways: int) -> list[int]:
    """Classes of the last experiences that no earlier one has; InputError for fewer than `ways`."""
    stream = list(stream)
    before, last = stream[:-experiences], stream[-experiences:]
    if not before:
        raise InputError(
            f"analysis.experiences={experiences}: the classes of so many experiences are held out, "
            f"and the scenario has {len(stream)}; lower it, or choose a scenario with more"
        )
    known, later = (
        {c for e in part for c in e.classes_in_this_experience} for part in (before, last)
    )
    if len(later - known) < ways:
        raise InputError(
            f"analysis.ways={ways}: the last {experiences} experiences have {len(later - known)} "
            "classes that no earlier one has; lower it, raise analysis.experiences, or choose a "
            "scenario of ever new classes, such as split_digits"
        )
    return sorted(later - known)


class FewShot:
    """How well an encoder tells classes apart that it was not trained on, from a few samples each.

    The classes of the last `experiences`, always the same ones, are asked for after each experience
    before these: episodes of `ways` classes, `shots` samples of each for its mean and `queries` to
    be told, drawn from `seed` alone, so that what differs between two figures is the encoder.
    `few_shot` is the accuracy over `episodes`; a strategy that has slow weights
    (`slow_weights(model)`, a context) has `few_shot_slow` of those beside. A strategy that trains
    on all experiences at once has none: no class is yet to come.
    """

    def __init__(
        self,
        experiences: int = 2,
        ways: int = 4,
        shots: int = 5,
        queries: int = 15,
        episodes: int = 200,
        seed: int = 0,
    ):
        at_least("analysis", 1, experiences=experiences)
        at_least("analysis", 2, ways=ways)
        at_least("analysis", 1, shots=shots, queries=queries, episodes=episodes)
        self.experiences, self.ways, self.shots = experiences, ways, shots
        self.queries, self.episodes, self.seed = queries, episodes, seed
        self.found: dict[str, list[tuple[int, float]]] = {}  # experiences seen, accuracy

    def check(self, model: Any) -> None:
        """InputError for a model without features to tell classes by."""
        if not hasattr(model, "features"):
            raise InputError(
                f"analysis=few_shot: {type(model).__name__} has no features to tell classes by; "
                "choose another strategy, or analysis=none"
            )

    def after_experience(self, learner: Any, index: int) -> dict[str, float]:
        """Both accuracies, while classes are held out."""
        stream = list(learner.experience.origin_stream)
        classes, later = held_out(stream, self.experiences, self.ways), stream[-self.experiences :]
        ends = index >= len(stream) - len(later)
        if ends or any(getattr(plugin, "all_at_once", False) for plugin in learner.plugins):
            return {}
        slow = [p.slow_weights for p in learner.plugins if hasattr(p, "slow_weights")]
        values = {}
        for suffix, weights in (("", nullcontext), *(("_slow", s) for s in slow)):
            with torch.no_grad(), in_evaluation(learner.model), weights(learner.model):
                values[f"few_shot{suffix}"] = self._accuracy(learner, later, classes)
        for name, value in values.items():
            self.found.setdefault(name, []).append((index + 1, value))
        return values

    def _accuracy(self, learner: Any, later: Sequence[Any], classes: Sequence[int]) -> float:
        pairs = []
        for experience in later:
            for x, y, *_ in learner.make_batches(experience.dataset.eval(), learner.eval_mb_size):
                x = learner.prepare(x.to(learner.device), False)
                pairs.append((learner.model.features(x).cpu(), y.cpu()))
        points, label = (torch.cat(column) for column in zip(*pairs, strict=True))
        members = [(label == c).nonzero()[:, 0] for c in classes]
        fewest = min(map(len, members))
        if self.shots + self.queries > fewest:
            raise InputError(
                f"analysis.shots={self.shots}, analysis.queries={self.queries}: a class that is "
                f"held out has {fewest} samples; lower one of them"
            )
        generator, sizes = torch.Generator().manual_seed(self.seed), (self.shots, self.queries)
        drawn = [draw_episode(members, self.ways, *sizes, generator) for _ in range(self.episodes)]
        return float(torch.stack([episode_accuracy(points[s], points[q]) for s, q in drawn]).mean())

    def state_dict(self) -> dict[str, Any]:
        return {"found": self.found}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.found = state["found"]

    def check_scenario(self, scenario: Any) -> None:
        """InputError for a scenario without classes to hold out."""
        held_out(scenario.train_stream, self.experiences, self.ways)

    def at_end(self, learner: Any, scenario: Any) -> dict[str, Tensor]:
        """The accuracies against experiences seen, a curve each."""
        return {f"{name}/by_experiences": torch.tensor(rows) for name, rows in self.found.items()}
