"""Thousands of command lines, plausible and absurd: each is a run, or a message and status 2."""

import contextlib
import copy
import io
import os
import resource
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import yaml
from hydra._internal.core_plugins.importlib_resources_config_source import (
    ImportlibResourcesConfigSource,
)
from hydra._internal.hydra import Hydra
from hydra.types import RunMode
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed

import clplat.conf
import clplat.run
from clplat.__main__ import main
from clplat.help import choices
from clplat.naming import settings as dotted
from scenarios import sources

CASES, SHARDS = 2000, 4  # cases in all
SECONDS, ROOM = 60, 3 * 2**30  # for one case; and bytes more than there are now
CONF = Path(clplat.conf.__file__).parent
GROUPS = {group: sorted(files) for group, files in choices(CONF).items() if group != "experiment"}


def keys() -> list[str]:
    """Every key that some config has."""
    found = set(dotted(yaml.safe_load((CONF / "config.yaml").read_text())))
    for group, files in choices(CONF).items():
        for file in files.values():
            found |= {f"{group}.{key}" for key in dotted(yaml.safe_load(file.read_text()) or {})}
    kept = {key for key in found if not key.startswith(("defaults", "experiment."))}
    return sorted(kept | {"out", "reference", "resume", "checkpoint.every", "checkpoint.unit"})


NUMBERS = (
    *("0", "1", "2", "3", "-1", "-7", "0.5", "1.5", "1e-9", "-0.0", "nan", "inf", "-inf", ".inf"),
    *("1e400", "9" * 30, str(2**31), str(2**63), str(2**64), "0x10", "1_000_000_000_000_000", "00"),
)
WORDS = (
    *("", "null", "none", "None", "true", "false", "yes", "[]", "{}", "[1,2]", "[0]", "[-1,x]"),
    *("{a:1}", "[[1,2],[3]]", "[null]", "''", '""', "'a b'", "a", "é", "日本", "\U0001f600", "\\"),
    *("${seed}", "${out}", "${nothing}", "${oc.env:HOME}", "${oc.env:NOTHING}", "${oc.decode:'['}"),
    *("${", "${a", "}", "[", "]", "(", "{a", "'", '"', "a:b", "a=b", "=", "a,b", "1,2", ",", "*"),
    *("glob(*)", "range(3)", "choice(1,2)", "interval(0,1)", "sort(1,2)", "???", "%s", "\n", "\t"),
    *("../../x", "/", "/dev/null", "~", ".", "a/b", "cpu", "cuda", "auto", "os.system", "x" * 300),
    *("_target_", "${train}", "${strategy}", "${scenario.seed}", "tag(a,1)", "int(x)", "str(1)"),
)
FLAGS = (
    *("--config-dir=nowhere", "--config-dir", "--config-path=nowhere", "--config-name=nothing"),
    *("--cfg=job", "--cfg=nothing", "--package=strategy", "--info=nothing", "--resolve", "--foo"),
    *("-x", "--", "-", "--help", "--experimental-rerun=x", "--config-dir=/dev/null", "-p=strategy"),
    *("hydra.run.dir=/dev/null/x", "hydra.nothing=1", "hydra/launcher=nothing", "hydra=x"),
    *("hydra.searchpath=[file://nowhere]", "hydra.searchpath=x", "hydra.mode=x", "hydra.verbose=x"),
    *("seeds=x", "seeds=0", "strategy=[replay", "strategy=[replay,lwf]", "strategy=[]", "seeds="),
    *("experiment=nothing", "experiment=demo", "+experiment=tune", "hydra.job.name=x/y"),
)

value = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(WORDS),
    st.text(max_size=6),
    st.integers(-3, 12).map(str),
)
key = st.sampled_from(keys())
# A file of a group, and values for its own keys: what is absurd about them may show late.
file = st.sampled_from(
    [(group, *named) for group in GROUPS for named in choices(CONF)[group].items()]
)
own = file.flatmap(
    lambda chosen: st.builds(
        lambda key, value: [f"{chosen[0]}={chosen[1]}", f"{chosen[0]}.{key}={value}"],
        st.sampled_from(
            sorted(dotted(yaml.safe_load(chosen[2].read_text()) or {})) or ["_target_"]
        ),
        value,
    )
)
group = st.sampled_from(sorted(GROUPS))
choice = group.flatmap(lambda g: st.sampled_from(GROUPS[g]).map(lambda name: f"{g}={name}"))
given_value = st.builds("{}{}={}".format, st.sampled_from(["", "", "", "+", "++", "~"]), key, value)
override = st.one_of(
    given_value,
    given_value,
    choice,
    choice,
    st.sampled_from(FLAGS),
    st.builds("{}={}".format, group, value),
    st.builds("~{}".format, st.one_of(key, group)),
    st.builds("{}@{}={}".format, group, st.one_of(key, group), value),
    st.builds("{}{}={}".format, key, st.text(max_size=3), value),
    st.builds("+{}.{}={}".format, group, st.text(max_size=5), value),
    st.builds("{}.{}={}".format, key, st.sampled_from(["_target_", "_args_", "a", "0"]), value),
    st.text(max_size=12),
)
lines = st.one_of(own, own, given_value.map(lambda word: [word]), st.lists(override, max_size=4))
command_lines = lines.map(
    # What no process can be given; and `-m`, whose runs are processes.
    lambda words: [w.replace("\0", "\\0") for w in words if w not in ("-m", "--multirun", "-h")]
)


class Reached(Exception):
    """All was built; training would begin."""


def once(load: Callable[..., Any]) -> Callable[..., Any]:
    """A function whose results are kept, and copied for each call."""
    kept: dict[str, Any] = {}

    def cached(*arguments: Any, **named: Any) -> Any:
        name = repr((getattr(arguments[0], "path", None), arguments[1:], named))
        if name not in kept:
            kept[name] = load(*arguments, **named)
        return copy.deepcopy(kept[name])

    return cached


@contextlib.contextmanager
def limits() -> Iterator[None]:
    """So much time, and so much memory: what asks for 2**31 samples is told so."""

    def late(number: int, frame: Any) -> None:
        raise AssertionError(f"no answer in {SECONDS} s")

    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    space = resource.getrlimit(resource.RLIMIT_AS)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + ROOM, space[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, space)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def command_line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., tuple]]:
    """Calls the command in this process as far as to where training begins.

    What a command reads again and again is read once, and the mode is taken from no second
    composition of the config: both would double the time.
    """
    place, here = tmp_path_factory.mktemp("fuzz"), Path.cwd()

    def stop(*arguments: Any, **named: Any) -> None:
        raise Reached

    def call(words: list[str]) -> tuple[int | str, str, str]:
        out, err = io.StringIO(), io.StringIO()
        os.chdir(place)
        status: int | str = 0
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), limits():
            patch.setattr(sys, "argv", ["clplat", *words])
            patch.setattr(sys, "path", [*sys.path])
            patch.setenv("HYDRA_FULL_ERROR", "0")  # which the command sets
            try:
                main()
            except Reached:
                status = "run"
            except SystemExit as end:
                status = int(end.code or 0)
            except Exception:
                status = "trace"
                traceback.print_exc(file=err)
        return status, out.getvalue(), err.getvalue()

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLPLAT_DATA", str(place / "none"))
        patch.setattr(clplat.run, "locked", stop)
        patch.setattr(Hydra, "get_mode", lambda *_, **__: RunMode.RUN)
        patch.setattr(sources, "digits", once(sources.digits))
        load = once(ImportlibResourcesConfigSource.load_config)
        patch.setattr(ImportlibResourcesConfigSource, "load_config", load)
        yield call
        os.chdir(here)


def wrong(outcome: tuple[int | str, str, str]) -> str:
    """What is wrong with an outcome; "" if nothing is."""
    status, _, err = outcome
    if "Traceback" in err or status == "trace":
        return f"a traceback: {err.strip().splitlines()[-1]}"
    if status not in ("run", 0, 2):
        return f"status {status}"
    if status == 2 and not any(line.startswith("clplat: ") for line in err.splitlines()):
        return f"no message: {err!r}"
    if status == 2 and len(err.split("clplat: ")[-1].strip()) < 10:
        return f"says nothing: {err!r}"
    return ""


@pytest.mark.parametrize("shard", range(SHARDS))
def test_no_command_line_ends_in_a_traceback(shard: int, command_line: Callable[..., tuple]):
    @settings(
        max_examples=CASES // SHARDS,
        deadline=None,
        suppress_health_check=[*HealthCheck],
        database=None,
    )
    @hypothesis_seed(shard)
    @given(command_lines)
    def answered(words: list[str]) -> None:
        assert not wrong(command_line(words)), words

    answered()
