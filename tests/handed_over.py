"""States that go through a file, and strategies that take over in mid-experience."""

import io
from collections.abc import Callable
from typing import Any

import torch
from avalanche.core import SupervisedPlugin

from clplat.learner import HOOKS


def through_a_file(state: Any) -> Any:
    """As it comes back from a file that runs no code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class HandedOver(SupervisedPlugin):
    """After iteration `at` a new strategy takes over, given the state of the first through a file.

    `again(old, new, loop)` does what else comes with it, such as what a run that is taken up does.
    """

    def __init__(
        self,
        make: Callable[[], Any],
        at: int,
        again: Callable[[Any, Any, Any], None] = lambda old, new, loop: None,
    ):
        super().__init__()
        self.make, self.at, self.again = make, at, again
        self.strategy, self.seen = make(), 0

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.strategy.after_training_iteration(strategy, **kwargs)
        self.seen += 1
        if self.seen == self.at:
            old, self.strategy = self.strategy, self.make()
            self.strategy.load_state_dict(through_a_file(old.state_dict()))
            self.again(old, self.strategy, strategy)


def _passed_on(hook: str) -> Callable[..., None]:
    def call(self: HandedOver, strategy: Any, **kwargs: Any) -> None:
        getattr(self.strategy, hook)(strategy, **kwargs)

    return call


for _hook in HOOKS:
    if _hook not in vars(HandedOver):
        setattr(HandedOver, _hook, _passed_on(_hook))
