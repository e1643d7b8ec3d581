"""The examples of README and guides are run as they are printed, outside the repository."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.command import Command

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


@pytest.fixture
def command(monkeypatch, capsys, tmp_path) -> Command:
    monkeypatch.chdir(tmp_path)
    return Command(monkeypatch, capsys)


def example_of(document: str, strategy: str, folder: Path) -> str:
    commands = write_examples(ROOT / document, folder)
    (one,) = [c for c in commands if f"strategy={strategy}" in c]
    return one.removeprefix("clplat ")


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
    for group in ("scenario", "strategy", "backbone", "head"):
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
