"""Cumulative training: each experience's data joined to all that came before."""

from typing import Any

from avalanche.benchmarks.utils import concat_datasets
from avalanche.core import SupervisedPlugin

from clplat.data import held_bytes


class Cumulative(SupervisedPlugin):
    """Goes on training the same model, on all data seen so far: replay with boundless memory."""

    owns = ("the batches",)

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []  # places in the stream of the experiences seen, as they came
        self.memory_bytes = 0  # of the inputs and labels of all experiences seen

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        stream = strategy.experience.origin_stream
        earlier = [stream[place].dataset.train() for place in self.seen]
        datasets = [*earlier, strategy.adapted_dataset]
        strategy.adapted_dataset = concat_datasets(datasets)
        self.seen.append(strategy.experience.current_experience)
        self.memory_bytes = sum(map(held_bytes, datasets))

    def state_dict(self) -> dict[str, Any]:
        return {"seen": list(self.seen), "memory_bytes": self.memory_bytes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen, self.memory_bytes = list(state["seen"]), state["memory_bytes"]
