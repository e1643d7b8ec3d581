"""The report of finished runs: what is found, grouped, written and refused."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from clplat.figures import matrix_figure
from clplat.links import tensorboard_link
from clplat.report import shown
from clplat.report.__main__ import main
from clplat.report.comparison import Comparison, compare
from clplat.report.configurations import by_configuration
from clplat.report.costs import forgetting_figure
from clplat.report.diagram import ranks_figure
from clplat.report.figures import anytime_curves, curves_figure, literal, matrices_figure
from clplat.report.find import find_runs
from clplat.report.ranks import Ranks
from clplat.report.table import Question
from tests.written_runs import write_run

REPLAY = (0.2, 0.3, 0.7)


@pytest.fixture
def runs(tmp_path) -> Path:
    for seed, accuracy in enumerate(REPLAY):
        write_run(tmp_path / f"runs/replay/seed_{seed}", seed=seed, accuracy=accuracy)
    write_run(tmp_path / "runs/stock/seed_0", "stock", "bbbb", accuracy=0.9, memory_bytes=None)
    return tmp_path / "runs"


@pytest.fixture
def sweep(tmp_path) -> Path:
    """Three strategies with three seeds; forgetting falls as accuracy does."""
    for name, values in {
        "ewc": (0.2, 0.3, 0.25),
        "replay": (0.8, 0.85, 0.9),
        "lwf": (0.22, 0.31, 0.29),
    }.items():
        for seed, accuracy in enumerate(values):
            write_run(
                tmp_path / f"runs/{name}/{seed}",
                name,
                name,
                seed,
                accuracy,
                forgetting=accuracy / 2,
            )
    return tmp_path / "runs"


def made(folder: Path, **question) -> Comparison:
    found = compare([folder], Question(**question))
    assert found is not None
    return found


def row(text: str, name: str) -> list[str]:
    """The cells of a configuration's row of the table in a terminal."""
    line = next(line for line in text.splitlines() if f"│ {name} " in line)
    return [cell.strip() for cell in line.strip("│").split("│")]


