"""Each run a job of SLURM's, or, to try that out, a process of this machine; by submitit."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.console import Console

from clplat.errors import Interrupted
from clplat.extras import needed
from clplat.launch import Job
from clplat.signals import listening
from clplat.sweep import Outcome, cancelled

SECONDS = 1.0  # between two looks at the answers
QUEUE_SECONDS = 15.0  # between two at the queue, which all users of a cluster share
COMMON = ("name", "timeout_min", "mem_gb", "cpus_per_task", "gpus_per_node", "nodes")


def run(
    jobs: Sequence[Job],
    cluster: str,
    folder: str,
    at_once: int | None,
    max_num_timeout: int,
    **parameters: Any,
) -> Iterator[tuple[Job, Outcome]]:
    """`parameters` as submitit's; null: as the cluster has it."""
    submitit = needed("submitit", f"hydra/launcher=submitit_{cluster}", "slurm")
    given = {f"{cluster}_max_num_timeout": max_num_timeout}
    executor = submitit.AutoExecutor(os.path.abspath(folder), cluster=cluster, **given)
    executor.update_parameters(
        **{
            key if key in COMMON else f"slurm_{key}": value
            for key, value in parameters.items()
            if value is not None
        }
    )
    slurm = cluster == "slurm"
    most = at_once or (len(jobs) if slurm else len(os.sched_getaffinity(0)))
    waiting, running = [*jobs], {}
    jobs_of = Queue() if slurm else Processes()

    with listening() as asked:
        while waiting or running:
            if asked.number is not None:
                stop(running.values(), slurm)
                yield from ((job, cancelled(asked.number)) for job in jobs if job.number in running)
                raise Interrupted(asked.number)
            batch = waiting[: most - len(running)]
            del waiting[: len(batch)]
            if batch:
                handles = executor.submit_array([Submitted(job) for job in batch])
                running |= dict(zip([job.number for job in batch], handles, strict=True))
            time.sleep(SECONDS)
            for job in [job for job in jobs if job.number in running]:
                outcome = answer(running[job.number], jobs_of)
                if outcome is not None:
                    del running[job.number]
                    tell(job, outcome)
                    yield job, outcome


def stop(handles: Iterable[Any], slurm: bool) -> None:
    """Have what is running saved and ended, and what waits in a queue taken out of it."""
    for handle in handles:
        if slurm:
            handle.cancel(check=False)
        elif not handle.done():  # the process that has started it hands the signal on
            os.kill(int(handle.job_id), signal.SIGTERM)


class Submitted:
    """A job as submitit calls it, in a process of its own, and again when it is requeued."""

    def __init__(self, job: Job):
        self.job = job

    def __call__(self) -> Outcome:
        outcome = self.job()
        if outcome.state == "stopped":
            give_back(outcome.status - 128)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit asks of what is to be requeued: the run saves itself."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def give_back(number: int) -> None:
    """Now that the run is saved, let happen what the signal was sent for."""
    if number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.raise_signal(number)  # submitit's handler is back: it requeues the job, and ends it
    elif "SLURM_JOB_ID" in os.environ:
        # Cancelled, or preempted: an end of our own would be taken for that of the run.
        while True:
            signal.pause()


class Processes:
    """Those of this machine that submitit has started."""

    def gone(self, handle: Any) -> bool:
        return handle.done()

    def state(self, handle: Any) -> str:
        return handle.state


class Queue:
    """Whether a job is no longer in SLURM's queue, at two looks: it may be slow to show up.

    Accounting, which submitit asks instead, is not set up on every cluster.
    """

    def __init__(self) -> None:
        self.missed: dict[str, int] = {}
        self.next = 0.0

    def gone(self, handle: Any) -> bool:
        if time.monotonic() >= self.next:
            self.look()
        return self.missed.setdefault(handle.job_id, 0) >= 2

    def look(self) -> None:
        self.next = time.monotonic() + QUEUE_SECONDS
        listed = asked_slurm("squeue", "--me", "--noheader", "--array", "--format=%i")
        if listed is None:
            return
        there = set(listed.split())
        for job in self.missed:
            self.missed[job] = 0 if job in there else self.missed[job] + 1

    def state(self, handle: Any) -> str:
        """Of a job that has ended: the controller forgets it in minutes, accounting does not."""
        shown = asked_slurm("scontrol", "show", "job", handle.job_id) or ""
        found = re.search(r"JobState=(\S+)", shown)
        return found[1] if found else handle.state


def answer(handle: Any, jobs_of: Processes | Queue) -> Outcome | None:
    """What a job has answered, or that it has ended without; None while it goes on."""
    gone = jobs_of.gone(handle)
    log = handle.paths.stderr
    if handle.paths.result_pickle.exists():
        try:
            return handle.result()
        except Exception as error:
            last = str(error).strip().splitlines()[-1]
            return Outcome("failed", 1, f"job {handle.job_id}: {last}; log: {log}")
    if not gone:
        return None
    state = jobs_of.state(handle)
    reason = f"job {handle.job_id} ended without an answer ({state}); log: {log}"
    return Outcome("failed", 1, reason)


def asked_slurm(*command: str) -> str | None:
    """What one of SLURM's commands prints; None if it cannot be asked just now."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


def tell(job: Job, outcome: Outcome) -> None:
    """A line for a run whose own words are in the job's log."""
    Console(stderr=True, highlight=False).print(
        f"[{job.number + 1}] {outcome.state}: {outcome.out or job.overrides}",
        soft_wrap=True,
        markup=False,
    )
