"""Fine-tuning: train on each experience as it comes, and nothing else. The lower bound."""

from avalanche.core import SupervisedPlugin


class FineTune(SupervisedPlugin):
    """Adds nothing to the loop."""

    memory_bytes = 0
    one_task_a_batch = True
