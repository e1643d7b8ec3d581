"""The examples of README and guides are run as they are printed, outside the repository."""

import json
import re
import runpy
import tomllib
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from torch.utils._pytree import tree_flatten

ROOT = Path(__file__).parent.parent
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
QUICK = "train.epochs=1 scenario.experiences=3"


def write_examples(document: Path, folder: Path) -> list[str]:
    """Write each block that begins with `# path` to that path; return the `clplat` commands."""
    commands = []
    for kind, text in BLOCK.findall(document.read_text()):
        first = text.splitlines()[0]
        if kind in ("python", "yaml") and first.startswith("# "):
            file = folder / first.removeprefix("# ")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        if kind == "console":
            commands += [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    return [c.split("#")[0].strip() for c in commands]


def example_of(document: str, strategy: str, folder: Path) -> str:
    commands = write_examples(ROOT / document, folder)
    (one,) = [c for c in commands if f"strategy={strategy}" in c]
    return one.removeprefix("clplat ")


def test_the_documented_layer_runs_and_keeps_the_law(command, tmp_path, monkeypatch):
    commands = write_examples(ROOT / "docs/guides/layers.md", tmp_path)
    (example,) = [c.removeprefix("clplat ") for c in commands if "average" in c]
    outcome = command(f"{example} out=runs/mine {QUICK}")
    assert outcome.status == 0, outcome.err
    assert json.loads(Path("runs/mine/result.json").read_text())["strategy"] == "finetune"
    monkeypatch.syspath_prepend(str(tmp_path / "mylab"))
    runpy.run_path(str(tmp_path / "mylab/check_average.py"))


def test_the_documented_analysis_is_recorded(command, tmp_path):
    commands = write_examples(ROOT / "docs/guides/analysis.md", tmp_path)
    (example,) = [c.removeprefix("clplat ") for c in commands if "analysis=dead" in c]
    outcome = command(f"{example} out=runs/mine {QUICK}")
    assert outcome.status == 0, outcome.err
    measured = json.loads(Path("runs/mine/result.json").read_text())["measured"]
    assert 0 <= measured["dead_units"] < 1
    (other,) = [c.removeprefix("clplat ") for c in commands if "n_parity" in c]
    small = "scenario.experiences=2 scenario.samples=64 scenario.test_samples=32 train.epochs=1"
    outcome = command(f"{other} out=runs/other {small} analysis.steps=600 analysis.samples=100")
    assert outcome.status == 0, outcome.err


def test_the_documented_hypernetworks_run(command, tmp_path):
    commands = write_examples(ROOT / "docs/guides/hypernetworks.md", tmp_path)
    assert sum("mixture" in c for c in commands) == 1
    runs = [c.removeprefix("clplat ") for c in commands if "backbone=" not in c]
    for k, arguments in enumerate(runs):
        outcome = command(f"{arguments} out=runs/{k} {QUICK}")
        assert outcome.status == 0, (arguments, outcome.err)
    example = runpy.run_path(str(tmp_path / "mylab/rows.py"))
    assert example["model"].tasks == [0, 1]


def test_the_documented_lists_of_strategies_run(command, tmp_path):
    commands = write_examples(ROOT / "docs/guides/strategies.md", tmp_path)
    one, refused, swept = (c.removeprefix("clplat ") for c in commands if "replay" in c)
    assert command(f"{one} {QUICK}").status == 0
    assert list(Path("runs/split_digits/replay+lwf").rglob("result.json"))
    text = (ROOT / "docs/guides/strategies.md").read_text()
    printed = text.partition(f"$ clplat {refused}\n")[2].partition("\n")[0]
    assert command(refused).err == f"{printed}\n"
    outcome = command(f"{swept} scenario.task_labels=true {QUICK}")
    assert outcome.status == 0, outcome.err
    assert len(list(Path("runs/split_digits/replay_lwf").rglob("result.json"))) == 3


SIZES = {"D": 8, "H": 4, "P": 2, "N": 6, "E": 16, "n": 2, "F": 3, "W": 5, "T": 7}


def state_rows() -> list[tuple[str, str]]:
    """Each layer of the README's table, and the size of its state where that is a formula."""
    rows = []
    for line in (ROOT / "README.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        formula = len(cells) == 4 and re.match(r"[\dDE]", cells[3])
        if formula and cells[0].startswith("`"):
            rows += [(name, cells[3]) for name in re.findall(r"`(\w+)`", cells[0])]
    return rows


@pytest.mark.parametrize(("name", "formula"), state_rows())
def test_the_readme_says_how_large_a_state_is(name, formula):
    keys = {"state": "N", "householder": "n", "hidden": "F", "window": "W"}
    with initialize_config_module("clplat.conf", version_base="1.3"):
        node = compose("config", overrides=[f"backbone={name}"]).backbone.layer
    settings = {key: SIZES[symbol] for key, symbol in keys.items() if key in node}
    layer = instantiate(node, **settings)(SIZES["D"])
    _, state = layer(torch.randn(1, SIZES["T"], SIZES["D"]))
    tensors = [x for x in tree_flatten(state)[0] if isinstance(x, torch.Tensor)]
    count = sum(x.numel() * (2 if x.is_complex() else 1) for x in tensors)
    product = re.sub(r"(?<=[\w)]) (?=[\w(])", "*", formula.removesuffix(", growing"))
    assert count == eval(product, {}, SIZES)


@pytest.mark.parametrize(
    ("document", "strategy"),
    [("README.md", "freeze"), ("docs/guides/strategies.md", "feature_anchor")],
)
def test_the_documented_strategy_runs_from_a_directory_outside_the_repository(
    command, tmp_path, document, strategy
):
    arguments = example_of(document, strategy, tmp_path)
    yaml = (tmp_path / f"mylab/strategy/{strategy}.yaml").read_text().splitlines()
    assert len(yaml) <= 5
    outcome = command(f"{arguments} out=runs/mine {QUICK}")
    assert outcome.status == 0, outcome.err
    result = json.loads(Path("runs/mine/result.json").read_text())
    assert result["strategy"] == strategy


@pytest.mark.parametrize("way", ["CLPLAT_CONF_PATH", "hydra.searchpath"])
def test_the_users_folder_is_found_in_every_documented_way(command, tmp_path, monkeypatch, way):
    write_examples(ROOT / "README.md", tmp_path)
    arguments = f"strategy=freeze out=runs/mine {QUICK}"
    if way == "CLPLAT_CONF_PATH":
        monkeypatch.setenv(way, str(tmp_path / "mylab"))
    else:
        arguments += f" hydra.searchpath=[file://{tmp_path}/mylab]"
    outcome = command(arguments)
    assert outcome.status == 0, outcome.err


def test_the_frozen_encoder_of_the_example_is_not_trained_any_more(command, tmp_path):
    arguments = example_of("README.md", "freeze", tmp_path)
    assert command(f"{arguments} strategy.experiences=1 out=runs/a {QUICK}").status == 0
    assert command(f"{arguments} strategy.experiences=3 out=runs/b {QUICK}").status == 0
    a, b = (json.loads(Path(f"runs/{n}/result.json").read_text()) for n in "ab")
    assert a["accuracy_so_far"][0] == b["accuracy_so_far"][0]
    assert a["accuracy_so_far"][1] != b["accuracy_so_far"][1]


def test_the_commands_of_the_readme_are_accepted(command):
    runs = [
        c.removeprefix("clplat ")
        for c in write_examples(ROOT / "README.md", Path("elsewhere"))
        if c.startswith("clplat ") and "mylab" not in c
    ]
    assert len(runs) >= 4
    for arguments in runs:
        settings = "" if "--help" in arguments else f" {QUICK}"
        outcome = command(arguments + settings)
        assert outcome.status == 0, (arguments, outcome.err)


def test_every_link_of_the_documents_leads_somewhere():
    for document in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document}: {target}"


def test_every_choice_of_the_readme_table_exists_and_none_is_missing():
    text = (ROOT / "README.md").read_text()
    for group in ("scenario", "strategy", "backbone", "head", "hypernet"):
        for file in (ROOT / "conf" / group).glob("*.yaml"):
            assert f"`{file.stem}`" in text, f"{group} {file.stem} is not in the README"


def test_the_tests_command_is_what_the_pipeline_calls():
    pipeline = (ROOT / ".ci/run").read_text().splitlines()
    assert "make test" in pipeline
    assert "make check" in pipeline


def test_every_dependency_is_pinned_by_version_alone():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["dev"]
    for requirement in wanted:
        name = re.split(r"[\[<>=;~ ]", requirement)[0]
        assert name in pins, f"{name} is not pinned"
