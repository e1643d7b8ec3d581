"""One run after another, on this machine."""

from collections.abc import Iterator, Sequence

from clplat.errors import Interrupted
from clplat.isolated import isolated, preload
from clplat.launch import Job
from clplat.signals import listening
from clplat.sweep import Outcome


def run(jobs: Sequence[Job]) -> Iterator[tuple[Job, Outcome]]:
    """Each in a process that is forked from this one once the libraries are imported."""
    with listening() as asked:
        preload()
        if asked.number is not None:
            raise Interrupted(asked.number, saved=False)
        for job in jobs:
            yield job, isolated(job, asked)
            if asked.number is not None:
                raise Interrupted(asked.number)
