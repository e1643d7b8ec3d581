"""A learner's checkpoints, inside experiences too, and how it goes on from one."""

import copy
import logging
from collections.abc import Iterable
from typing import Any

from avalanche.core import SupervisedPlugin

from clplat.fit import name_of
from clplat.keeper import Keeper
from clplat.learner import Learner
from clplat.several import parts_of
from clplat.state import Place, State, draws, learner_state, load_learner_state

log = logging.getLogger("clplat")


class Checkpoints(SupervisedPlugin):
    """Saves a learner by a keeper: the state now, and that in which the experience began."""

    def __init__(self) -> None:
        super().__init__()
        self.keeper: Keeper | None = None  # none: nothing is saved
        self._begun: State = {}
        self._epoch_draws: State = {}

    def experience_begins(self, learner: Any, index: int) -> None:
        """Before the learner is told to train on experience `index`."""
        if self.keeper is not None:
            learner.make_optimizer()  # an evaluation may have made heads that it does not hold
            self._begun = {"index": index, "begun": copy.deepcopy(learner_state(learner))}
            if self.keeper.due("experiences"):
                self.keeper.save(self._begun)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if self.keeper is not None:
            self._epoch_draws = draws(strategy)

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        if self.keeper is None or len(strategy.losses) % strategy.accumulate:
            return  # gradients of a part of an update are not saved
        if self.keeper.due("iterations"):
            now = {"state": learner_state(strategy), "epoch_draws": self._epoch_draws}
            self.keeper.save({**self._begun, "now": now})

    def state_dict(self) -> State:
        return {"epoch_draws": self._epoch_draws}

    def load_state_dict(self, state: State) -> None:
        """In an epoch that was begun again, the draws are those of its first beginning."""
        self._epoch_draws = state["epoch_draws"]


def restored(
    learner: Any, saved: State, evaluated: Iterable[Any], trained: Iterable[Any]
) -> Place | None:
    """Put a learner to the beginning of the experience that was saved; the place inside it.

    The model had been `evaluated` on some experiences, then `trained` on others.
    """
    learner.meet(evaluated, training=False)
    learner.meet(trained, training=True)
    learner.make_optimizer()
    load_learner_state(learner, saved["begun"])
    now = saved.get("now")
    return Place(now["state"], now["epoch_draws"]) if now else None


def keeps_state(learner: Any, strategy: Any) -> bool:
    """Whether a run with this strategy can be saved; if it cannot, the log says why."""
    if not isinstance(learner, Learner):
        parts = [strategy]
    else:
        parts = [p for p in parts_of(strategy) if vars(p) and not hasattr(p, "state_dict")]
    for part in parts:
        log.info(
            "%s has no state_dict: the run is not saved as it goes, and one that breaks off "
            "begins anew",
            name_of(part),
        )
    return not parts
