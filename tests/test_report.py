"""The report of finished runs."""

import json
from pathlib import Path

import numpy as np
import pytest

from clplat.figures import anytime_figure, curves_figure, matrices_figure, matrix_figure
from clplat.report import anytime_curves, by_configuration, find_runs, main, mean_matrix


def write_run(folder: Path, strategy: str, digest: str, accuracy: float, seconds: float) -> None:
    folder.mkdir(parents=True)
    result = {
        "scenario": "split_digits",
        "strategy": strategy,
        "digest": digest,
        "experiences": 2,
        "accuracy": accuracy,
        "forgetting": 0.5,
        "backward_transfer": -0.5,
        "seconds": seconds,
        "memory_bytes": None if strategy == "stock" else 2048,
        "accuracy_so_far": [1.0, accuracy],
    }
    (folder / "result.json").write_text(json.dumps(result))
    np.save(folder / "accuracy_matrix.npy", np.full((3, 2), accuracy))


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed, accuracy in enumerate((0.2, 0.3, 0.7)):
        write_run(tmp_path / f"runs/replay/seed_{seed}", "replay", "aaaa", accuracy, 1.0)
    write_run(tmp_path / "runs/stock/seed_0", "stock", "bbbb", 0.9, 3.0)
    return tmp_path / "runs"


def test_runs_are_grouped_by_configuration_best_first(runs):
    groups = by_configuration(find_runs([runs]))
    assert {name: len(group) for name, group in groups.items()} == {"stock": 1, "replay": 3}
    assert list(groups) == ["stock", "replay"]
    np.testing.assert_allclose(mean_matrix(groups["replay"]), 0.4)


def test_configurations_of_one_strategy_are_told_apart_by_digest(runs):
    write_run(runs / "other", "replay", "cccc", 0.1, 1.0)
    assert set(by_configuration(find_runs([runs]))) == {"stock", "replay aaaa", "replay cccc"}


def test_the_final_score_on_each_experience_is_shown_if_asked_for(runs, capsys):
    main([str(runs), "--experiences"])
    text = capsys.readouterr().out
    table = text[text.index("score on each experience after the last one") :]
    row = next(line for line in table.splitlines() if "replay" in line)
    deviation = np.std([0.2, 0.3, 0.7], ddof=1)
    assert row.count(f"0.400 ± {deviation:.3f}") == 2


def test_the_table_has_mean_and_sample_deviation_and_figures_are_written(runs, capsys):
    main([str(runs)])
    text = capsys.readouterr().out
    row = next(line for line in text.splitlines() if "replay" in line)
    deviation = np.std([0.2, 0.3, 0.7], ddof=1)
    assert f"0.400 ± {deviation:.3f}" in row
    assert "2.0 KiB" in row
    assert " - " in next(line for line in text.splitlines() if "stock" in line)
    for name in ("accuracy.png", "accuracy_matrix.png"):
        assert (runs / name).read_bytes().startswith(b"\x89PNG")
    assert f"tensorboard --logdir {runs}" in text
    assert "/?smoothing=0&tagFilter=metrics&runColorGroup=regex:%5E(.*)/seed#timeseries" in text


def test_a_folder_without_runs_is_explained(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main([str(tmp_path / "none")])
    assert stop.value.code == 2
    assert "no finished run (a folder with result.json) below it" in capsys.readouterr().err


def test_curves_show_the_mean_and_one_deviation():
    runs = [[1.0, 0.4], [0.8, 0.6]]
    axes = curves_figure({"replay": runs}, "title").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.9, 0.5])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.9 + np.std([1.0, 0.8], ddof=1))
    assert [t.get_text() for t in axes.get_legend().get_texts()] == ["replay"]


def test_accuracy_against_samples_is_drawn_where_runs_were_evaluated_together(tmp_path):
    def made(name, points, anytime=0.5):
        lines = [{"experience": 0, "samples": s, "accuracy": a} for s, a in points]
        (tmp_path / name).mkdir()
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"experience": 0, "epoch": 0}])
        (tmp_path / name / "metrics.jsonl").write_text(text)
        return tmp_path / name, {"anytime_accuracy": anytime}

    groups = {
        "replay": [
            made("a", [(10, 0.9), (17, 0.8), (20, 0.5)]),
            made("b", [(10, 0.7), (13, 0.1), (20, 0.3)]),
        ],
        "without": [made("c", [], anytime=None)],
    }
    curves = anytime_curves(groups)
    assert curves == {"replay": ([10, 20], [[0.9, 0.5], [0.7, 0.3]])}
    axes = anytime_figure(curves, "title").axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [10, 20])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.8, 0.4])
    assert axes.get_xlabel() == "samples seen"


def test_heat_maps_leave_the_untrained_row_out():
    matrix = np.array([[0.9, 0.1], [0.3, 0.8], [0.5, 0.5]])
    image = matrix_figure(matrix, "title").axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), matrix[:2])
    figure = matrices_figure({"a": matrix, "b": matrix, "c": matrix, "d": matrix}, "title")
    shown = [axes for axes in figure.axes if axes.get_visible() and axes.images]
    assert [axes.get_title() for axes in shown] == ["a", "b", "c", "d"]
