"""Pictures of scenarios: each shows what its config makes; the guide's examples run."""

import json
import re
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from clplat.build import build_learner, build_scenario
from clplat.check import check
from clplat.data import tensors_of
from clplat.gallery.__main__ import main
from clplat.gallery.curves import shares
from clplat.gallery.images import few_shot_figure, tiles
from clplat.gallery.kinds import KINDS, SYMBOLS, draw
from clplat.gallery.tokens import letter
from scenarios import sources, texts
from scenarios.glyphs import digit_glyphs
from scenarios.languages import LANGUAGES
from tests.test_docs import write_examples

DOCS = Path(__file__).parent.parent / "docs"
GUIDE = DOCS / "guides/scenarios.md"


@pytest.fixture
def digits_only(tmp_path, monkeypatch):
    """A machine on which there is no Fashion-MNIST."""
    monkeypatch.setenv("CLPLAT_DATA", str(tmp_path / "none"))
    monkeypatch.setattr(sources, "SYSTEM", tmp_path / "none")


def titles(figure: Any) -> list[str]:
    return [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes]


def pixels(axes: Any) -> torch.Tensor:
    return torch.as_tensor(axes.images[0].get_array())


def cells(axes: Any) -> list[list[str]]:
    """The letters of each row of cells, from left to right."""
    columns, rows = pixels(axes).shape[1::-1]
    found = [["" for _ in range(columns)] for _ in range(rows)]
    for text in axes.texts:
        x, y = text.get_position()
        if float(y).is_integer() and 0 <= y < rows:
            found[int(y)][int(x)] = text.get_text()
    return found


# --- of images -------------------------------------------------------------------------------


