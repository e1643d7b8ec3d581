"""What a run leaves behind, read back as others would read it."""

import json
import re

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2

from clplat.directory import read_digest, read_result, write_atomically
from clplat.events import matrix_markdown
from clplat.hparams import hyperparameters
from clplat.record import Record

MATRIX = np.array([[0.9, 0.1], [0.3, 0.8], [0.5, 0.4]])
NAMES = {"scenario": "split_digits", "strategy": "ewc"}
CONFIG = {
    "seed": 3,
    "out": "somewhere",
    "strategy": {"_target_": "strategies.ewc.EWC", "strength": 10, "online": False, "x": None},
    "scenario": {"seed": 3, "source": "digits"},
}


@pytest.fixture
def written(tmp_path):
    out = tmp_path / "run"
    record = Record(out, CONFIG, "0123abcd", NAMES)
    record.experience(-1, MATRIX)
    for k in range(2):
        record.epoch(k, 0, 10 * (k + 1), loss=1.5 - k, score=0.5)
        record.experience(k, MATRIX)
    record.finish({**NAMES, "score": "accuracy", "accuracy": 0.55}, MATRIX)
    record.close()
    return out


@pytest.fixture
def events(written):
    accumulator = EventAccumulator(str(written), size_guidance={"scalars": 0, "tensors": 0})
    return accumulator.Reload()


def scalars(events, tag):
    return [(e.step, pytest.approx(e.value)) for e in events.Scalars(tag)]


def test_scalars_hold_every_row_of_the_matrix(events):
    for j in range(2):
        expected = [(0, MATRIX[-1, j]), (1, MATRIX[0, j]), (2, MATRIX[1, j])]
        assert scalars(events, f"accuracy/task{j:02d}") == expected


def test_metrics_so_far_are_those_of_the_part_of_the_matrix_seen(events):
    assert scalars(events, "metrics/accuracy") == [(1, 0.9), (2, 0.55)]
    assert scalars(events, "metrics/forgetting") == [(1, 0.0), (2, 0.6)]
    assert scalars(events, "train/loss") == [(10, 1.5), (20, 0.5)]


def test_the_matrix_is_there_as_picture_table_and_numbers(events):
    from tensorboard.util.tensor_util import make_ndarray

    (numbers,) = events.Tensors("accuracy_matrix/values")
    np.testing.assert_allclose(make_ndarray(numbers.tensor_proto), MATRIX)
    (table,) = events.Tensors("accuracy_matrix/text_summary")
    assert make_ndarray(table.tensor_proto)[0].decode() == matrix_markdown(MATRIX)
    assert "accuracy_matrix" in events.Tags()["images"]


def test_hyperparameters_and_their_session_are_in_the_runs_own_file(events):
    plugin = events.PluginTagToContent("hparams")
    # No "experiment": TensorBoard would take the columns of all runs from that of one.
    assert set(plugin) == {"_hparams_/session_start_info", "_hparams_/session_end_info"}
    content = plugin["_hparams_/session_start_info"]
    start = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info
    assert start.group_name == "0123abcd"  # so that the seeds of a config are averaged
    assert {k: v.WhichOneof("kind") for k, v in start.hparams.items()} == {
        "scenario": "string_value",
        "strategy": "string_value",
        "strategy.strength": "number_value",
        "strategy.online": "bool_value",
        "scenario.source": "string_value",
    }


def test_hyperparameters_leave_out_seeds_places_targets_and_what_is_not_set():
    assert hyperparameters(CONFIG, NAMES) == {
        **NAMES,
        "strategy.strength": 10,
        "strategy.online": False,
        "scenario.source": "digits",
    }


def test_what_is_known_at_the_end_alone_is_a_scalar_too(tmp_path):
    record = Record(tmp_path, CONFIG, "0", NAMES)
    measured = {"seconds": 1.5, "memory_bytes": None, "parameters": 12, "intransigence": 0.25}
    record.finish({**NAMES, "score": "accuracy", "accuracy": 0.5, **measured}, MATRIX)
    record.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert scalars(events, "cost/seconds") == [(2, 1.5)]
    assert scalars(events, "cost/parameters") == [(2, 12)]
    assert scalars(events, "metrics/intransigence") == [(2, 0.25)]
    assert len(events.Tags()["scalars"]) == 3


def test_the_custom_scalars_page_compares_runs_on_each_experience(events):
    from tensorboard.plugins.custom_scalar import layout_pb2
    from tensorboard.util.tensor_util import make_ndarray

    (message,) = events.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(make_ndarray(message.tensor_proto).item())
    tags = events.Tags()["scalars"]
    charts = {
        chart.title: [tag for tag in tags if re.match(chart.multiline.tag[0], tag)]
        for category in layout.category
        for chart in category.chart
    }
    assert charts == {
        "experience 0": ["accuracy/task00"],
        "experience 1": ["accuracy/task01"],
        "experiences of a run": ["accuracy/task00", "accuracy/task01"],
    }


def test_metrics_jsonl_has_a_line_an_epoch_and_an_evaluation(written):
    lines = [json.loads(line) for line in (written / "metrics.jsonl").read_text().splitlines()]
    assert [line["experience"] for line in lines] == [-1, 0, 0, 1, 1]
    assert [line.get("loss") for line in lines] == [None, 1.5, None, 0.5, None]
    assert lines[-1]["scores"] == MATRIX[1].tolist()


def test_result_config_and_digest_are_read_back(written):
    assert read_result(written)["accuracy"] == 0.55
    assert read_digest(written) == "0123abcd"
    assert "experience 1: accuracy 0.5500" in (written / "run.log").read_text()


def test_a_write_that_fails_leaves_the_old_file_whole(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    file.write_text("old")

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", no_space)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_text() == "old"
