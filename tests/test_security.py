"""Configs and files of unknown origin run no code, reach no place of their own, and end."""

import ast
import inspect
import os
import pickle
import shlex
import stat
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from clplat.directory import write_atomically
from clplat.errors import InputError
from clplat.launch import engine_at
from clplat.pretraining import FromFile
from clplat.request import directory_of_its_own
from clplat.shape import check_file, check_references
from clplat.targets import check_names, check_objects
from strategies.difficulty import losses_file, read_losses

ROOT = Path(__file__).parents[1]
QUICK = "train.epochs=1 scenario.experiences=2"


class Bomb:
    """Leaves a file when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def every_call() -> list[tuple[str, str, set[str]]]:
    """Every call: its place, the name of what is called, its keywords."""
    found = []
    for folder in ("clplat", "strategies", "scenarios", "hypernets"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    keywords = {ast.unparse(keyword) for keyword in node.keywords}
                    found.append((f"{file.relative_to(ROOT)}:{node.lineno}", name, keywords))
    return found


def test_no_pickle_of_unknown_origin_is_loaded():
    calls = every_call()
    torch_loads = [call for call in calls if call[1] == "torch.load"]
    numpy_loads = [call for call in calls if call[1] in ("np.load", "numpy.load")]
    assert len(torch_loads) >= 4
    assert len(numpy_loads) >= 2
    assert [c[0] for c in torch_loads if "weights_only=True" not in c[2]] == []
    assert [c[0] for c in numpy_loads if "allow_pickle=False" not in c[2]] == []
    forbidden = ("pickle.", "dill.", "marshal.", "shelve.", "joblib.load", "cloudpickle.")
    unsafe = ("yaml.unsafe_load", "yaml.full_load", "os.system", "eval", "exec")
    assert [c[:2] for c in calls if c[1].startswith(forbidden) or c[1] in unsafe] == []


TARGETS = [
    *("os.system", "subprocess.run", "builtins.eval", "builtins.exec", "functools.partial"),
    *("torch.load", "torch.hub.load", "torch.utils.cpp_extension.load", "torch.os.system"),
    *(
        "numpy.load",
        "pickle.loads",
        "hydra.utils.call",
        "hydra.utils.instantiate",
        "runpy.run_path",
    ),
    *("importlib.import_module", "avalanche.checkpointing.maybe_load_checkpoint", "yaml.load"),
    *("clplat.run.run", "clplat.command.run_command", "", ".", "..", "os", "a b"),
    *("strategies.replay.__loader__.load_module", "strategies.replay.Replay.__init__.__globals__"),
    *("strategies.replay.Replay.__class__", "strategies.replay._private", "strategies..replay"),
    *("avalanche.benchmarks.datasets.core50.CORe50Dataset", "torch.nn\nos.system", "torch.nn;os"),
    "avalanche.benchmarks.datasets.openloris.OpenLORIS",
]
WALKED = [
    *(
        "strategies.replay.torch.load",
        "strategies.difficulty.Path",
        "clplat.pretraining.torch.load",
    ),
    *(
        "strategies.difficulty.torch.hub.load",
        "torch.nn.functional.torch.load",
        "scenarios.sources",
    ),
    *("torch.nn.modules.module.functools.partial", "strategies.difficulty.copy.deepcopy"),
    *("avalanche.benchmarks.CORe50", "avalanche.benchmarks.OpenLORIS", "strategies"),
    *("avalanche.training.checkpoint.maybe_load_checkpoint", "torch.nn.Module.apply.mro"),
]


@pytest.mark.parametrize("target", TARGETS)
def test_targets_elsewhere_are_refused_by_name_wherever_they_are(target, tmp_path):
    node = {"_target_": target}
    for place in (
        node,
        {"nested": [1, {"_args_": [node]}]},
        {"_partial_": True, "_recursive_": False, "inner": node},
    ):
        with pytest.raises(InputError, match="not allowed; a config may name what is in"):
            check_names({"strategy": place}, [tmp_path])


@pytest.mark.parametrize("target", WALKED)
def test_targets_reached_through_what_is_allowed_are_refused(target, tmp_path):
    config = {"strategy": {"_target_": target}}

    def check() -> None:
        check_names(config, [tmp_path])
        check_objects(config, [tmp_path])

    with pytest.raises(InputError, match=r"_target_=\S+: (not allowed|cannot be imported)"):
        check()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("'strategy={_target_: os.system, command: touch mark}'", "strategy"),
        ("strategy._target_=os.system +strategy.command='touch mark'", "os.system: not allowed"),
        (
            "strategy=replay 'strategy.memory={_target_: os.system, command: touch mark}'",
            "os.system",
        ),
        ("'+strategy.x=[{_target_: os.system, command: touch mark}]'", "os.system: not allowed"),
        (
            r"""'+strategy.x=${oc.decode:"{_target_: os.system, _args_: [touch mark]}"}'""",
            "os.system",
        ),
        ("strategy._target_='${oc.env:EVIL}'", "os.system: not allowed"),
        ("+strategy._partial_=true strategy._target_=os.system", "os.system: not allowed"),
        ("+strategy._partial_=1", "strategy._partial_=1: expected true or false"),
        (
            "+hydra.callbacks.x._target_=os.system '+hydra.callbacks.x.command=touch mark'",
            "os.system",
        ),
    ],
)
def test_a_command_line_runs_no_programs(command, monkeypatch, arguments, message):
    monkeypatch.setenv("EVIL", "os.system")
    outcome = command(f"{arguments} out=runs/a {QUICK}")
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("clplat: ")
    assert message in outcome.err
    assert not Path("mark").exists()
    assert not Path("runs").exists()


def test_an_engine_is_no_way_to_run_programs(command):
    outcome = command(
        "-m hydra.launcher.engine=pydoc.pipepager '+hydra.launcher.cmd=\"touch mark\"' "
        f"seed=0 {QUICK}"
    )
    assert outcome.status == 2, outcome
    assert outcome.err.startswith("clplat: hydra.launcher.engine=pydoc.pipepager: not allowed; ")
    assert not Path("mark").exists()


@pytest.mark.parametrize(
    "name",
    [
        *("pydoc.pipepager", "os.system", "clplat.launch.Launch", "clplat.run.run", "", "a b"),
        *("clplat.engines", "clplat.engines.basic", "clplat.engines.basic.isolated"),
        *("clplat.engines.submitit.os.walk", "clplat.engines.basic.run.__globals__"),
        *("strategies.replay.Replay", "os.walk"),
    ],
)
def test_engines_elsewhere_and_what_is_no_engine_are_refused(name, tmp_path):
    with pytest.raises(InputError, match="not allowed"):
        engine_at(name, [tmp_path])


@pytest.mark.parametrize("name", ["basic", "joblib", "ray", "submitit"])
def test_our_engines_are_allowed(name, tmp_path):
    assert inspect.isgeneratorfunction(engine_at(f"clplat.engines.{name}.run", [tmp_path]))


def test_an_engine_of_ones_own_lies_beside_the_configs(command):
    mine = Path("mine/hydra/launcher")
    mine.mkdir(parents=True)
    (mine / "lab.yaml").write_text(
        "_target_: hydra_plugins.clplat.Launch\nengine: lab_engine.run\n"
    )
    Path("mine/lab_engine.py").write_text(
        "from clplat.sweep import Outcome\n"
        "def run(jobs):\n"
        "    for job in jobs:\n"
        "        yield job, Outcome('failed', 1, 'by the lab')\n"
    )
    outcome = command(f"-m --config-dir mine hydra/launcher=lab seed=0 {QUICK}")
    assert outcome.status == 1, outcome
    assert "by the lab" in outcome.err


@pytest.mark.parametrize("save", [partial(pickle.dump, protocol=2), torch.save])
def test_files_of_weights_and_losses_run_no_code(tmp_path, clusters, save):
    mark, experience = tmp_path / "mark", clusters().train_stream[0]
    for file in (tmp_path / "evil.pt", losses_file(str(tmp_path), experience)):
        with open(file, "wb") as opened:
            save({"losses": Bomb(mark), "targets": Bomb(mark)}, opened)
    with pytest.raises(InputError, match="not a file of weights"):
        FromFile(str(tmp_path / "evil.pt"))(nn.Linear(2, 2), *[Any] * 4)
    with pytest.raises(InputError, match="not a file of losses"):
        read_losses(str(tmp_path), experience)
    assert not mark.exists()


def test_a_matrix_of_pickled_objects_is_refused(command, tmp_path):
    command(f"strategy=joint out=runs/joint {QUICK}")
    mark = tmp_path / "mark"
    bombs = np.array([[Bomb(mark)]], dtype=object)
    np.save("runs/joint/accuracy_matrix.npy", bombs, allow_pickle=True)
    outcome = command(f"reference=runs/joint out=runs/a {QUICK}")
    assert outcome.status == 2
    assert "reference=runs/joint: its accuracy_matrix.npy cannot be read" in outcome.err
    assert not mark.exists()


@pytest.mark.parametrize(
    "name", ["..", "../../x", "/etc/x", ".hidden", "a\nb", "a\0b", "x" * 999, "~"]
)
def test_names_of_files_do_not_leave_the_folder_of_runs(name):
    config = {"seed": 0, "seed_data": 0, "seed_init": 0, "seed_train": 0}
    config["train"] = {"experiences": None}
    names = {"scenario": name, "strategy": name}
    out = directory_of_its_own(Path("runs"), names, "0123abcd", config)
    assert out.parts[0] == "runs"
    assert len(out.parts) == 5
    assert not {"..", ".", "/"} & set(out.parts)
    assert all(len(part.encode()) <= 255 and part.isprintable() for part in out.parts)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("x" * 300, "is no possible directory (File name too long); choose another"),
        ("a\nb", "has characters that cannot be printed; leave them out"),
        ("/dev/null/x", "is no possible directory (Not a directory)"),
        ("[1]", "out=[1]: expected a directory; for example out=runs/a"),
        ("''", "out='': expected a directory"),
    ],
)
def test_what_can_be_no_directory_is_refused(command, out, message):
    outcome = command(shlex.quote(f'out="{out}"' if "\n" in out else f"out={out}") + f" {QUICK}")
    assert outcome.status == 2
    assert message in outcome.err


def test_a_number_is_the_name_of_a_directory(command):
    assert command(f"out=7 {QUICK}").status == 0
    assert Path("7/result.json").is_file()


def laughs(levels: int) -> str:
    lines = ["l0: &l0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]"]
    for k in range(1, levels):
        lines.append(f"l{k}: &l{k} [{', '.join([f'*l{k - 1}'] * 10)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (laughs(12), "values once its aliases and ${...} are written out; expected at most 100000"),
        ("a: " + "[" * 300 + "]" * 300 + "\n", "more than 50 levels deep; flatten it"),
        ("a: &a [*a]\n", "nested or referring to itself more than 50 levels deep"),
        ("a: ${.b}\nb: ${.a}\n", "ecursi"),
        ("a: ${strategy.b}\nb: ${strategy.a}\n", "referring to itself more than 50 levels deep"),
        (
            "_target_: x.Y\n"
            + "".join(f"k{i}: ${{strategy.k{i + 1}}}${{strategy.k{i + 1}}}\n" for i in range(40))
            + "k40: ha\n",
            "values once its aliases and ${...} are written out",
        ),
    ],
)
def test_files_that_expand_without_end_are_stopped(command, text, message):
    Path("mine/strategy").mkdir(parents=True)
    Path("mine/strategy/bomb.yaml").write_text(text)
    outcome = command("--config-dir mine strategy=bomb")
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.err.startswith("clplat: ")


def test_what_is_written_out_is_counted_without_doing_so(tmp_path):
    file = tmp_path / "ok.yaml"
    file.write_text("a: &a [1, 2]\nb: [*a, *a]\n")
    check_file(file)
    (tmp_path / "empty.yaml").write_text("")
    check_file(tmp_path / "empty.yaml")
    check_references({"a": "${b}", "b": [1, "${c.d}"], "c": {"d": "x"}, "e": "${oc.env:HOME}"})


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_files_have_the_rights_that_the_user_gives(mask, tmp_path):
    """In a process of its own: a mask is of all threads."""
    done = subprocess.run(
        [sys.executable, "-m", "clplat", "out=a", "checkpoint.every=1", *QUICK.split()],
        cwd=tmp_path,
        preexec_fn=lambda: os.umask(mask),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 8
    modes = {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in files}
    assert set(modes.values()) == {oct(0o666 & ~mask)}, modes
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o777 & ~mask


def test_what_is_written_beside_has_these_rights_too(tmp_path):
    before = os.umask(0o027)
    try:
        write_atomically(tmp_path / "x", b"1")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o640


def test_what_is_escaped_is_not_resolved_behind_the_checks_back(command):
    Path("mine/strategy").mkdir(parents=True)
    Path("mine/strategy/sly.yaml").write_text(
        "_target_: strategies.replay.Replay\n"
        """memory: '\\${oc.decode:"{_target_: os.mkdir, _args_: [mark]}"}'\n"""
    )
    outcome = command(f"--config-dir mine strategy=sly {QUICK}")
    assert outcome.status == 2
    assert "an escaped ${...}; write it without the backslash" in outcome.err
    assert not Path("mark").exists()
