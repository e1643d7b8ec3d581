"""`tune.experiences=2`: settings are chosen on the first experiences, then the runs begin.

As Chaudhry et al. (2019, A-GEM) proposed: a learner that meets a stream once cannot choose its
settings by how the stream ends. Candidates are trained on the first experiences alone and compared
by their accuracy on a part of these experiences' training samples, over the seeds that are run.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

from clplat.arguments import MULTIRUN, key_of, parted
from clplat.errors import InputError

OPTUNA = "hydra/sweeper=optuna"
EXPERIENCES, VALIDATION = "tune.experiences", "tune.validation"
SEARCHED = {EXPERIENCES: "train.experiences", VALIDATION: "scenario.validation"}


def is_seed(override: str) -> bool:
    return key_of(override) in ("seeds", "seed")


def is_tuned(override: str) -> bool:
    """Whether its values are chosen among; those of scenarios and of groups are compared."""
    key = key_of(override)
    return "." in key and not key.startswith("scenario.")


def is_of_hydra(override: str) -> bool:
    """Whether it says something to Hydra, but how candidates are proposed."""
    key = key_of(override).lstrip("~")
    proposing = key.startswith(("hydra.sweeper", "hydra/sweeper"))
    return key.startswith(("hydra.", "hydra/")) and not proposing


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried: their overrides, and the accuracy for each seed."""

    overrides: tuple[str, ...]
    accuracies: list[float]

    @property
    def accuracy(self) -> float:
        return mean(self.accuracies)


@dataclass(frozen=True)
class Tuning:
    """What is asked: how many experiences, which part of them is kept, and the command line."""

    experiences: str
    validation: str
    arguments: list[str]

    @property
    def search(self) -> list[str]:
        """The command line that tries the candidates."""
        rest = [a for a in self.arguments if a not in MULTIRUN and key_of(a) != "out"]
        if OPTUNA in rest:  # which tries one candidate a run
            rest = [a for a in rest if not a.startswith("seeds=")]
        first = [f"train.experiences={self.experiences}", f"scenario.validation={self.validation}"]
        return ["--multirun", *rest, *first]

    def final(self, chosen: Candidate) -> list[str]:
        """The command line of the runs with the settings that were chosen."""
        kept = [a for a in self.arguments if is_seed(a) or key_of(a) == "out"]
        options = [o for o in parted(self.arguments)[1] if o not in MULTIRUN]
        asked = [a for a in self.arguments if is_of_hydra(a)]
        return ["--multirun", *options, *asked, *chosen.overrides, *kept]


def tuning(arguments: Sequence[str]) -> Tuning | None:
    """What a command line asks to be tuned; None if nothing."""
    given = {key_of(a): a.partition("=")[2] for a in arguments if a.startswith("tune.")}
    if not given:
        return None
    rest = [a for a in arguments if not a.startswith("tune.")]
    for key in given.keys() - SEARCHED.keys():
        raise InputError(f"{key}: expected {EXPERIENCES} or {VALIDATION}")
    experiences, validation = given.get(EXPERIENCES, ""), given.get(VALIDATION, "0.2")
    if not experiences.isdecimal() or int(experiences) < 1:
        raise InputError(
            f"{EXPERIENCES}={experiences}: expected how many of the first experiences settings are "
            f"chosen on, at least 1; for example {EXPERIENCES}=2"
        )
    for key, own in SEARCHED.items():
        if any(key_of(a) == own for a in rest):
            raise InputError(f"{own}: with {EXPERIENCES} that is {key}; set {key} instead")
    return Tuning(experiences, validation, rest)


def candidates(lines: Sequence[dict[str, Any]]) -> Iterator[list[Candidate]]:
    """For each combination of what is compared, the candidates, best first.

    `lines` are a sweep's. A candidate of which a run failed is left out.
    """
    found: dict[tuple[str, ...], dict[tuple[str, ...], list[float | None]]]
    found = defaultdict(lambda: defaultdict(list))
    for line in lines:
        own = [o for o in line["given"] if key_of(o) not in SEARCHED.values() and not is_seed(o)]
        compared = tuple(o for o in own if not is_tuned(o))
        found[compared][tuple(own)].append(line["objective"])
    for tried in found.values():
        whole = [
            Candidate(overrides, [a for a in accuracies if a is not None])
            for overrides, accuracies in tried.items()
            if None not in accuracies
        ]
        if not whole:
            raise InputError(
                f"{EXPERIENCES}: no candidate finished of {' '.join(next(iter(tried)))}; the runs "
                "above say why"
            )
        yield sorted(whole, key=lambda candidate: -candidate.accuracy)


def told(tried: list[Candidate], experiences: str) -> str:
    """Which candidate is chosen, and how the others did."""
    common = set.intersection(*(set(candidate.overrides) for candidate in tried))
    lines = [f"chosen on the first {experiences} experiences: {' '.join(tried[0].overrides)}"]
    for candidate in tried:
        own = " ".join(o for o in candidate.overrides if o not in common) or "the only candidate"
        lines.append(f"  {candidate.accuracy:.3f}  {own}")
    return "\n".join(lines)
