"""Any Avalanche benchmark as a scenario."""

from avalanche.benchmarks import CLScenario

from clplat.errors import InputError
from scenarios.streams import describe


def avalanche(
    benchmark: CLScenario, experiences: int | None = None, task_labels: bool = False, seed: int = 0
) -> CLScenario:
    """Take a benchmark as it is; classes and input shape are read from its data.

    `experiences`: how many it must have, where one wants to be sure. `seed` changes nothing: the
    benchmark's own argument sets its order.
    """
    if experiences is not None and experiences != len(benchmark.train_stream):
        raise InputError(
            f"scenario.experiences={experiences}: the benchmark has {len(benchmark.train_stream)}; "
            "set its own argument (scenario.benchmark...), or scenario.experiences=null"
        )
    targets = {int(y) for e in benchmark.train_stream for y in e.dataset.targets.uniques}
    first = benchmark.train_stream[0].dataset[0][0]
    return describe(benchmark, max(targets) + 1, task_labels, tuple(first.shape))
