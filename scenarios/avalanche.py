"""Any Avalanche benchmark as a scenario."""

from typing import Any, cast

from avalanche.benchmarks import CLScenario
from avalanche.benchmarks.scenarios.supervised import with_classes_timeline

from clplat.errors import InputError
from clplat.scenario import Scenario


def avalanche(
    benchmark: CLScenario, experiences: int | None = None, task_labels: bool = False, seed: int = 0
) -> Scenario:
    """Take a benchmark as it is; classes and input shape are read from its data.

    `experiences`: how many it must have, where one wants to be sure. `seed` changes nothing: the
    benchmark's own argument sets its order.
    """
    if not hasattr(next(iter(benchmark.streams["train"])), "classes_in_this_experience"):
        benchmark = cast(CLScenario, with_classes_timeline(benchmark))
    train: Any = benchmark.streams["train"]
    if experiences is not None and experiences != len(train):
        raise InputError(
            f"scenario.experiences={experiences}: the benchmark has {len(train)}; "
            "set its own argument (scenario.benchmark...), or scenario.experiences=null"
        )
    targets = {int(y) for experience in train for y in experience.dataset.targets.uniques}
    first = train[0].dataset[0][0]
    return Scenario(
        benchmark.streams.values(),
        n_classes=max(targets) + 1,
        input_shape=tuple(first.shape),
        task_labels=task_labels,
    )
