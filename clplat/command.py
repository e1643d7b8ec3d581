"""Compose the config, check it, run it.

Nothing heavy is imported before a config has passed its check, so that shell completion and the
message about a mistyped key come at once.
"""

import os
import sys
import traceback
from pathlib import Path

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from clplat import launch, shape
from clplat.arguments import parted
from clplat.errors import InputError, Interrupted
from clplat.extras import needed
from clplat.help import user_folders
from clplat.request import EXPLAINED, TRACE, explain, full_trace, outcome_of, status
from clplat.seeds import with_seeds
from clplat.several import expanded
from clplat.sweep import Outcome, Sweep, best, summary
from clplat.swept import as_sweeps
from clplat.tuning import OPTUNA, Tuning, candidates, told, tuning


class UserConfigs(SearchPathPlugin):
    """Puts the folders of CLPLAT_CONF_PATH before ours: they may add files, and shadow them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed([*user_folders([])]):
            search_path.prepend("clplat-user", f"file://{folder.resolve()}")


def aggregate(runs: list[Path]) -> None:
    """Print the tables of clplat-report over the seeds of runs that are finished."""
    from clplat.report.comparison import compare
    from clplat.report.shown import show_tables
    from clplat.report.table import Question

    comparison = compare(runs, Question()) if runs else None
    if comparison is not None:
        show_tables(comparison)


def show_side_by_side(sweep: Sweep) -> None:
    """Say how to look at several finished runs of a sweep side by side."""
    if len(sweep.done) > 1:
        from clplat.dashboard import compared

        print(compared(sweep.file.parent, sweep.done), file=sys.stderr)


def tell(sweep: Sweep) -> None:
    """Print what became of the runs, and the best where they were a search for it."""
    told = [summary(sweep.lines)] if len(sweep.lines) > 1 or sweep.status else []
    told += [best(sweep.lines)] if sweep.searched else []
    if told:
        console = Console(stderr=True, highlight=False)
        console.print("\n".join(told), soft_wrap=True, markup=False)


def read(asked: list[str]) -> list[str]:
    """The arguments for Hydra of those that are given."""
    if OPTUNA in asked:
        needed("hydra_plugins.hydra_optuna_sweeper", OPTUNA, "sweep")
        if seeds := [argument for argument in asked if argument.startswith("seeds=")]:
            raise InputError(
                f"{seeds[0]} {OPTUNA}: it would choose the best seed; set one, by seed=0, and run "
                f"the best settings with {seeds[0]} afterwards"
            )
    overrides, options = parted(with_seeds(expanded(asked)))
    return [*as_sweeps(overrides), *options]  # Hydra takes overrides in one row alone


def attempt(node: DictConfig, alone: list[Outcome]) -> None:
    """One run that is no sweep's: those are carried out by `clplat.launch`."""
    if HydraConfig.get().mode == RunMode.MULTIRUN:
        raise InputError(
            f"hydra/launcher={HydraConfig.get().runtime.choices['hydra/launcher']}: expected one "
            "of clplat's, such as basic, joblib, submitit_local, submitit_slurm or ray"
        )
    alone.append(outcome_of(node))


def not_understood(error: Exception) -> str:
    """What Hydra gave no message of its own for, while it read the command line."""
    reason = " ".join(str(error).split()) or "no reason is given"
    return (
        f"{' '.join(sys.argv[1:])}: could not be read ({type(error).__name__}: {reason[:300]}); "
        "clplat --help shows what can be said (HYDRA_FULL_ERROR=1 shows the whole trace)"
    )


def run_command() -> None:
    """Run what the command line says: exit status 0, 1 if a run broke off, 2 for bad input."""
    os.environ[TRACE] = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints the error its way and exits with 1
    Plugins.instance().register(UserConfigs)
    launch.register()
    shape.register()
    asked = sys.argv[1:]
    try:
        plan = tuning(asked)
        code = carry_out(asked) if plan is None else tuned(plan)
        if plan is None and Sweep.current is not None:
            if any(argument.startswith("seeds=") for argument in asked):
                aggregate(Sweep.current.done)
            show_side_by_side(Sweep.current)
    except InputError as error:
        code = 2
        print(f"clplat: {error}", file=sys.stderr)
    except KeyboardInterrupt:  # such as while libraries are imported: a run has its own handling
        code = 130
        begun = Sweep.current is not None and Sweep.current.lines
        when = "" if begun else " before it began"
        print(f"clplat: stopped by SIGINT{when}", file=sys.stderr)
    if code:
        sys.exit(code)


def tuned(plan: Tuning) -> int:
    """Try the candidates, then run what was chosen for each combination; the exit status."""
    code = carry_out(plan.search)
    tried, done = Sweep.current, []
    if code > 2 or tried is None or not tried.done:  # stopped, or nothing to choose among
        return code
    for found in candidates(tried.lines):
        print(told(found, plan.experiences), flush=True)
        code = max(code, carry_out(plan.final(found[0])))
        if code > 2:  # a signal asks all of it to stop
            return code
        if Sweep.current is not None:
            done += Sweep.current.done
    aggregate(done)
    return code


def carry_out(asked: list[str]) -> int:
    """Run what these arguments say, one run or a sweep (`Sweep.current`); the exit status."""
    Sweep.current = None
    alone: list[Outcome] = []

    begun: list[bool] = []

    def task(node: DictConfig) -> None:
        begun.append(True)
        attempt(node, alone)

    try:
        sys.argv[1:] = read(asked)
        try:
            hydra.main(version_base="1.3", config_path="pkg://clplat.conf", config_name="config")(
                task
            )()
        finally:
            sweep = Sweep.current
            if sweep is not None and sweep.lines:
                tell(sweep)
        if sweep is not None and not sweep.lines:
            swept = " ".join(a for a in sys.argv[1:] if not a.startswith("-"))
            raise InputError(
                f"-m {swept}: no run came of it; a sweep over nothing, such as glob(*) on a key "
                "that is no group, has no values; list them: key=a,b"
            )
    except (*EXPLAINED, Interrupted) as error:
        if full_trace():
            traceback.print_exc()
        alone.append(Outcome("failed", status(error), explain(error)))
    except Exception as error:
        if not begun and (Sweep.current is None or not Sweep.current.lines):
            if full_trace():
                traceback.print_exc()
            alone.append(Outcome("failed", 2, not_understood(error)))
        # What a sweeper makes of nothing but failures says no more than the summary.
        elif Sweep.current is None or not Sweep.current.lines or Sweep.current.done:
            raise
    for outcome in alone:
        if outcome.reason:
            print(f"clplat: {outcome.reason}", file=sys.stderr)
    swept_status = Sweep.current.status if Sweep.current is not None else 0
    return max([swept_status, *(outcome.status for outcome in alone)])