def refused(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err


# What is found


def test_runs_are_grouped_by_configuration_best_first(runs):
    groups = by_configuration(find_runs([runs]).runs)
    assert [(c.name, len(c.runs)) for c in groups] == [("stock", 1), ("replay", 3)]
    assert [c.name for c in by_configuration(find_runs([runs]).runs, "memory_bytes")] == [
        "replay",
        "stock",
    ]


def test_configurations_of_one_strategy_are_told_apart_by_settings_or_by_digest(runs):
    write_run(runs / "other", digest="cccc", accuracy=0.1)
    names = {c.name for c in by_configuration(find_runs([runs]).runs)}
    assert names == {"stock", "replay aaaa", "replay cccc"}
    for digest, capacity in (("dddd", 5), ("eeee", 6)):
        config = {"strategy": {"capacity": capacity}}
        write_run(runs / digest, "der", digest, config=config)
    names = {c.name for c in by_configuration(find_runs([runs]).runs)}
    assert {"der capacity=5", "der capacity=6"} < names


def test_a_setting_that_tells_in_one_scenario_is_named_in_all(tmp_path):
    for k, (scenario, capacity) in enumerate([("a", 5), ("a", 6), ("b", 5)]):
        config = {"strategy": {"capacity": capacity}, "train": {"epochs": scenario}}
        write_run(tmp_path / str(k), digest=str(k), scenario=scenario, config=config)
    names = [(c.scenario, c.name) for c in by_configuration(find_runs([tmp_path]).runs)]
    assert sorted(names) == [
        ("a", "replay capacity=5"),
        ("a", "replay capacity=6"),
        ("b", "replay capacity=5"),
    ]


def test_trials_are_left_out_unless_they_are_named(tmp_path):
    write_run(tmp_path / "digits" / "seed_0")
    trial = write_run(tmp_path / "tune" / "digits" / "seed_0")
    assert [run.out.parent.parent for run in find_runs([tmp_path]).runs] == [tmp_path]
    assert [run.out for run in find_runs([tmp_path / "tune"]).runs] == [trial]


def test_a_run_that_is_there_twice_counts_once(runs):
    write_run(runs / "copy", seed=1, accuracy=0.3)
    comparison = made(runs)
    assert [len(c.runs) for c in comparison.configurations] == [1, 3]
    assert comparison.notes == ["counted once: 1 runs repeat the config and seeds of others"]


def test_what_is_damaged_or_not_finished_is_left_out_and_named(runs, capsys):
    for name, text in (("cut", '{"accuracy": 0.'), ("other", '{"accuracy": 0.5}'), ("list", "[]")):
        (runs / name).mkdir()
        (runs / name / "result.json").write_text(text)
    (runs / "on").mkdir()
    sign = {"state": "failed", "updated": "2026-01-01T00:00:00+00:00", "reason": "x"}
    (runs / "on/status.json").write_text(json.dumps(sign))
    main([str(runs), "--format", "csv"])
    captured = capsys.readouterr()
    assert len(captured.out.splitlines()) == 3
    assert f"left out: {runs}/cut/result.json is damaged (" in captured.err
    for name in ("other", "list"):
        message = f"left out: {runs}/{name}/result.json is no result (expected scenario, strategy,"
        assert message in captured.err
    assert "left out: runs that are not finished (1 failed); --watch shows them" in captured.err


@pytest.mark.parametrize("key", ["accuracy", "accuracy_so_far"])
def test_a_result_with_a_number_beyond_any_float_is_damaged(runs, key):
    huge = 10**400
    write_run(runs / "huge", digest="h", **{key: [huge, huge] if key.endswith("far") else huge})
    comparison = made(runs)
    assert len(comparison.configurations) == 2
    (note,) = comparison.notes
    assert note.startswith(f"left out: {runs}/huge/result.json is damaged (a number is too large")


def test_names_are_one_printable_line(runs, capsys):
    write_run(runs / "a", "two\nlines\x1b[2J", "a", scenario="o\nd\x00d")
    config = {"strategy": {"note": "x\ny"}}
    write_run(runs / "b", "der", "b", scenario="odd", config=config)
    write_run(runs / "c", "der", "c", scenario="odd", config={"strategy": {"note": "z"}})
    main([str(runs), "--format", "markdown"])
    text = capsys.readouterr().out
    assert r"### o\\nd\\x00d" in text
    assert r"| two\\nlines\\x1b[2J | 1 |" in text
    assert r"| der note=x\\ny | 1 |" in text
    assert all(c.isprintable() for line in text.split("\n") for c in line)


def test_files_are_named_after_scenarios_by_characters_that_any_system_takes(runs):
    for k, scenario in enumerate(["a/b", "a\x00b", "a b", "ä" * 400]):
        write_run(runs / str(k), digest=str(k), scenario=scenario)
    main([str(runs)])
    names = {file.name for file in runs.glob("*_accuracy_matrix.png")}
    long = f"{'ä' * 50}_accuracy_matrix.png"
    assert len(names) == 5
    assert {"split_digits_accuracy_matrix.png", "a_b_accuracy_matrix.png", long} < names
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


def test_a_folder_without_runs_is_explained(tmp_path, capsys):
    (tmp_path / "none").mkdir()
    message = refused(capsys, str(tmp_path / "none"))
    assert "no finished run (a folder with result.json) below it" in message
    assert f"{tmp_path}/typo: no such folder" in refused(capsys, str(tmp_path / "typo"))
    (tmp_path / "file").touch()
    assert "file: is a file; expected a folder" in refused(capsys, str(tmp_path / "file"))


def test_bad_choices_are_refused_before_anything_is_written(runs, capsys):
    folder, before = str(runs), set(runs.iterdir())
    assert refused(capsys, folder, "--baseline", "ewc") == (
        "clplat-report: --baseline ewc: no such configuration; one of stock; replay\n"
    )
    assert "--metric speed: no such metric; choose one of accuracy, forg" in refused(
        capsys, folder, "--metric", "speed"
    )
    assert "--metric stability_gap: no run here has it; choose" in refused(
        capsys, folder, "--metric", "stability_gap"
    )
    (runs.parent / "file").touch()
    message = refused(capsys, folder, "--out", str(runs.parent / "file"))
    assert "file: is a file; expected a folder; it need not exist" in message
    assert "not allowed with argument" in refused(capsys, folder, "--out", "x", "--format", "csv")
    assert "takes folders alone" in refused(capsys, folder, "--watch", "--baseline", "replay")
    message = refused(capsys, folder, "--experiences", "--format", "csv")
    assert "--experiences is a table for the terminal" in message
    assert set(runs.iterdir()) == before


# What the tables say


def test_the_table_has_mean_deviation_and_students_interval(runs, capsys):
    main([str(runs), "--format", "terminal"])
    text = capsys.readouterr().out
    low, high = stats.t.interval(0.95, 2, loc=np.mean(REPLAY), scale=stats.sem(REPLAY))
    cells = row(text, "replay")
    assert cells[1:4] == ["3", f"0.400 ± {np.std(REPLAY, ddof=1):.3f}", f"[{low:.3f}, {high:.3f}]"]
    assert "2.0 KiB" in cells
    assert row(text, "stock")[1:4] == ["1", "0.900", "-"]
    assert row(text, "stock")[-1] == "-"
    assert "95 % interval of the mean: Student's t over seeds" in text
    assert "no interval of one run alone: stock" in text
    assert list(runs.rglob("*.html")) == []


def test_the_best_is_marked_by_the_direction_of_each_metric(sweep):
    (table,) = made(sweep).tables
    keys = [column.key for column in table.columns]
    best = {
        key: [r[0].text for r in table.rows if r[k].best]
        for k, key in enumerate(keys)
        if any(r[k].best for r in table.rows)
    }
    assert best == {"accuracy": ["replay"], "forgetting": ["ewc"]}  # the rest is the same for all


def test_runs_that_lack_a_metric_are_not_counted_in_it(runs):
    write_run(runs / "more", seed=9, accuracy=None)
    write_run(runs / "none", "none", "cccc", accuracy=None)
    (table,) = made(runs).tables
    by_name = {cells[0].text: cells for cells in table.rows}
    assert by_name["replay"][2].text.endswith("(3 of 4)")
    assert by_name["none"][2].text == "-"
    assert "no accuracy known: none" in table.notes


def test_every_configuration_is_tested_against_the_baseline(sweep):
    comparison = made(sweep, baseline="ewc")
    p = {
        name: stats.ttest_rel(values, (0.2, 0.3, 0.25)).pvalue
        for name, values in {"replay": (0.8, 0.85, 0.9), "lwf": (0.22, 0.31, 0.29)}.items()
    }
    low, high = sorted(p.values())
    corrected = {low: 2 * low, high: max(2 * low, high)}
    for c, test in comparison.tests.items():
        assert test.pairs == 3
        assert test.p == pytest.approx(p[c.name])
        assert test.corrected == pytest.approx(corrected[p[c.name]])
    (table,) = comparison.tables
    labels = [column.label for column in table.columns]
    assert labels[3:7] == ["95 % interval", "difference", "p", "pairs"]
    texts = {cells[0].text: [cell.text for cell in cells[4:7]] for cells in table.rows}
    assert texts["ewc"] == ["baseline", "", ""]
    assert texts["replay"] == ["+0.600", f"{corrected[p['replay']]:.3f}", "3"]
    notes = "\n".join(table.notes)
    assert "paired t-test, two-sided, corrected by Holm" in notes
    assert "3 pairs: few seeds say little; with 3 a difference is below p = 0.05" in notes
    assert "from 2.5 of its standard deviations on" in notes  # 4.303 / sqrt(3)


def test_what_is_not_tested_has_a_dash_and_a_reason(sweep):
    write_run(sweep / "si", "si", "si", seed=7, accuracy=0.4)
    write_run(sweep / "mas", "mas", "mas", seed=None, accuracy=0.3)
    write_run(sweep / "b", "si", "b", seed=0, accuracy=0.4, scenario="other")
    for seed, accuracy in enumerate((0.2, 0.3, 0.25)):
        write_run(sweep / f"same/{seed}", "same", "same", seed, accuracy)
    table, other = reversed(made(sweep, baseline="ewc").tables)
    texts = {cells[0].text: [cell.text for cell in cells[4:7]] for cells in table.rows}
    assert texts["si"] == ["-", "-", "0"]
    assert texts["same"] == ["+0.000", "-", "3"]
    assert "si: not tested, no seed in common with the baseline" in table.notes
    assert "mas: not tested, no seed in common with the baseline" in table.notes
    assert any(note.startswith("same: not tested, the difference is the") for note in table.notes)
    assert "si: not tested, there is no ewc of other" in other.notes


def test_another_metric_is_ranked_tested_and_given_a_column(sweep):
    for k, file in enumerate(sorted(sweep.rglob("result.json"))):
        file.write_text(json.dumps({**json.loads(file.read_text()), "stability_gap": k / 10}))
    comparison = made(sweep, metric="stability_gap", baseline="lwf")
    (table,) = comparison.tables
    assert [cells[0].text for cells in table.rows] == ["ewc", "lwf", "replay"]
    labels = [column.label for column in table.columns]
    at = labels.index("stability gap")
    assert labels[at + 1 : at + 3] == ["95 % interval", "difference"]
    assert table.rows[0][at].best


def test_scenarios_have_a_table_each(sweep):
    write_run(sweep / "other", "ewc", "o", accuracy=0.1, scenario="other")
    comparison = made(sweep)
    assert [t.scenario for t in comparison.tables] == ["other", "split_digits"]
    assert len(comparison.tables[0].rows) == 1


def test_the_final_score_on_each_experience_is_shown_if_asked_for(runs, capsys):
    write_run(runs / "long", "long", "cccc", accuracy=0.5, experiences=3)
    main([str(runs), "--experiences", "--format", "terminal"])
    text = capsys.readouterr().out
    text = text[text.index("split_digits: score on each experience after the last one") :]
    assert row(text, "replay")[1:3] == [f"0.400 ± {np.std(REPLAY, ddof=1):.3f}"] * 2
    assert row(text, "long")[1:4] == ["0.500"] * 3


def test_a_narrow_terminal_has_whole_numbers_and_says_which_columns_are_missing(sweep):
    (table,) = made(sweep, baseline="ewc").tables
    narrow = Console(width=80, file=io.StringIO(), highlight=False)
    shown._print_table(narrow, table, "accuracy")
    text = narrow.file.getvalue()
    assert "…" not in text
    assert "[0.726, 0.974]" in text
    assert "the terminal is too narrow for: forgetting, backward transfer, seconds, memory" in text


# What is written

STRANGE = "<script>alert(1)</script> a_b & 50% $x$ #1 {y} ~ ^ \\ | *z* [red] ](u)"


def test_markdown_keeps_names_literal(sweep, capsys):
    write_run(sweep / "strange", STRANGE, "s", accuracy=0.4)
    main([str(sweep), "--format", "markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "### split_digits"
    assert lines[2].startswith("| strategy | runs | accuracy | 95 % interval | forgetting |")
    assert lines[3] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    assert lines[4].startswith("| replay | 3 | **0.850 ± 0.050** | [0.726, 0.974] |")
    (strange,) = (line for line in lines if "alert" in line and line.startswith("|"))
    assert strange.startswith(
        r"| \<script>alert(1)\</script> a_b & 50% $x$ #1 {y} ~ ^ \\ \| \*z\* [red] \](u) |"
    )


def test_latex_escapes_what_is_special(sweep, capsys):
    write_run(sweep / "strange", STRANGE, "s", accuracy=0.4)
    main([str(sweep), "--format", "latex", "--baseline", "replay"])
    text = capsys.readouterr().out
    assert text.startswith("% split_digits; \\usepackage{booktabs}\n")
    for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"\begin{tabular}{lrrrrrrrrrr}"):
        assert text.count(rule) == 1
    assert r"replay & 3 & \textbf{0.850 $\pm$ 0.050} & {[0.726, 0.974]} & baseline &" in text
    assert r" & $-$0.600 & " in text
    assert (
        r"$<$script$>$alert(1)$<$/script$>$ a\_b \& 50\% \$x\$ \#1 \{y\} \textasciitilde{} "
        r"\textasciicircum{} \textbackslash{} $|$ *z* [red] ](u) &"
    ) in text
    assert r"95 \% interval" in text
    body = text[text.index(r"\toprule") :]
    assert all(line.endswith(r"\\") for line in body.splitlines() if "&" in line)


def test_csv_has_full_precision_and_one_row_a_configuration(sweep, capsys):
    main([str(sweep), "--format", "csv", "--baseline", "ewc"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [r["configuration"] for r in rows] == ["replay", "lwf", "ewc"]
    values = np.array([0.8, 0.85, 0.9])
    assert float(rows[0]["accuracy_mean"]) == values.mean()
    assert float(rows[0]["accuracy_std"]) == values.std(ddof=1)
    half = stats.t.ppf(0.975, 2) * stats.sem(values)
    assert float(rows[0]["accuracy_interval"]) == pytest.approx(half, rel=1e-12)
    assert rows[0]["accuracy_n"] == "3"
    expected = stats.ttest_rel(values, (0.2, 0.3, 0.25)).pvalue
    assert float(rows[0]["p"]) == pytest.approx(expected)
    assert rows[2]["p_holm"] == rows[2]["pairs"] == ""


def test_one_run_alone_gives_all_forms(tmp_path, capsys):
    write_run(tmp_path / "runs/a")
    main([str(tmp_path / "runs"), "--out", str(tmp_path / "made")])
    text = capsys.readouterr().out
    assert row(text, "replay")[1:4] == ["1", "0.500", "-"]
    assert (
        "no critical-difference diagram: it takes at least three configurations that share two "
        "blocks (scenario and seeds)"
    ) in text
    written = {file.name for file in (tmp_path / "made").iterdir()}
    figures = {
        f"{n}.{e}" for n in ("accuracy", "accuracy_matrix", "forgetting") for e in ("png", "pdf")
    }
    assert written == {"report.html", "table.md", "table.csv", "table.tex"} | figures
    assert (tmp_path / "made/accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "made/accuracy.pdf").read_bytes().startswith(b"%PDF")
    assert {file.name for file in (tmp_path / "runs").iterdir()} == {"a"}
    assert f"page: {tmp_path}/made/report.html" in text
    assert f"tensorboard --logdir {tmp_path}/runs" in text
    assert f"metrics: {tensorboard_link()}" in text


def test_scenarios_and_lengths_may_differ_and_matrices_be_missing(sweep):
    write_run(sweep / "long", "si", "si", accuracy=0.4, experiences=4)
    write_run(sweep / "b/x", "ewc", "x", accuracy=0.3, scenario="cfsl/b", memory_bytes=None)
    write_run(sweep / "b/y", "si", "y", accuracy=0.3, scenario="cfsl/b", forgetting=None)
    (sweep / "long/accuracy_matrix.npy").write_bytes(b"\x93NUMPY")
    (sweep / "b/y/accuracy_matrix.npy").unlink()
    main([str(sweep)])
    for name in ("split_digits_accuracy", "cfsl_b_accuracy_matrix", "critical_difference"):
        assert (sweep / f"{name}.png").is_file()
    page = (sweep / "report.html").read_text()
    assert page.count("without a whole matrix: si</figcaption>") == 2


def test_it_imports_neither_torch_nor_avalanche(runs):
    code = (
        "import sys; from clplat.report.__main__ import main; "
        f"main([{str(runs)!r}]); "
        "sys.exit(','.join({'torch', 'avalanche', 'tensorboard'} & {*sys.modules}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_commands_of_the_guide_do_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for k, name in enumerate(("replay", "ewc", "lwf")):
        for seed in range(2):
            write_run(Path(f"runs/demo/{name}/{seed}"), name, name, seed, 0.1 * k + 0.01 * seed * k)
    text = (Path(__file__).parent.parent / "docs/guides/compare.md").read_text()
    commands = [c.split() for c in re.findall(r"^\$ clplat-report (.*)$", text, re.MULTILINE)]
    assert len(commands) == 5
    for arguments in commands:
        main(arguments)
        assert capsys.readouterr().out
    promised = re.findall(r"`([a-z_.]+)`", text[text.index("| file |") : text.index("Figures are")])
    figures = ("accuracy", "accuracy_matrix", "forgetting", "critical_difference")
    written = {file.name for file in Path("runs/demo").iterdir() if file.is_file()}
    assert {name.removesuffix(".png") for name in written} >= {*figures, "table.tex"}
    assert {name.partition(".")[0] for name in written} <= {n.partition(".")[0] for n in promised}


# What the figures show


def test_curves_show_the_mean_and_one_deviation():
    runs = [[1.0, 0.4], [0.8, 0.6]]
    figure = curves_figure({"replay": ([1, 2], runs), "_$x$": ([1], [[0.5]])}, "title", "accuracy")
    (axes,) = figure.axes
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.9, 0.5])
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    assert band.max() == pytest.approx(0.9 + np.std([1.0, 0.8], ddof=1))
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert names == ["replay", literal("_$x$")]
    assert literal("_$x$") == " _\\$x\\$"


def test_twelve_configurations_look_different():
    curves = {str(k): ([1, 2], [[k, k + 1.0]]) for k in range(12)}
    (axes,) = curves_figure(curves, "title", "score").axes
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in axes.lines}
    assert len(looks) == 12


def test_accuracy_against_samples_is_drawn_where_runs_were_evaluated_together(tmp_path):
    def made(name, points, seed, anytime=0.5):
        write_run(tmp_path / name / str(seed), name, name, seed, anytime_accuracy=anytime)
        lines = [{"experience": 0, "samples": s, "accuracy": a} for s, a in points]
        text = "".join(json.dumps(line) + "\n" for line in [*lines, {"experience": 0, "epoch": 0}])
        (tmp_path / name / str(seed) / "metrics.jsonl").write_text(text)

    made("replay", [(10, 0.9), (17, 0.8), (20, 0.5)], 0)
    made("replay", [(10, 0.7), (13, 0.1), (20, 0.3)], 1)
    made("without", [], 0, anytime=None)
    made("damaged", [(10, 0.9)], 0)
    (tmp_path / "damaged/0/metrics.jsonl").write_text('{"samples"')
    curves = anytime_curves(by_configuration(find_runs([tmp_path]).runs))
    assert curves == {"replay": ([10, 20], [[0.9, 0.5], [0.7, 0.3]])}
    axes = curves_figure(curves, "title", "accuracy", samples=True).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_xdata(), [10, 20])
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.8, 0.4])
    assert axes.get_xlabel() == "samples seen"


