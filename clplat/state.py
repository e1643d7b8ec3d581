"""All that training changes in a learner, taken out and put back: to the bit."""

import copy
import random
from collections.abc import Iterable
from itertools import islice
from typing import Any

import numpy as np
import torch

State = dict[str, Any]  # of tensors, numbers and strings alone


def generators() -> State:
    """The global generators of Python, NumPy and torch."""
    version, words, gauss = random.getstate()
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002 - Avalanche's plugins draw from it
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *rest],  # type: ignore[union-attr]
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_generators(state: State) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])


def draws(learner: Any) -> State:
    """All generators that training draws from."""
    return {"order": learner.order.get_state(), "global": generators()}


def set_draws(learner: Any, state: State) -> None:
    learner.order.set_state(state["order"])
    set_generators(state["global"])


def stateful(learner: Any) -> list[Any]:
    """The plugins that have a state, the clock apart."""
    return [plugin for plugin in learner.plugins if hasattr(plugin, "state_dict")]


def learner_state(learner: Any) -> State:
    """What training changes, of the learner and its plugins. Tensors are shared, not copied."""
    return {
        "model": learner.model.state_dict(),
        "optimizer": learner.optimizer.state_dict(),
        "scaler": learner.scaler.state_dict() if learner.scaler else None,
        "clock": dict(vars(learner.clock)),
        "losses": list(learner.losses),
        "stopping": learner.stopping,
        "plugins": [plugin.state_dict() for plugin in stateful(learner)],
        "draws": draws(learner),
    }


def load_learner_state(learner: Any, state: State) -> None:
    """Put a state back into a learner whose model has met the same experiences.

    Its optimizer must hold the parameters that it held then.
    """
    state = copy.deepcopy(state)  # plugins may write into what they are given
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    if learner.scaler:
        learner.scaler.load_state_dict(state["scaler"])
    vars(learner.clock).update(state["clock"])
    learner.losses, learner.stopping = state["losses"], state["stopping"]
    for plugin, own in zip(stateful(learner), state["plugins"], strict=True):
        plugin.load_state_dict(own)
    set_draws(learner, state["draws"])


class Place:
    """A moment inside an experience, to which a learner returns that begins the experience again.

    What an experience's beginning makes, such as loaders, is made anew from the state that there
    was then; so is the epoch's order of samples. Then comes the state of the moment.
    """

    def __init__(self, state: State, epoch_draws: State):
        self.state, self.epoch_draws = state, epoch_draws

    @property
    def epoch(self) -> int:
        """Of the experience."""
        return self.state["clock"]["train_exp_epochs"]

    def enter_experience(self, learner: Any) -> None:
        """After the experience's beginning, before the epoch's."""
        load_learner_state(learner, self.state)

    def enter_epoch(self, learner: Any, batches: Iterable[Any]) -> Iterable[Any]:
        """After the epoch's beginning: the batches that are left.

        Where the loader has a method `after(count)`, it gives them; else those before are taken
        from it once more.
        """
        set_draws(learner, self.epoch_draws)
        count = len(self.state["losses"])
        if hasattr(batches, "after"):
            coming = batches.after(count)  # type: ignore[attr-defined]
        else:
            coming = iter(batches)
            for _ in islice(coming, count):
                pass
        load_learner_state(learner, self.state)
        return coming
