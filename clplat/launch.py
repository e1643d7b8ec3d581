"""Hydra's launcher: the runs of a sweep, carried out by an engine wherever they may run.

An engine is a generator function. It is called with jobs and with its settings, has each job
called in a process that the others do not die with, and gives (job, outcome) as they end. Asked to
stop, it hands the signal on to the runs, gives what they answer, and raises Interrupted.
"""

import inspect
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from clplat.errors import InputError, Interrupted
from clplat.lock import held
from clplat.request import EXPLAINED, checked, full_trace, module_folders, outcome_of
from clplat.signals import listening
from clplat.sweep import Outcome, Sweep
from clplat.targets import imported, is_allowed, is_public

ENGINES = "clplat.engines"
PLACE = "hydra_plugins.clplat.Launch"  # Hydra takes plugins of such names alone
HANDED_OVER = ("CLPLAT_", "HYDRA_")  # variables that the runs see, wherever they are


@dataclass(frozen=True)
class Job:
    """One run of a sweep, as it is sent to the process that carries it out."""

    number: int
    overrides: str
    config: DictConfig
    context: HydraContext
    folder: str
    environment: dict[str, str]

    def __call__(self) -> Outcome:
        os.chdir(self.folder)
        os.environ.update(self.environment)
        setup_globals()
        try:
            done = run_job(
                outcome_of,
                self.config,
                "hydra.sweep.dir",
                "hydra.sweep.subdir",
                self.context,
            )
            return done.return_value
        except Exception as error:
            traceback.print_exc()
            return Outcome("failed", 1, f"{type(error).__name__}: {error}", self.out())

    def out(self) -> str:
        """Its run directory; "" where its config is refused."""
        HydraConfig.instance().set_config(self.config)
        node = self.config.copy()
        with open_dict(node):
            del node["hydra"]
        try:
            return str(checked(node).out)
        except EXPLAINED:
            return ""


Engine = Callable[..., Iterator[tuple[Job, Outcome]]]


def is_engine(name: str, folders: Sequence[Path]) -> bool:
    """Whether an import path is one of ours, or such that a config's `_target_` may be."""
    return is_public(name) and (name.startswith(f"{ENGINES}.") or is_allowed(name, folders))


def engine_at(name: str, folders: Sequence[Path]) -> Engine:
    """The generator function of an import path; InputError for all else, which is not called."""
    given = f"hydra.launcher.engine={name}"
    if not is_engine(name, folders):
        raise InputError(
            f"{given}: not allowed; expected a generator function of {ENGINES}, or of a module of "
            f"your own in {', '.join(map(str, folders))}; put the module there, or correct the name"
        )
    found, home = imported(given, name, "generator function")
    if not inspect.isgeneratorfunction(found) or not is_engine(home, folders):
        raise InputError(
            f"{given}: not allowed; it is {found!r} from {home or 'nowhere'}; expected a generator "
            "function defined where the name says; name that place itself"
        )
    return found


def check_settings(engine: Engine, settings: dict[str, Any]) -> None:
    """Refuse settings that an engine does not take, or that it lacks."""
    signature = inspect.signature(engine)
    try:
        signature.bind([], **settings)
    except TypeError as error:
        given = ", ".join(f"hydra.launcher.{key}={value}" for key, value in settings.items())
        known = ", ".join([*signature.parameters][1:]) or "none"
        raise InputError(
            f"{given or 'hydra.launcher'}: {error}; expected the settings {known}; leave out what "
            "is not among them, and set what is missing"
        ) from None


class Launch(Launcher):
    """Has the runs of a sweep carried out by the engine of that import path."""

    def __init__(self, engine: str, **settings: Any):
        self.name = engine
        self.settings: Any = OmegaConf.to_container(OmegaConf.create(settings), resolve=True)

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        self.context, self.config = hydra_context, config
        HydraConfig.instance().set_config(config.copy())
        folders = module_folders()
        self.engine = engine_at(self.name, folders)
        check_settings(self.engine, self.settings)
        searched = config.hydra.runtime.choices["hydra/sweeper"] != "basic"
        Sweep.begin(Path(config.hydra.sweep.dir).absolute(), searched)

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        setup_globals()
        jobs = [self._job(k, list(o)) for k, o in enumerate(job_overrides, initial_job_idx)]
        outcomes: dict[int, Outcome] = {}
        rest = Outcome("not begun")
        try:
            self._carry_out(jobs, outcomes)
        except InputError:  # of the engine, before any run
            jobs = []
            raise
        except Exception as error:
            if full_trace():
                traceback.print_exc()
            rest = Outcome("failed", 1, f"the launcher broke off: {type(error).__name__}: {error}")
        finally:
            for job in jobs:
                if outcomes.get(job.number, rest).state in (rest.state, "locked"):
                    self._note(job, outcomes.setdefault(job.number, rest))
        return [returned(job, outcomes[job.number]) for job in jobs]

    def _job(self, number: int, overrides: list[str]) -> Job:
        config = self.context.config_loader.load_sweep_config(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        handed = {k: v for k, v in os.environ.items() if k.startswith(HANDED_OVER)}
        name = config.hydra.job.override_dirname
        return Job(number, name, config, self.context, os.getcwd(), handed)

    def _carry_out(self, jobs: Sequence[Job], outcomes: dict[int, Outcome]) -> None:
        """Until none is left that another process, such as another sweep, is at."""
        while jobs:
            for job, outcome in self.engine(jobs, **self.settings):
                if outcome.state == "failed" and not outcome.out:
                    outcome = replace(outcome, out=job.out())
                outcomes[job.number] = outcome
                if outcome.state != "locked":
                    self._note(job, outcome)
            jobs = [job for job in jobs if outcomes[job.number].state == "locked"]
            for job in jobs:
                wait_for(job, Path(outcomes[job.number].out))

    def _note(self, job: Job, outcome: Outcome) -> None:
        if Sweep.current is not None:
            given = list(job.config.hydra.overrides.task)
            Sweep.current.note(job.number, job.overrides, given, outcome)


def wait_for(job: Job, out: Path) -> None:
    """Wait until no process holds a run directory any more."""
    if not held(out):
        return
    Console(stderr=True, highlight=False).print(
        f"[{job.number + 1}] another process is at this very run; waiting for it: {out}",
        soft_wrap=True,
        markup=False,
    )
    with listening() as asked:
        while held(out):
            time.sleep(1)
            if asked.number is not None:
                raise Interrupted(asked.number, saved=False)


def returned(job: Job, outcome: Outcome) -> JobReturn:
    """An outcome as Hydra's sweepers take it: its objective, None for a run that failed."""
    done = JobReturn(overrides=[job.overrides], status=JobStatus.COMPLETED)
    done.return_value = outcome.objective
    return done


def register() -> None:
    """Let Hydra know the launcher that the files of conf/hydra/launcher name, `basic` among them.

    What plugins, such as hydra-joblib-launcher, have registered under names of ours would be taken
    as schemas of our files, and refuse them.
    """
    Plugins.instance().class_name_to_class[PLACE] = Launch
    ours = Path(str(files("clplat.conf"))) / "hydra"
    for file in ours.rglob("*.yaml"):
        node = ConfigStore.instance().repo["hydra"]
        for group in file.parent.relative_to(ours).parts:
            node = node.get(group, {})
        node.pop(file.name, None)
    # No file, which Hydra's own would be taken as the schema of wherever else these are composed.
    basic = {"_target_": PLACE, "engine": "clplat.engines.basic.run"}
    ConfigStore.instance().store(group="hydra/launcher", name="basic", node=basic)
