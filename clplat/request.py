"""A run as the command line asks for it: read from a composed config, checked, carried out."""

import os
import re
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from clplat.check import GROUPS, check
from clplat.digest import SEEDS, config_digest
from clplat.directory import TRIALS, already_done
from clplat.errors import InputError, Interrupted, Locked, TrainingError
from clplat.mistyped import meant
from clplat.several import combined_name
from clplat.shape import check_references
from clplat.sweep import Outcome

TRACE = "CLPLAT_FULL_ERROR"  # what HYDRA_FULL_ERROR was, which we set ourselves
EXPLAINED = (InputError, TrainingError, HydraException, OmegaConfBaseException, YAMLError)


def module_folders() -> list[Path]:
    """Where the user's own modules may lie, and are found from now on: beside their configs, and
    where they stand.
    """
    sources = HydraConfig.get().runtime.config_sources
    folders = [*(Path(s.path).resolve() for s in sources if s.schema == "file"), Path.cwd()]
    sys.path += [str(f) for f in folders if str(f) not in sys.path]
    return folders


def directory_of_its_own(
    root: Path, names: dict[str, str], digest: str, config: dict[str, Any]
) -> Path:
    """<root>/<scenario>/<strategy>/<digest>/seed_<n>, naming also the seeds that are set apart.

    In <root>/tune instead where the first experiences alone are trained on.
    """
    seeds = f"seed_{config['seed']}"
    for key in SEEDS[1:]:
        if config[key] != config["seed"]:
            seeds += f"_{key.removeprefix('seed_')}_{config[key]}"
    parts = [names["scenario"], names["strategy"]]
    if config["train"]["experiences"] is not None:
        parts.insert(0, TRIALS)
    return root.joinpath(*map(folder, parts), digest, seeds)


def folder(name: str) -> str:
    """A name as that of one directory, which is never one above: the digest tells runs apart."""
    return re.sub(r"[^\w.,+=-]", "_", name).lstrip(".")[:100] or "_"


@dataclass(frozen=True)
class Run:
    """A run as the command line asks for it, once its config has passed the check."""

    config: dict[str, Any]
    names: dict[str, str]
    digest: str
    out: Path
    folders: list[Path]

    def carry_out(self) -> Outcome:
        """Finished now, or before: skipped."""
        from clplat.progress import RunProgress

        sweep = HydraConfig.get().mode == RunMode.MULTIRUN
        progress = RunProgress(HydraConfig.get().job.num if sweep else None)
        seeds = {key: self.config[key] for key in SEEDS}
        result = already_done(self.out, self.digest, seeds)
        if result is not None:
            progress.skipped(self.out, self._passed_over(result))
            return self._ended("skipped", result)
        with progress.loading():
            from clplat.run import run
        result = run(
            self.config,
            out=self.out,
            digest=self.digest,
            names=self.names,
            folders=self.folders,
            progress=progress,
        )
        if result is None:  # another process has, meanwhile
            result = already_done(self.out, self.digest, seeds) or {}
            progress.skipped(self.out, self._passed_over(result))
            return self._ended("skipped", result)
        return self._ended("finished", result)

    def _passed_over(self, result: dict[str, Any]) -> str:
        """What the command asks for that a finished run was not asked, as the end of a line."""
        reference = self.config["reference"]
        if reference is None or result.get("intransigence") is not None:
            return ""
        return f"; reference={reference} is not looked at: for intransigence choose another out"

    def _ended(self, state: str, result: dict[str, Any]) -> Outcome:
        return Outcome(state, out=str(self.out), objective=result.get("accuracy"))


def checked(node: DictConfig) -> Run:
    """The run of a composed config; InputError for what is wrong with it."""
    raw: Any = OmegaConf.to_container(node)
    check_references(raw)  # before anything is resolved, which may take for ever
    for key in sorted(OmegaConf.missing_keys(node)):
        raise InputError(f"{key}: has no default and is not given; set {key}=<value>")
    config: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    folders, choices = module_folders(), HydraConfig.get().runtime.choices
    check(config, folders)
    names = {group: str(choices[group]) for group in GROUPS}
    names["strategy"] = combined_name(names["strategy"], config["strategy"])
    digest = config_digest(node)
    out = Path(config["out"] or "runs")
    shared = HydraConfig.get().mode == RunMode.MULTIRUN and "${" not in str(raw["out"])
    if shared or not config["out"]:
        out = directory_of_its_own(out, names, digest, config)
    config["out"] = str(out)
    return Run(config, names, digest, out, folders)


def outcome_of(node: DictConfig) -> Outcome:
    """Carry out the run of a composed config; what can be explained becomes its outcome."""
    out = ""
    try:
        run = checked(node)
        out = str(run.out)
        return run.carry_out()
    except (*EXPLAINED, Interrupted) as error:
        if full_trace():
            traceback.print_exc()
        states = {Interrupted: "stopped", Locked: "locked"}
        return Outcome(states.get(type(error), "failed"), status(error), explain(error), out)


def explain(error: BaseException) -> str:
    """The message without the trace, and the cause where the message alone does not say it."""
    if text := meant(error, sys.argv[1:]):
        return text
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


def full_trace() -> bool:
    return os.environ.get(TRACE, "0") not in ("", "0")
