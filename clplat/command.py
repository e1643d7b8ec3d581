"""Compose the config, check it, run it.

Nothing heavy is imported before a config has passed its check, so that shell completion and the
message about a mistyped key come at once.
"""

import os
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clplat.check import GROUPS, check
from clplat.digest import SEEDS, config_digest
from clplat.directory import already_done
from clplat.errors import InputError, Interrupted, TrainingError
from clplat.help import user_folders
from clplat.seeds import with_seeds
from clplat.several import combined_name, expanded
from clplat.sweep import Outcome, Summary, isolated, note

TRACE = "CLPLAT_FULL_ERROR"  # what HYDRA_FULL_ERROR was, which we set ourselves
EXPLAINED = (InputError, TrainingError, HydraException, OmegaConfBaseException, YAMLError)


class UserConfigs(SearchPathPlugin):
    """Puts the folders of CLPLAT_CONF_PATH before ours: they may add files, and shadow them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder in reversed([*user_folders([])]):
            search_path.prepend("clplat-user", f"file://{folder.resolve()}")


def module_folders() -> list[Path]:
    """Where the user's own modules may lie: beside their configs, and where they stand."""
    sources = HydraConfig.get().runtime.config_sources
    places = [Path(s.path).resolve() for s in sources if s.schema == "file"]
    return [*places, Path.cwd()]


def default_out(names: dict[str, str], digest: str, config: dict[str, Any]) -> Path:
    """runs/<scenario>/<strategy>/<digest>/seed_<n>, naming also the seeds that are set apart."""
    seeds = f"seed_{config['seed']}"
    for key in SEEDS[1:]:
        if config[key] != config["seed"]:
            seeds += f"_{key.removeprefix('seed_')}_{config[key]}"
    parts = [names["scenario"], names["strategy"]]
    return Path("runs", *(part.replace("/", "_") for part in parts), digest, seeds)


@dataclass(frozen=True)
class Run:
    """A run as the command line asks for it, once its config has passed the check."""

    config: dict[str, Any]
    names: dict[str, str]
    digest: str
    out: Path
    folders: list[Path]

    def carry_out(self) -> str:
        """Whether it is "finished" now, or was already, "skipped"."""
        from clplat.progress import RunProgress

        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        progress = RunProgress(HydraConfig.get().job.num if sweep else None)
        if already_done(self.out, self.digest, {key: self.config[key] for key in SEEDS}):
            progress.skipped(self.out)
            return "skipped"
        with progress.loading():
            from clplat.run import run
        run(
            self.config,
            out=self.out,
            digest=self.digest,
            names=self.names,
            folders=self.folders,
            progress=progress,
        )
        return "finished"


def checked(node: DictConfig) -> Run:
    """The run of a composed config; InputError for what is wrong with it."""
    for key in sorted(OmegaConf.missing_keys(node)):
        raise InputError(f"{key}: has no default and is not given; set {key}=<value>")
    config: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    folders, choices = module_folders(), HydraConfig.get().runtime.choices
    sys.path += [str(f) for f in folders if str(f) not in sys.path]
    check(config, folders)
    names = {group: str(choices[group]) for group in GROUPS}
    names["strategy"] = combined_name(names["strategy"], config["strategy"])
    digest = config_digest(node)
    out = Path(config["out"]) if config["out"] else default_out(names, digest, config)
    config["out"] = str(out)
    return Run(config, names, digest, out, folders)


def in_sweep(node: DictConfig) -> None:
    """One run of a sweep, which fails or dies without the others."""
    import clplat.run  # noqa: F401 - once, before processes are split off

    outcome = isolated(lambda: outcome_of(node))
    note(HydraConfig.get().job.num, HydraConfig.get().job.override_dirname, outcome)
    if outcome.state == "stopped":
        raise Interrupted(outcome.status - 128, saved=bool(outcome.out))


def outcome_of(node: DictConfig) -> Outcome:
    out = ""
    try:
        run = checked(node)
        out = str(run.out)
        return Outcome(run.carry_out(), out=out)
    except (*EXPLAINED, Interrupted) as error:
        if full_trace():
            traceback.print_exc()
        state = "stopped" if isinstance(error, Interrupted) else "failed"
        return Outcome(state, status(error), explain(error), out)


def explain(error: BaseException) -> str:
    """The message without the trace, and the cause where the message alone does not say it."""
    cause = error.__cause__
    text = str(error).strip()
    if isinstance(cause, OmegaConfBaseException | YAMLError) and str(cause) not in text:
        text += f"\n{cause}"
    return text


def status(error: BaseException) -> int:
    """2 for what the user can mend before anything is run, 1 for a run that broke off."""
    if isinstance(error, Interrupted):
        return 128 + error.number
    return 1 if isinstance(error, TrainingError) else 2


def aggregate(runs: list[Path]) -> None:
    """Print the tables of clplat-report over the seeds of runs that are finished."""
    from clplat.report.comparison import compare
    from clplat.report.shown import show_tables
    from clplat.report.table import Question

    comparison = compare(runs, Question()) if runs else None
    if comparison is not None:
        show_tables(comparison)


def full_trace() -> bool:
    return os.environ.get(TRACE, "0") not in ("", "0")


def run_command() -> None:
    """Run what the command line says: exit status 0, 1 if a run broke off, 2 for bad input."""
    os.environ[TRACE] = os.environ.get("HYDRA_FULL_ERROR", "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # or Hydra prints the error its way and exits with 1
    Plugins.instance().register(UserConfigs)
    Summary.status = None
    alone: list[Outcome] = []

    def attempt(node: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            in_sweep(node)
        else:
            alone.append(outcome_of(node))

    try:
        asked = sys.argv[1:]
        sys.argv[1:] = with_seeds(expanded(asked))
        hydra.main(version_base="1.3", config_path="pkg://clplat.conf", config_name="config")(
            attempt
        )()
        if Summary.status is not None and not Summary.runs:
            swept = " ".join(a for a in sys.argv[1:] if not a.startswith("-"))
            raise InputError(
                f"-m {swept}: no run came of it; a sweep over nothing, such as glob(*) on a key "
                "that is no group, has no values; list them: key=a,b"
            )
        if any(argument.startswith("seeds=") for argument in asked):
            aggregate(Summary.done)
    except (*EXPLAINED, Interrupted) as error:
        if full_trace():
            traceback.print_exc()
        alone.append(Outcome("failed", status(error), explain(error)))
    for outcome in alone:
        if outcome.reason:
            print(f"clplat: {outcome.reason}", file=sys.stderr)
    if code := max([Summary.status or 0, *(outcome.status for outcome in alone)]):
        sys.exit(code)
