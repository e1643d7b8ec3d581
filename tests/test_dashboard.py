"""What TensorBoard is told about runs together."""

import json
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from clplat.dashboard import (
    COLUMNS,
    columns,
    compared,
    shown_first,
    write_columns,
)
from clplat.links import tensorboard_link

EWC = {"strategy": "ewc", "strategy.strength": 10, "strategy.online": False, "scenario": "digits"}
REPLAY = {"strategy": "replay", "strategy.capacity": 200, "scenario": "digits", "optimizer.lr": 0.1}


def finished(out: Path, strategy: str, digest: str, **settings) -> Path:
    out.mkdir(parents=True)
    result = {"strategy": strategy, "scenario": "digits", "digest": digest, "accuracy": 0.5}
    (out / "result.json").write_text(json.dumps({**result, "intransigence": None}))
    config = {"strategy": {"_target_": "x.Y", **settings}, "seed": 1}
    (out / "config.yaml").write_text(f"# digest: {digest}\n{yaml.safe_dump(config)}")
    return out


def experiment(folder: Path):
    events = EventAccumulator(str(folder)).Reload()
    content = events.PluginTagToContent("hparams")["_hparams_/experiment"]
    return plugin_data_pb2.HParamsPluginData.FromString(content).experiment


def test_columns_are_those_of_every_run_and_of_what_was_measured(tmp_path):
    finished(tmp_path / "a/seed_0", "ewc", "0", strength=1)
    finished(tmp_path / "b/seed_0", "replay", "1", capacity=5, memory="ring")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/config.yaml").write_text("# digest: 2\nstrategy: {other: 1}\n")  # not finished
    write_columns(tmp_path)
    found = experiment(tmp_path)
    assert [info.name for info in found.hparam_infos] == [
        *("scenario", "strategy", "strategy.capacity", "strategy.memory", "strategy.strength")
    ]
    kinds = {info.name: info.type for info in found.hparam_infos}
    assert kinds["strategy.capacity"] == 3  # DATA_TYPE_FLOAT64
    choices = {info.name: list(info.domain_discrete) for info in found.hparam_infos}
    assert list(choices["strategy"]) == ["ewc", "replay"]
    metrics = [(info.display_name, info.name.tag) for info in found.metric_infos]
    assert metrics == [("accuracy", "metrics/accuracy")]


def test_a_setting_of_several_types_is_a_column_of_text():
    summary = columns([{"strategy.layers": 1}, {"strategy.layers": "all"}], ["accuracy"])
    content = summary.value[0].metadata.plugin_data.content
    (info,) = plugin_data_pb2.HParamsPluginData.FromString(content).experiment.hparam_infos
    assert info.type == 1  # DATA_TYPE_STRING
    assert list(info.domain_discrete) == ["1", "all"]


def test_what_tells_runs_apart_is_shown_first():
    assert shown_first([EWC, REPLAY]) == [
        "strategy",  # which differs
        "strategy.strength",  # which one has
        "strategy.capacity",
        "strategy.online",
        "optimizer.lr",
    ]
    swept = [{**EWC, "strategy.online": online} for online in (True, False)]
    assert shown_first(swept) == ["strategy.online", "scenario"]


def test_one_file_of_columns_a_tree_as_tensorboard_takes_any(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    finished(tmp_path / "runs/a/one/seed_0", "ewc", "0")
    finished(tmp_path / "runs/b/seed_0", "replay", "1")
    for folder in ("runs", "runs/a", "runs/b", "runs/a/one", "runs/a"):
        write_columns(Path(folder))
    assert {str(file.parent) for file in Path("runs").rglob(COLUMNS)} == {"runs/a", "runs/b"}


def test_nothing_is_written_where_nothing_is_finished(tmp_path):
    write_columns(tmp_path)
    assert not [*tmp_path.iterdir()]


def test_the_link_smooths_nothing_and_colours_by_configuration():
    link = urlsplit(tensorboard_link(7000))
    assert (link.netloc, link.fragment) == ("localhost:7000", "timeseries")
    query = parse_qs(link.query)
    assert query["smoothing"] == ["0"]
    assert query["tagFilter"] == ["metrics"]
    kind, _, pattern = query["runColorGroup"][0].partition(":")
    assert kind == "regex"
    groups = {
        run: re.match(pattern, run)[1]  # type: ignore[index]
        for run in ("digits/ewc/0a/seed_0", "digits/ewc/0a/seed_10_init_2", "digits/ewc/0b/seed_0")
    }
    assert [*groups.values()] == ["digits/ewc/0a", "digits/ewc/0a", "digits/ewc/0b"]
    assert re.match(pattern, "seed_3")[1] == ""  # type: ignore[index]
    assert re.match(pattern, "mine")[1] == "mine"  # type: ignore[index]


def test_the_command_is_for_the_sweeps_folder_or_for_where_the_runs_lie(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inside = [finished(Path(f"runs/a/seed_{k}"), "ewc", "0") for k in range(2)]
    assert compared(Path("runs").absolute(), inside).splitlines() == [
        "compare: tensorboard --logdir runs",
        f"  metrics: {tensorboard_link()}",
        "  table: http://localhost:6006/#hparams",
        "  experiences: http://localhost:6006/#custom_scalars&_smoothingWeight=0",
        "  matrices: http://localhost:6006/#images",
    ]
    outside = [finished(Path(f"my runs/{k}"), "ewc", "0") for k in range(2)]
    assert compared(Path("runs"), outside).startswith("compare: tensorboard --logdir 'my runs'\n")
    assert experiment(tmp_path / "my runs").metric_infos


def test_columns_are_written_without_the_libraries_of_a_run():
    code = (
        "import sys, clplat.dashboard; print({'torch', 'avalanche', 'sklearn'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_a_damaged_run_is_passed_over(tmp_path):
    finished(tmp_path / "a", "ewc", "1", strength=10)
    (finished(tmp_path / "b", "replay", "2", capacity=200) / "result.json").write_text("{")
    write_columns(tmp_path)
    assert {info.name for info in experiment(tmp_path).hparam_infos} >= {"strategy.strength"}
    assert "strategy.capacity" not in {info.name for info in experiment(tmp_path).hparam_infos}
