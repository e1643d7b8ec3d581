"""Which strategies a network of generated weights goes with."""

from typing import Any

from clplat.errors import InputError
from clplat.fit import from_avalanche, name_of


def check_strategy(strategy: Any, task_labels: bool, statistics: bool) -> None:
    """Refuse a strategy that mixes tasks in a batch where the network cannot.

    `task_labels`: whether it is told each sample's task; `statistics`: whether its target has
    running statistics of batch norm.
    """
    name = name_of(strategy)
    if from_avalanche(strategy):
        raise InputError(
            f"strategy: Avalanche's {name} expects a network that owns its weights; choose a "
            "strategy of ours, or hypernet=none"
        )
    if not task_labels and not getattr(strategy, "one_task_a_batch", False):
        raise InputError(
            f"strategy: {name} may ask for answers of earlier tasks in training, and a "
            "hypernetwork has to be told which; set scenario.task_labels=true, or "
            "strategy=hypernet, or strategy=finetune"
        )
    if getattr(strategy, "all_at_once", False):
        raise InputError(
            f"strategy: {name} trains on all tasks at once, and embeddings of tasks are "
            "trained in their own experience; for an upper bound set hypernet=separate "
            "strategy=finetune"
        )
    if statistics and not getattr(strategy, "one_task_a_batch", False):
        raise InputError(
            f"strategy: {name} may answer for several tasks at a time, and the running "
            "statistics of batch norm are of one task each; choose a backbone without batch "
            "norm, or strategy=hypernet"
        )
