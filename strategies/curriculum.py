"""A curriculum by mastery: go on once a level is solved (Khajehabdollahi et al. 2024)."""

from typing import Any

from avalanche.core import SupervisedPlugin

from clplat.errors import InputError


class Curriculum(SupervisedPlugin):
    """Trains on an experience until it is solved, and on no more once one is not.

    After each epoch the test experiences of all levels trained together are evaluated: the level
    is solved if their mean score and that of the newest exceed `threshold`. `epochs` are those of
    the whole run, None for train.epochs an experience; `solved` has the epochs that each solved
    level took.
    """

    needs_boundaries = True
    memory_bytes = 0

    def __init__(self, threshold: float = 0.98, epochs: int | None = None):
        super().__init__()
        if not 0 < threshold < 1:
            raise InputError(f"strategy.threshold={threshold}: expected a score in 0..1; try 0.98")
        self.threshold, self.epochs = threshold, epochs
        self.solved: list[int] = []
        self._tests: list[Any] = []
        self._spent = 0  # epochs
        self._together = 1  # levels trained at once: targets of a sample

    @property
    def measured(self) -> dict[str, Any]:
        return {"levels_solved": len(self.solved), "epochs_to_solve": list(self.solved)}

    def check(self, scenario: Any) -> None:
        """Keep the test experiences, of which the levels trained together are evaluated."""
        self._tests = list(scenario.test_stream)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        failed = len(self.solved) < strategy.clock.train_exp_counter
        if failed or (self.epochs is not None and self._spent >= self.epochs):
            strategy.stop_training()

    def after_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self._together = strategy.mb_y.shape[1] if strategy.mb_y.ndim > 1 else 1

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self._spent += 1
        level = strategy.clock.train_exp_counter
        scores = strategy.eval(self._tests[level - self._together + 1 : level + 1])
        if min(sum(scores) / len(scores), scores[-1]) > self.threshold:
            self.solved.append(strategy.clock.train_exp_epochs + 1)  # the clock counts after us
            strategy.stop_training()

    def state_dict(self) -> dict[str, Any]:
        return {"solved": list(self.solved), "spent": self._spent, "together": self._together}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.solved, self._spent = list(state["solved"]), state["spent"]
        self._together = state["together"]
