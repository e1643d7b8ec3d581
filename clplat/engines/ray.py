"""Each run a task of Ray's, on this machine or on a cluster of many."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from clplat.errors import Interrupted
from clplat.extras import needed
from clplat.launch import Job
from clplat.signals import listening
from clplat.sweep import Outcome, cancelled

GRACE = 60.0  # seconds, for runs that are asked to stop


def run(
    jobs: Sequence[Job], init: Mapping[str, Any], remote: Mapping[str, Any]
) -> Iterator[tuple[Job, Outcome]]:
    """`init`: of ray.init, without what is null; `remote`: the options of a task."""
    ray = needed("ray", "hydra/launcher=ray", "ray")
    ray.init(**{key: value for key, value in init.items() if value is not None})
    # A process for each run: one that dies is a task that Ray tries again, elsewhere if need be.
    task = ray.remote(max_calls=1, **remote)(carry_out)
    with listening() as asked:
        try:
            running = {task.remote(job): job for job in jobs}
            until = None
            while running and (until is None or time.monotonic() < until):
                if asked.number is not None and until is None:
                    until = time.monotonic() + GRACE
                    for reference in running:
                        ray.cancel(reference)
                ready, _ = ray.wait([*running], num_returns=1, timeout=1.0)
                for reference in ready:
                    job = running.pop(reference)
                    yield job, answer(ray, reference, asked.number)
        finally:
            ray.shutdown()
    if asked.number is not None:
        raise Interrupted(asked.number)


def carry_out(job: Job) -> Outcome:
    """On a node of the cluster."""
    return job()


def answer(ray: Any, reference: Any, asked: int | None) -> Outcome:
    """What a task has answered, or how it ended without."""
    try:
        return ray.get(reference)
    except Exception as error:
        if asked is not None and isinstance(error, ray.exceptions.TaskCancelledError):
            return cancelled(asked)
        first = str(error).strip().partition("\n")[0]
        return Outcome("failed", 1, f"{type(error).__name__}: {first}")