def test_heat_maps_leave_the_untrained_row_out():
    matrix = np.array([[0.9, 0.1], [0.3, 0.8], [0.5, 0.5]])
    image = matrix_figure(matrix, "title").axes[0].images[0]
    np.testing.assert_array_equal(image.get_array(), matrix[:2])
    figure = matrices_figure({"a": matrix, "b": matrix, "c": matrix, "d": matrix}, "t", "accuracy")
    drawn = [axes for axes in figure.axes if axes.get_visible() and axes.images]
    assert [axes.get_title() for axes in drawn] == ["a", "b", "c", "d"]


def test_forgetting_is_drawn_against_both_costs_where_they_are_known(tmp_path):
    for k, held in enumerate((0, 1000, 500_000, None)):
        write_run(tmp_path / str(k), f"s{k}", str(k), memory_bytes=held, seconds=1.0 + k)
    figure = forgetting_figure(by_configuration(find_runs([tmp_path]).runs), "title")
    assert figure is not None
    memory, seconds = figure.axes
    assert memory.get_xscale() == "symlog"  # none is held beside 500 times as much
    assert seconds.get_xscale() == "linear"
    assert [len(axes.containers) for axes in (memory, seconds)] == [3, 4]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["s0", "s1", "s2", "s3"]
    assert forgetting_figure([], "title") is None


def test_no_name_of_the_diagram_is_cut_off():
    names = ["a", "strategy with rather many settings=0.001 and more=True", "b" * 60, "c", "d"]
    figure = ranks_figure(Ranks(names, [1.0, 2.2, 3.0, 4.0, 4.8], 5, 0.01, 2.0, []), "title")
    figure.draw_without_rendering()
    for text in figure.axes[0].texts:
        box = text.get_window_extent()
        assert box.x0 >= 0
        assert box.x1 <= figure.bbox.width
