"""Several runs at once, on this machine: joblib's worker processes, each run forked from one."""

import atexit
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from multiprocessing import current_process
from typing import Any

from clplat.engines import basic
from clplat.errors import InputError, Interrupted
from clplat.extras import needed
from clplat.isolated import isolated, preload
from clplat.launch import Job
from clplat.signals import Asked, listening
from clplat.sweep import Outcome

CHOICE = "hydra/launcher=joblib"
ATTEMPTS = 3  # in a row, at the most, in which the workers are killed before any run has ended


def run(jobs: Sequence[Job], n_jobs: int) -> Iterator[tuple[Job, Outcome]]:
    """`n_jobs` at once; -1: as many as there are cores."""
    if type(n_jobs) is not int or n_jobs == 0:
        raise InputError(
            f"hydra.launcher.n_jobs={n_jobs}: expected a whole number other than 0; for example "
            "hydra.launcher.n_jobs=2, or -1 for as many as there are cores"
        )
    joblib, psutil = needed("joblib", CHOICE, "sweep"), needed("psutil", CHOICE, "sweep")
    broken = needed("joblib.externals.loky.process_executor", CHOICE, "sweep").BrokenProcessPool

    def hand_on(number: int) -> None:
        for process in to_signal(psutil.Process(), number):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    most = joblib.effective_n_jobs(n_jobs)
    left, fruitless = {job.number: job for job in jobs}, 0
    with listening() as asked:
        asked.hand_on = hand_on
        while asked.number is None and (workers := min(most, len(left))) > 1:
            before = len(left)
            try:
                for number, outcome in _answers(joblib, [*left.values()], workers, asked):
                    yield left.pop(number), outcome
            except broken:  # a worker, not a run, was killed, and joblib has ended all others
                fruitless = fruitless + 1 if len(left) == before else 0
                if fruitless == ATTEMPTS:
                    raise
    if asked.number is not None:
        raise Interrupted(asked.number)
    if left:  # with one worker joblib would call `in_worker` in this very process
        yield from basic.run([*left.values()])


def to_signal(process: Any, number: int) -> list[Any]:
    """Joblib's workers below a process, which tell their runs; for SIGKILL the runs as well."""
    below = process.children()
    workers = [child for child in below if "LokyProcess" in " ".join(child.cmdline())]
    if number != signal.SIGKILL:
        return workers
    return [*workers, *(run for worker in workers for run in worker.children(recursive=True))]


def _answers(
    joblib: Any, jobs: Sequence[Job], workers: int, asked: Asked
) -> Iterator[tuple[int, Outcome]]:
    several = joblib.Parallel(
        n_jobs=workers,
        backend="loky",
        pre_dispatch="n_jobs",
        batch_size=1,
        return_as="generator_unordered",
    )
    return several(joblib.delayed(in_worker)(job) for job in jobs if asked.number is None)


def in_worker(job: Job) -> tuple[int, Outcome]:
    """In one of joblib's processes, which goes on to the next run when this one dies."""
    prepare()
    with listening() as asked:
        preload()
        return job.number, isolated(lambda: on_device(job), asked)


@cache
def prepare() -> None:
    """Once in each worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the first one hands it on
    os.environ["TTY_COMPATIBLE"] = "0"  # bars of several processes would overwrite each other
    atexit.register(os._exit, 0)  # to take the libraries down takes seconds, and has been stuck


def on_device(job: Job) -> Outcome:
    """Where there are several GPUs, a worker's runs see one of them."""
    if job.config.device in ("auto", "cuda"):
        import torch

        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        devices = given.split(",") if given else map(str, range(torch.cuda.device_count()))
        device = turn(current_process().name, [*devices])
        if device is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = device
    return job()


def turn(worker: str, devices: Sequence[str]) -> str | None:
    """The device of a worker, such as LokyProcess-3: they take turns; None: there is no choice."""
    number = worker.rpartition("-")[2]
    if len(devices) < 2 or not number.isdecimal():
        return None
    return devices[(int(number) - 1) % len(devices)]
