"""The command line as a user meets it: runs, sweeps, messages, exit status."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.command import Command

QUICK = "train.epochs=1 scenario.experiences=2"


@pytest.fixture
def command(command, monkeypatch, tmp_path) -> Command:
    monkeypatch.delenv("CLPLAT_CONF_PATH", raising=False)
    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path / "no_data"))
    return command


def result(folder: Path | str) -> dict:
    return json.loads((Path(folder) / "result.json").read_text())


def test_a_run_leaves_the_whole_run_directory(command):
    outcome = command(f"strategy=ewc strategy.strength=100 backbone=mlp seed=0 out=runs/a {QUICK}")
    assert outcome.status == 0, outcome.err
    names = {p.name.split(".1")[0] for p in Path("runs/a").iterdir()}
    assert names == {
        "config.yaml",
        "events.out.tfevents",
        "metrics.jsonl",
        "accuracy_matrix.npy",
        "result.json",
        "lock",
        "run.log",
        "status.json",
    }
    assert np.load("runs/a/accuracy_matrix.npy").shape == (3, 2)


def test_the_default_directory_names_scenario_strategy_digest_and_seed(command):
    assert command(f"strategy=replay seed=3 {QUICK}").status == 0
    (out,) = Path("runs").glob("*/*/*/*/")
    digest = result(out)["digest"]
    assert out == Path("runs/split_digits/replay") / digest / "seed_3"


def test_seeds_set_apart_get_a_directory_of_their_own(command):
    assert command(f"seed=3 seed_init=4 {QUICK}").status == 0
    (out,) = Path("runs").glob("*/*/*/*/")
    assert out.name == "seed_3_init_4"
    assert result(out)["seeds"] == {"seed": 3, "seed_data": 3, "seed_init": 4, "seed_train": 3}


def test_a_sweep_runs_every_combination_and_seeds_share_a_digest(command):
    outcome = command(f"-m strategy=replay,ewc seed=0,1 {QUICK}")
    assert outcome.status == 0, outcome.err
    runs = sorted(Path("runs").glob("split_digits/*/*/*/result.json"))
    assert [(r.parts[2], r.parts[4]) for r in runs] == [
        ("ewc", "seed_0"),
        ("ewc", "seed_1"),
        ("replay", "seed_0"),
        ("replay", "seed_1"),
    ]
    assert len({r.parts[3] for r in runs}) == 2


def test_a_finished_run_is_not_run_again(command):
    command(f"out=runs/a {QUICK}")
    before = Path("runs/a/result.json").stat().st_mtime_ns
    outcome = command(f"out=runs/a {QUICK}")
    assert outcome.status == 0
    assert "finished before: runs/a" in outcome.err
    assert Path("runs/a/result.json").stat().st_mtime_ns == before


def test_a_run_that_broke_off_before_it_was_saved_is_begun_anew(command):
    command(f"out=runs/a {QUICK}")
    expected = result("runs/a")["accuracy"]
    Path("runs/a/result.json").unlink()
    assert command(f"out=runs/a {QUICK}").status == 0
    assert result("runs/a")["accuracy"] == expected
    assert len(list(Path("runs/a").glob("events*"))) == 1


@pytest.mark.parametrize("strategy", ["replay", "derpp", "ewc", "lwf", "finetune"])
def test_two_runs_of_one_config_are_identical(command, strategy):
    command(f"strategy={strategy} out=runs/a {QUICK}")
    command(f"strategy={strategy} out=runs/b {QUICK}")
    a, b = result("runs/a"), result("runs/b")
    for varies in ("seconds", "peak_memory_bytes"):
        a.pop(varies), b.pop(varies)
    assert a == b
    matrices = [Path(f"runs/{name}/accuracy_matrix.npy").read_bytes() for name in "ab"]
    assert matrices[0] == matrices[1]


@pytest.mark.parametrize("seed", ["seed_data", "seed_init", "seed_train"])
def test_each_seed_changes_the_run_by_itself(command, seed):
    command(f"out=runs/a {QUICK}")
    command(f"{seed}=7 out=runs/b {QUICK}")
    a, b = (np.load(f"runs/{name}/accuracy_matrix.npy") for name in "ab")
    assert not np.array_equal(a, b)
    untrained_is_equal = np.array_equal(a[-1], b[-1])
    assert untrained_is_equal == (seed == "seed_train")


def test_a_joint_run_serves_as_the_reference_of_intransigence(command):
    command(f"strategy=joint out=runs/joint {QUICK}")
    command(f"reference=runs/joint out=runs/a {QUICK}")
    joint, ours = (np.load(f"runs/{name}/accuracy_matrix.npy") for name in ("joint", "a"))
    expected = np.mean([joint[j, j] - ours[j, j] for j in range(2)])
    assert result("runs/a")["intransigence"] == pytest.approx(expected)
    assert result("runs/joint")["intransigence"] is None


def test_evaluation_inside_experiences_gives_the_stability_gap_and_changes_nothing_else(command):
    command(f"out=runs/a {QUICK}")
    command(f"eval.every=5 out=runs/b {QUICK}")
    a, b = result("runs/a"), result("runs/b")
    assert a["stability_gap"] is None
    assert 0 <= b["stability_gap"] <= 1
    assert a["accuracy"] == b["accuracy"]


def test_all_sweepable_keys_of_the_contract_exist(command):
    text = command("--cfg job strategy=ewc schedule=cosine").out
    for key in (
        *("seed:", "seed_data:", "seed_init:", "seed_train:", "device:", "precision:"),
        *("compile:", "out:", "epochs:", "batch_size:", "grad_clip:", "every:", "lr:"),
        *("experiences:", "task_labels:", "strength:"),
    ):
        assert key in text, key
    text = command("--cfg job strategy=replay").out
    assert "capacity:" in text
    assert "memory:" in text


def test_help_lists_groups_and_examples(command):
    outcome = command("--help")
    assert outcome.status == 0
    assert "clplat -m strategy=replay,ewc seed=0,1,2" in outcome.out
    assert "scenario: avalanche, languages, n_parity" in outcome.out
    assert "batch_size: 32" in outcome.out
    assert "# passes over each experience" in outcome.out
    assert 'eval "$(clplat -sc install=bash)"' in outcome.out


def test_help_on_a_choice_shows_its_keys_with_their_comments(command):
    text = command("--help strategy=ewc").out
    assert "strength: 100" in text
    assert "exact, empirical, batch" in text


def test_help_lists_the_users_own_choices(command, monkeypatch):
    for folder in ("given", "from_environment"):
        Path(folder, "strategy").mkdir(parents=True)
        Path(folder, "strategy", f"{folder}_one.yaml").write_text("# Mine.\n")
    monkeypatch.setenv("CLPLAT_CONF_PATH", "from_environment")
    text = command("--config-dir given --help").out
    assert "given_one" in text
    assert "from_environment_one" in text


def test_help_takes_no_import_of_hydra():
    code = (
        "import sys; sys.argv = ['clplat', '--help']; from clplat.__main__ import main; main();"
        "print({'hydra', 'torch', 'avalanche'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_shell_completion_completes_groups_and_their_files(command, monkeypatch):
    monkeypatch.setenv("COMP_LINE", "clplat strategy=re")
    monkeypatch.setenv("COMP_POINT", "18")
    assert command("-sc query=bash").out.split() == ["strategy=replay"]


def test_the_command_line_imports_nothing_heavy_before_it_runs():
    code = "import sys, clplat.command; print({'torch', 'avalanche', 'sklearn'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


BAD = {
    "strategy=nothing": "strategy=nothing: no such choice; there are a_gem, cumulative, ",
    "scenario=split_digit": "no such choice (did you mean split_digits or split_mnist?)",
    "backbone=nothing": "backbone=nothing: no such choice; there are aaren, attention, ",
    "strategy=[replay,ewcc]": "strategy=ewcc: no such choice (did you mean ewc?); there are ",
    "hydra/launcher=slurm": "hydra/launcher=slurm: no such choice; there are basic, joblib, ray",
    "stratgy=ewc": "stratgy: no such key (did you mean strategy?); clplat --help lists them",
    "strategy=ewc strategy.strenght=3": "strategy.strenght: no such key (did you mean "
    "strategy.strength?); clplat --help strategy=ewc lists them",
    "strategy.strength=3": "strategy.strength: no such key (it belongs to strategy=ewc, ",
    "strategy=[replay,lwf] strategy.replay.capcity=9": "strategy.replay.capcity: no such key (did "
    "you mean strategy.replay.capacity?); clplat --help strategy=replay lists them",
    "strategy.qqq=3": "strategy.qqq: no such key; clplat --help strategy=finetune lists them; "
    "+strategy.qqq=... adds an argument that the file leaves out",
    "lr=0.1": "lr: no such key (did you mean optimizer.lr?); clplat --help lists them",
    "hydra.nothing=1": "hydra.nothing: no such key; clplat --cfg hydra lists those of Hydra",
    "optimizer.lr=-0.1": "optimizer.lr=-0.1: expected a number above 0; for example optimizer.lr=0",
    "train.epochs=0": "train.epochs=0: expected a whole number of at least 1; for example train",
    "train.epochs=1.5": "train.epochs=1.5: expected a whole number of at least 1",
    "train.epochs=many": "train.epochs=many: expected a whole number of at least 1",
    "train.batch_size=0": "train.batch_size=0: expected a whole number of at least 1",
    "train.grad_clip=-1": "train.grad_clip=-1: expected a number above 0, or null",
    "eval.every=0": "eval.every=0: expected a whole number of at least 1, or null",
    "optimizer.lr=nan": "optimizer.lr=nan: expected a number above 0",
    "seed=-1": "seed=-1: expected a whole number of at least 0",
    "seed=99999999999": "seed=99999999999: expected a whole number of at least 0 and at most "
    "4294967295; for example seed=0",
    "+capacity=50 strategy=replay": "capacity=50: nothing reads this key; expected one of seed, ",
    "+lr=50": "set optimizer.lr",
    "+train.epoch=5": "train.epoch=5: nothing reads this key; expected one of epochs, batch_size, ",
    "precision=fp8": "precision=fp8: expected one of fp32, bf16, fp16",
    "device=tpu": "device=tpu: expected auto, cpu, cuda or cuda:<number>",
    "scenario.experiences=11": "scenario.experiences=11: more experiences than the 10 classes of "
    "the source; choose at most 10",
    "threads=2147483648": "threads=2147483648: expected a whole number of at least 1 and at most "
    "1024; for example threads=1",
    "scenario=permuted_digits scenario.experiences=2147483648": "scenario.experiences="
    "2147483648: expected a whole number of at least 1 and at most 10000, or null; for example",
    "backbone=gru backbone.depth=10001": "backbone.depth=10001: expected a whole number of at "
    "least 1 and at most 10000; for example backbone.depth=1",
    "scenario.experiences=0": "scenario.experiences=0: expected a whole number of at least 1",
    "strategy=replay strategy.capacity=9": "strategy.capacity=9: strategy.memory=class_balanced "
    "keeps at least one sample of each of the scenario's 10 classes; set strategy.capacity=10 or",
    "strategy=replay strategy.memory=fifo": "strategy.memory=fifo: no such policy; choose one of "
    "reservoir, class_balanced, ring, herding",
    "strategy=replay strategy.batch_size=0": "strategy.batch_size=0: expected a whole number of",
    "strategy=ewc strategy.fisher=full": "strategy.fisher=full: choose one of exact, empirical",
    "strategy=lwf strategy.temperature=0": "strategy.temperature=0: expected more than 0",
    "head=multi": "head=multi: a head for each task needs task labels, and the scenario gives none;"
    " set scenario.task_labels=true, or head=single",
    "scenario=split_mnist": "scenario.source=mnist: not found in",
    "scenario=split_cifar10": "scenario.source=cifar10: not found in",
    "scenario.source=imagenet": "scenario.source=imagenet: no such source; choose one of digits, ",
    "strategy._target_=os.system": "strategy._target_=os.system: not allowed; a config may name",
    "backbone._target_=builtins.eval": "backbone._target_=builtins.eval: not allowed",
    "strategy._target_=torch.hub.load": "strategy._target_=torch.hub.load: not allowed",
    "strategy._target_=strategies.replay.torch.load": "not allowed; it is <function load",
    "strategy._target_=strategies.nowhere.X": "strategies.nowhere.X: cannot be imported (No module "
    "named 'strategies.nowhere')",
    "strategy._target_=strategies.replay.X": "strategies.replay.X: cannot be imported",
    "schedule=cosine schedule.final=2": "schedule.final=2: a share of the peak rate is in 0..1",
    "reference=runs/none": "reference=runs/none: holds no finished run; expected a finished joint",
    "-m seed=glob(*)": "no run came of it",
    "strategy=avalanche/er_ace precision=bf16": "precision=bf16: this Avalanche strategy brings "
    "its own loop, which has no such setting; set precision=fp32",
    "strategy=avalanche/agem train.accumulate=2": "train.accumulate=2: Avalanche's plugins may "
    "zero or rewrite the gradients between batches; set train.accumulate=1",
    "strategy=avalanche/lwf train.accumulate=2": "train.accumulate=2: Avalanche's plugins may zero",
    "strategy=avalanche/er_ace train.grad_clip=1": "train.grad_clip=1: this Avalanche strategy "
    "brings its own loop, which has no such setting; set train.grad_clip=null",
    "backbone.hidden=7": "refused its arguments",
}


@pytest.mark.parametrize("arguments", BAD)
def test_bad_input_is_explained_with_status_2_and_leaves_no_run_directory(command, arguments):
    outcome = command(arguments)
    assert outcome.status == 2
    assert BAD[arguments] in outcome.err
    assert "Traceback" not in outcome.err
    assert not list(Path.cwd().rglob("config.yaml"))


def test_our_own_messages_are_one_line(command):
    for arguments in ("optimizer.lr=-1", "head=multi", "strategy._target_=os.system"):
        assert len(command(arguments).err.strip().splitlines()) == 1


def test_a_device_that_is_not_there_is_named(command, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    outcome = command("device=cuda")
    assert outcome.status == 2
    assert "device=cuda: this machine has 0 CUDA devices" in outcome.err
    assert "set device=cpu, or device=auto" in outcome.err


def test_a_directory_with_another_configs_result_is_refused(command):
    command(f"out=runs/a {QUICK}")
    outcome = command(f"out=runs/a optimizer.lr=0.01 {QUICK}")
    assert outcome.status == 2
    assert "out=runs/a: holds a run of another config (digest " in outcome.err
    assert "choose another out, or remove that directory" in outcome.err
    outcome = command(f"out=runs/a seed=1 {QUICK}")
    assert outcome.status == 2
    assert "out=runs/a: holds a run with other seeds" in outcome.err


def test_an_out_that_is_a_file_is_refused(command):
    Path("taken").write_text("mine")
    outcome = command(f"out=taken {QUICK}")
    assert outcome.status == 2
    assert "out=taken: is a file; expected a directory" in outcome.err
    assert Path("taken").read_text() == "mine"


def test_a_signal_while_libraries_are_imported_is_told_in_one_line(command, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("clplat.command.outcome_of", stopped)
    outcome = command("strategy=ewc")
    assert outcome.status == 130
    assert outcome.err == "clplat: stopped by SIGINT before it began\n"


def test_a_yaml_that_does_not_parse_is_named(command):
    Path("mine/strategy").mkdir(parents=True)
    Path("mine/strategy/broken.yaml").write_text("a: [1,\n")
    outcome = command("--config-dir mine strategy=broken")
    assert outcome.status == 2
    assert "broken.yaml" in outcome.err
    assert "Traceback" not in outcome.err


def test_a_strategy_that_needs_task_labels_is_refused_without(command):
    Path("mine/strategy").mkdir(parents=True)
    Path("mine/strategy/labelled.yaml").write_text("_target_: labelled.Labelled\n")
    Path("mine/labelled.py").write_text(
        "from avalanche.core import SupervisedPlugin\n\n\n"
        "class Labelled(SupervisedPlugin):\n    needs_task_labels = True\n"
    )
    outcome = command(f"--config-dir mine strategy=labelled {QUICK}")
    assert outcome.status == 2
    assert "strategy: Labelled needs task labels, and the scenario gives none" in outcome.err
    labelled = f"--config-dir mine strategy=labelled scenario.task_labels=true {QUICK}"
    assert command(labelled).status == 0


def test_a_loss_that_is_not_finite_ends_the_run_with_status_1(command):
    outcome = command(f"optimizer=sgd optimizer.lr=1e9 out=runs/a {QUICK}")
    assert outcome.status == 1
    assert "the loss is not finite (experience 0, epoch 0, iteration " in outcome.err
    assert not Path("runs/a/result.json").exists()
    assert "the loss is not finite" in Path("runs/a/run.log").read_text()


def test_one_failing_run_does_not_end_a_sweep(command):
    outcome = command(f"-m optimizer.lr=-1,0.001 {QUICK}")
    assert outcome.status == 2
    assert len(list(Path("runs").rglob("result.json"))) == 1


def test_precision_clipping_accumulation_and_threads_are_settings(command):
    settings = "precision=bf16 train.grad_clip=1 train.accumulate=2 threads=2 schedule=step"
    assert command(f"{settings} out=runs/a {QUICK}").status == 0
    assert np.isfinite(np.load("runs/a/accuracy_matrix.npy")).all()


def test_the_encoder_can_be_compiled(command):
    assert command(f"compile=true out=runs/a {QUICK}").status == 0
    assert command(f"out=runs/b {QUICK}").status == 0
    a, b = (np.load(f"runs/{name}/accuracy_matrix.npy") for name in "ab")
    np.testing.assert_allclose(a, b, atol=0.05)


def test_data_larger_than_the_threshold_is_read_by_a_data_loader(command):
    settings = "scenario.experiences=2 train.epochs=5"
    assert command(f"data.resident_gigabytes=0 out=runs/a {settings}").status == 0
    assert command(f"out=runs/b {settings}").status == 0
    a, b = (np.load(f"runs/{name}/accuracy_matrix.npy") for name in "ab")
    assert np.array_equal(a[-1], b[-1])
    assert np.diag(a).min() > 0.5


def test_the_log_begins_with_where_data_was_read_from(command, tmp_path, monkeypatch):
    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path / "data"))
    text = tmp_path / "mine.txt"
    text.write_text("one line of text after another. " * 200)
    settings = "backbone=mingru backbone.pooling=none backbone.vocabulary=256 backbone.width=4"
    sizes = "scenario.samples=4 scenario.test_samples=2 scenario.window=8 train.epochs=1"
    outcome = command(f"scenario=text scenario.sources=[{text}] {settings} {sizes} out=runs/a")
    assert outcome.status == 0, outcome.err
    lines = Path("runs/a/run.log").read_text().splitlines()
    assert str(text) in lines[0]
    assert "read" in lines[0]
    assert any("experience 0" in line for line in lines[1:])
