"""Training nothing: the encoder stays as it was pre-trained, and heads that fit means still do."""

from typing import Any

from avalanche.core import SupervisedPlugin


class Frozen(SupervisedPlugin):
    """Passes every experience by without an update.

    With head=prototypes and pretraining=prototypical it is a prototypical network (Snell et al.
    2017); with head=nearest_mean it is the nearest-mean classifier on a pre-trained encoder.
    """

    needs_boundaries = True
    frozen = True  # what prototypes need
    memory_bytes = 0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        strategy.stop_training()
