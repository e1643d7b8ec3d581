"""Cumulative training: each experience's data joined to all that came before."""

from typing import Any

from avalanche.benchmarks.utils import concat_datasets
from avalanche.core import SupervisedPlugin

from clplat.data import bytes_of


class Cumulative(SupervisedPlugin):
    """Goes on training the same model, on all data seen so far: replay with boundless memory."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    @property
    def memory_bytes(self) -> int:
        """Of the inputs of all experiences seen."""
        return sum(map(bytes_of, self.seen))

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        self.seen.append(strategy.adapted_dataset)
        strategy.adapted_dataset = concat_datasets(self.seen)