@pytest.mark.parametrize("columns", [1, 3, 5])
def test_tiles_hold_each_image_at_its_place(columns):
    images = torch.randint(256, (5, 1, 3, 26), generator=torch.Generator().manual_seed(0))
    paper = tiles(images.to(torch.uint8), columns)
    for k, image in enumerate(images):
        top, left = k // columns * (3 + 2), k % columns * (26 + 2)
        shown = paper[top : top + 3, left : left + 26]
        assert torch.equal(shown, (image[0] / 255)[:, :, None].expand(-1, -1, 3))
    assert paper.shape == (5 * -(-5 // columns) - 2, 28 * columns - 2, 3)
    assert (tiles(torch.zeros(2, 3, 4, 4, dtype=torch.uint8), 2)[:, 4] == 1).all()  # the gap


def test_split_shows_the_first_samples_of_each_class(digits_only):
    figure = draw("split")
    assert len(figure.axes) == 10
    assert figure.get_suptitle().startswith("split_digits")
    x, y = sources.digits().train
    seen = []
    for axes, title in zip(figure.axes, titles(figure), strict=True):
        label, source = map(int, re.findall(r"\d+", title))
        assert label == len(seen)
        seen.append(source)
        assert torch.allclose(pixels(axes)[:8, :8, 0].float(), x[y == source][0, 0] / 255)
    assert sorted(seen) == list(range(10))
    assert figure.axes[2].get_ylabel() == "experience 1"


def test_transformed_shows_the_same_samples_in_every_experience(digits_only):
    figure = draw("transformed", ["scenario.experiences=2"])
    assert titles(figure) == ["permuted_digits", "rotated_digits", "", ""]
    first = sources.digits().train[0][0, 0] / 255
    plain, upright, permuted, turned = (pixels(a)[:8, :8, 0].float() for a in figure.axes)
    assert torch.allclose(plain, first)
    assert torch.allclose(upright, first)
    assert torch.allclose(permuted.flatten().sort().values, first.flatten().sort().values)
    assert not torch.allclose(permuted, first)
    assert torch.allclose(turned, first.rot90(), atol=1 / 255)  # the second of 0 and 90 degrees


def test_few_shot_shows_support_sets_and_the_target_set():
    figure = draw("few_shot", ["scenario.experiences=2", "scenario.ways=3"])
    *support, target = figure.axes
    assert [axes.get_xlabel() for axes in figure.axes] == ["set 0", "set 1", "of sets 0, 1"]
    for axes in figure.axes:
        assert [tick.get_text() for tick in axes.get_yticklabels()] == ["0", "1", "2"]
    images = (digit_glyphs().images.flatten(0, 2) / 255).float()
    shown = [pixels(axes)[:16, :16, 0].float() for axes in (*support, target)]
    classes = [(images - image).abs().sum((1, 2)).argmin() // 40 for image in shown]
    assert classes[0] == classes[1] == classes[2]
    assert pixels(support[0]).shape == (3 * 17 - 1, 16, 3)
    assert pixels(target).shape == (3 * 17 - 1, 5 * 17 - 1, 3)


def test_the_instance_test_shows_disturbed_targets_in_rows_of_their_labels():
    figure = draw("instances", ["scenario.experiences=2", "scenario.images_per_set=3"])
    assert len(figure.axes) == 4
    asked = figure.axes[3]
    assert [tick.get_text() for tick in asked.get_yticklabels()] == ["3", "4", "5"]
    quiet = draw("instances", ["scenario.occlusion=0", "scenario.noise=0"])
    learnt, again = pixels(quiet.axes[1])[-16:, :16], pixels(quiet.axes[5])[-16:, :16]
    assert torch.equal(learnt, again)
    noisy = pixels(draw("instances").axes[5])[-16:, :16]
    assert not torch.equal(noisy, again)


def test_few_shot_draws_several_shots_in_one_row():
    x = torch.arange(4, dtype=torch.uint8)[:, None, None, None].expand(4, 1, 2, 2)
    y = torch.tensor([1, 0, 1, 0])
    figure = few_shot_figure("", [(x, y)], [(x, y)], "", samples=5)
    for axes in figure.axes:
        assert (pixels(axes)[::3, ::3, 0] * 255).tolist() == [[1, 3], [0, 2]]


def test_sequential_shows_the_sequence_of_each_image():
    figure = draw("sequential")
    assert len(figure.axes) == 12
    for image, line in zip(figure.axes[::2], figure.axes[1::2], strict=True):
        values = torch.as_tensor(line.lines[0].get_ydata())
        assert torch.allclose(values.float(), pixels(image)[:, :, 0].flatten().float())
    plain, permuted = (pixels(figure.axes[k])[:, :, 0].flatten() for k in (6, 8))
    assert not torch.equal(plain, permuted)
    assert torch.equal(plain.sort().values, permuted.sort().values)


# --- courses ---------------------------------------------------------------------------------


def test_shares_equal_a_count():
    labels = torch.randint(3, (37,), generator=torch.Generator().manual_seed(0))
    found = shares(labels, 4, 5)
    begin = 0
    for k, size in enumerate([8, 8, 7, 7, 7]):
        part = labels[begin : begin + size].tolist()
        assert found[:, k].tolist() == pytest.approx([part.count(c) / size for c in range(4)])
        begin += size


def test_online_shows_four_orders_and_where_it_is_tested(digits_only):
    figure = draw("online")
    assert [t.partition(",")[0] for t in titles(figure)] == [
        f"order={order}" for order in ("split", "blurry", "gaussian", "random")
    ]
    for axes in figure.axes:
        assert len(axes.collections) == 10
        assert len(axes.lines) == 4
    ends = [line.get_xdata()[0] for line in figure.axes[3].lines]
    assert ends == pytest.approx([0.2, 0.4, 0.6, 0.8], abs=1e-3)
    # In order of classes the first area fills about half of the first fifth, and nothing else.
    path = figure.axes[0].collections[0].get_paths()[0].vertices
    assert path[path[:, 0] > 0.3, 1].max() == 0
    assert path[path[:, 0] < 0.15, 1].max() == pytest.approx(0.5, abs=0.3)
    assert [text.get_text() for text in figure.legends[0].texts] == [
        f"label {k}" for k in reversed(range(10))
    ]


def test_series_shows_a_line_for_each_value():
    pytest.importorskip("sktime")
    figure = draw("series")
    assert [re.findall(r"\d+", title)[0] for title in titles(figure)] == list("012345678")
    assert all(len(axes.lines) == 12 for axes in figure.axes)
    assert all(len(axes.lines[0].get_ydata()) == 29 for axes in figure.axes)


# --- of bits and tokens ----------------------------------------------------------------------


def test_n_parity_shows_labels_that_the_bits_have():
    figure = draw("n_parity", ["scenario.experiences=3"])
    strings, labels = (cells(axes) for axes in figure.axes)
    assert len(strings) == len(labels) == 6
    for bits, odd in zip(strings, labels, strict=True):
        assert [int(o) for o in odd] == [sum(map(int, bits[-n:])) % 2 for n in (2, 3, 4)]
    named = [text.get_text() for text in figure.axes[0].texts]
    assert named[-3:] == ["N=2", "N=3", "N=4"]


def test_word_problems_show_products():
    figure = draw("word_problems", ["scenario.samples=20", "scenario.experiences=3"])
    assert titles(figure) == [f"experience {k}: up to {2**k * 2} elements" for k in range(3)]
    elements = list(permutations(range(3)))
    for axes in figure.axes:
        for *string, label in cells(axes):
            image = [0, 1, 2]
            for symbol in filter(None, string):
                image = [elements[int(symbol)][i] for i in image]
            assert elements[int(label)] == tuple(image)


def left_to_right(string: str) -> int:
    value = int(string[0])
    for operator, digit in zip(string[1::2], string[2::2], strict=True):
        value = {"+": value + int(digit), "-": value - int(digit), "*": value * int(digit)}[
            operator
        ]
    return value % 5


def test_languages_show_strings_and_labels_of_their_own():
    figure = draw("languages", ["scenario.samples=20", "scenario.test_samples=5"])
    for name, symbols in SYMBOLS.items():
        assert len(symbols) == LANGUAGES[name].symbols, name
    first = {"parity": 0, "modular_arithmetic": 2, "s3": 7, "dyck": 13}
    assert [title.split(": ")[1] for title in titles(figure)] == [*first]
    for (name, offset), axes in zip(first.items(), figure.axes, strict=True):
        for *symbols, label in cells(axes):
            string = "".join(symbols)
            if name == "parity":
                assert int(label) == string.count("1") % 2
            if name == "modular_arithmetic":
                assert int(label) == offset + left_to_right(string)
            if name == "dyck":
                while any(pair in string for pair in ("()", "[]")):
                    string = string.replace("()", "").replace("[]", "")
                assert int(label) == offset + (string == "")


def test_recall_asks_for_what_was_read():
    figure = draw("recall", ["scenario.test_samples=3"])
    assert len(figure.axes) == 2
    for axes, pairs in zip(figure.axes, (2, 1), strict=True):
        rows = [[cell for cell in row if cell] for row in cells(axes)]
        assert len(rows) == 4
        for i, row in enumerate(rows):
            half = 2 * pairs * (i + 1)
            read, asked = row[:half], row[half:]
            known = dict(zip(read[::2], read[1::2], strict=True))
            assert known == dict(zip(asked[::2], asked[1::2], strict=True))
            assert len(known) == pairs * (i + 1)
            assert all(key[0] == "k" and value[0] == "v" for key, value in known.items())


def test_text_shows_the_begin_of_a_window_and_what_follows():
    figure = draw("text", ["scenario.sources=[english,python]", "scenario.samples=3"])
    assert titles(figure) == ["experience 0: english", "experience 1: python"]
    for axes, name in zip(figure.axes, ("english", "python"), strict=True):
        read, predicted = cells(axes)
        assert read[1:] == predicted[:-1]
        assert "".join(read) in "".join(map(letter, texts.read(name).encode()))


def test_bytes_are_shown_as_letters_signs_or_numbers():
    assert [letter(byte) for byte in b"a \n\xe2\x00~"] == ["a", "␣", "↵", "e2", "00", "~"]


# --- the command -----------------------------------------------------------------------------


def test_a_picture_is_written_and_fits_the_page(tmp_path, capsys):
    main(["n_parity", "--out", str(tmp_path / "mine")])
    file = tmp_path / "mine/n_parity.png"
    assert capsys.readouterr().out == f"n_parity: {file}\n"
    assert matplotlib.image.imread(file).shape[1] == 700


def test_what_cannot_be_drawn_here_is_skipped_and_said(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "sktime", None)
    main(["series", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.startswith("series: skipped: ")
    assert "pip install 'clplat[series]'" in out
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_name_is_refused_with_the_list(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["split", "splitt", "--out", str(tmp_path / "mine")])
    assert stop.value.code == 2
    assert capsys.readouterr().err == (
        f"clplat: splitt: no such picture; expected some of {', '.join(KINDS)}; choose from "
        "these, or name none for all\n"
    )
    assert not (tmp_path / "mine").exists()


# --- the guide -------------------------------------------------------------------------------


def test_the_guide_shows_every_picture_and_no_other():
    shown = re.findall(r"!\[[^\]]+\]\(\.\./pictures/(\w+)\.png\)", GUIDE.read_text())
    assert sorted(shown) == sorted(KINDS)
    files = list((DOCS / "pictures").iterdir())
    assert sorted(file.stem for file in files) == sorted(KINDS)
    assert sum(file.stat().st_size for file in files) < 1.5e6


def test_every_scenario_is_in_the_guide():
    text = GUIDE.read_text()
    conf = Path(__file__).parent.parent / "conf/scenario"
    for file in conf.glob("*.yaml"):
        assert f"`{file.stem}`" in text or f"scenario={file.stem}`" in text, file.stem
    for file in (conf / "cfsl").glob("*.yaml"):
        stem, _, size = file.stem.rpartition("_")
        assert stem in text, file.stem
        assert f"_{size}`" in text, file.stem


SMALL = {"samples": 20, "test_samples": 10, "tasks": 2}


def test_the_commands_of_the_guide_fit_together(tmp_path):
    commands = [c.split()[1:] for c in write_examples(GUIDE, tmp_path) if c.startswith("clplat ")]
    ours = [command for command in commands if "--config-dir" not in command]
    assert len(ours) >= 14
    for overrides in ours:
        with initialize_config_module("clplat.conf", version_base="1.3"):
            node = compose("config", overrides=overrides)
        config: Any = OmegaConf.to_container(node, resolve=True)
        check(config, [])
        if "backbone=causal_lm" in overrides:  # of a folder that is not here
            continue
        config["scenario"] |= {k: v for k, v in SMALL.items() if k in config["scenario"]}
        if config["scenario"]["_target_"].startswith("scenarios.series"):
            pytest.importorskip("sktime")
        build_learner(config, build_scenario(config, []))


def test_a_scenario_of_ones_own_runs_from_a_directory_outside_the_repository(command, tmp_path):
    commands = write_examples(GUIDE, tmp_path)
    first, second = [c.removeprefix("clplat ") for c in commands if "mylab" in c]
    quick = "train.epochs=1 scenario.experiences=2"
    assert command(f"{first} {quick} out=runs/a").status == 0
    result = json.loads(Path("runs/a/result.json").read_text())
    assert (result["scenario"], result["experiences"]) == ("noisy", 2)
    refused = command(f"{second} {quick} scenario.step=-1")
    assert refused.status == 2
    assert refused.err == "clplat: scenario.step=-1: expected at least 0; choose 0.1\n"


def test_the_scenario_of_the_guide_is_the_same_for_the_same_seed(tmp_path, monkeypatch):
    write_examples(GUIDE, tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path / "mylab"))
    from noisy import noisy  # type: ignore[import-not-found]

    streams = [
        [tensors_of(e.dataset)[0] for e in noisy("digits", 3, 0.2, False, seed).train_stream]
        for seed in (0, 0, 1)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*streams[:2], strict=True))
    assert torch.equal(streams[0][0], sources.digits().train[0])
    assert not torch.equal(streams[0][1], streams[2][1])
    clean = streams[0][0].float()
    distances = [(x.float() - clean).abs().mean() for x in streams[0]]
    assert distances == sorted(distances)
    assert distances[1] > 1
