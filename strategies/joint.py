"""Joint training: all experiences at once. The upper bound, and the reference of intransigence."""

from typing import Any

from avalanche.benchmarks.utils import concat_datasets
from avalanche.core import SupervisedPlugin
from avalanche.models.dynamic_modules import avalanche_model_adaptation

from clplat.data import held_bytes


class Joint(SupervisedPlugin):
    """Trains on the whole stream when the first experience comes, and not at all afterwards.

    `train.epochs` is the number of passes over the union, so the total number of samples seen is
    that of the other strategies.
    """

    all_at_once = True
    owns = ("the batches",)
    memory_bytes = 0  # of the inputs and labels of all experiences at once

    def after_train_dataset_adaptation(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_counter == 0:
            stream = strategy.experience.origin_stream
            self.memory_bytes = sum(held_bytes(e.dataset) for e in stream)
            strategy.adapted_dataset = concat_datasets([e.dataset.train() for e in stream])
            for experience in stream:
                avalanche_model_adaptation(strategy.model, experience)

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        if strategy.clock.train_exp_counter > 0:
            strategy.stop_training()
