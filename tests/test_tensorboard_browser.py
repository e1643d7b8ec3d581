"""TensorBoard on a real sweep, as a browser shows it."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from selenium.webdriver.support.ui import WebDriverWait

from clplat.directory import read_result
from tests.browser import Browser

pytestmark = pytest.mark.browser

SECONDS = 40  # to wait for what a page is to show
SWEEP = "-m strategy=finetune,replay,ewc seed=0,1,2 scenario.experiences=2 train.epochs=1"

# Everything in the page, through shadow roots, as a function of what is looked for.
WALK = """
function walk(node, found) {
    if (node.shadowRoot) walk(node.shadowRoot, found);
    for (const child of node.children) { found.push(child); walk(child, found); }
    return found;
}
const all = walk(document.body, []);
const text = element => element.innerText.trim();
const named = name => all.filter(element => element.localName === name);
"""
TABLE = """
const grids = named("vaadin-grid");
if (!grids.length) return [];
const cell = td => td.querySelector("slot").assignedElements().map(text).join(" ");
const rows = part => [...grids[0].shadowRoot.querySelectorAll(part + " tr:not([hidden])")];
const count = rows("#header")[0].children.length;  // after them come cells for details
const cells = tr => [...tr.children].slice(0, count).map(cell);
return [...rows("#header"), ...rows("#items")].map(cells);
"""


@dataclass(frozen=True)
class Board:
    """TensorBoard on the folder that a sweep named, and the links that it printed."""

    browser: Browser
    folder: Path
    links: dict[str, str]

    def open(self, link: str) -> None:
        self.browser.get("about:blank")  # or a change of the fragment alone would load nothing
        self.browser.get(self.links[link])

    def shows(self, script: str, fits: Any) -> Any:
        """What a script returns about the page, once it fits."""
        last: list[Any] = []

        def look(browser: Browser) -> bool:
            last[:] = [browser.execute_script(WALK + script)]
            return bool(fits(last[0]))

        WebDriverWait(self.browser, SECONDS, 0.5).until(look, f"the page has only {last}")
        return last[0]


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Where a sweep of three strategies by three seeds ran, and what it said."""
    place = tmp_path_factory.mktemp("sweep")
    done = subprocess.run(
        [sys.executable, "-m", "clplat", *SWEEP.split()],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return place, done.stderr


@pytest.fixture(scope="module")
def board(browser: Browser, swept: tuple[Path, str]) -> Iterator[Board]:
    place, said = swept
    folder = re.search(r"^compare: tensorboard --logdir (\S+)$", said, re.MULTILINE)
    links = dict(re.findall(r"^  (\w+): (http\S+)$", said, re.MULTILINE))
    assert folder is not None, said
    server = subprocess.Popen(
        # What the sweep said, at a port that is free.
        [sys.executable, "-m", "tensorboard.main", "--logdir", folder[1], "--port", "0"],
        cwd=place,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stderr is not None
        port = next(
            found[1] for line in server.stderr if (found := re.search(r"localhost:(\d+)/", line))
        )
        at_port = {name: link.replace(":6006", f":{port}") for name, link in links.items()}
        yield Board(browser, place / folder[1], at_port)
    finally:
        server.terminate()
        server.wait(10)
        if server.stderr is not None:
            server.stderr.close()


def test_the_table_has_a_row_a_configuration_with_means_over_seeds(board: Board):
    board.open("table")
    header, *rows = board.shows(TABLE, lambda rows: len(rows) == 4 and all(r[0] for r in rows))
    assert header[:2] == ["Trial ID", "Show Metrics"]
    assert {"strategy", "strategy.strength", "strategy.capacity"} < set(header)
    assert header[-5:] == [
        *("accuracy", "forgetting", "average incremental accuracy", "bytes held", "seconds")
    ]
    found = {row[header.index("strategy")]: dict(zip(header, row, strict=True)) for row in rows}
    assert set(found) == {"finetune", "replay", "ewc"}
    assert float(found["ewc"]["strategy.strength"]) == 100
    assert found["ewc"]["strategy.capacity"] == ""
    assert float(found["replay"]["strategy.capacity"]) == 200
    for strategy, row in found.items():
        runs = [
            read_result(file.parent) for file in board.folder.rglob(f"{strategy}/**/result.json")
        ]
        assert len(runs) == 3
        for column in ("accuracy", "forgetting", "average incremental accuracy"):
            mean = np.mean([run[column.replace(" ", "_")] for run in runs if run])
            assert float(row[column]) == pytest.approx(mean, rel=1e-4, abs=1e-6)


def test_all_hyperparameters_and_metrics_can_be_chosen_as_columns(board: Board):
    board.open("table")
    script = 'return named("tf-hparams-query-pane").map(pane => pane.shadowRoot.textContent);'
    (text,) = board.shows(script, lambda found: found and "learning accuracy" in found[0])
    for name in ("strategy.fisher", "strategy.memory", "optimizer.lr", "scenario.experiences"):
        assert name in text
    for name in ("backward transfer", "forward transfer", "learning accuracy"):
        assert name in text


def test_the_ready_link_smooths_nothing_and_colours_runs_by_strategy(board: Board):
    board.open("metrics")
    script = """
        const rows = named("tb-data-table-content-row").filter(row => text(row).includes("seed_"));
        const colour = row => row.querySelector("[style*=background]");
        return {
            runs: rows.map(row => text(row).split("\\n")[0]),
            colours: rows.map(colour).filter(e => e).map(e => getComputedStyle(e).backgroundColor),
            cards: named("scalar-card").map(text).map(shown => shown.replace(/\\s/g, "")),
            smoothing: all.filter(e => e.matches(".scalars-smoothing input, .slider-input input"))
                .map(input => input.value),
        };
    """

    def complete(found: dict[str, Any]) -> bool:
        rows, coloured = len(found["runs"]), len(found["colours"])
        return rows >= 9 and rows == coloured and len(found["cards"]) > 3

    found = board.shows(script, complete)
    assert set(found["smoothing"]) == {"0"}
    assert all(card.startswith("metrics/") for card in found["cards"])
    by_strategy: dict[str, set[str]] = {}
    for run, colour in zip(found["runs"], found["colours"], strict=True):
        by_strategy.setdefault(run.split("/")[1], set()).add(colour)
    assert set(by_strategy) == {"finetune", "replay", "ewc"}
    assert [len(colours) for colours in by_strategy.values()] == [1, 1, 1]
    assert len(set.union(*by_strategy.values())) == 3


def test_each_experience_has_a_chart_of_all_runs(board: Board):
    board.open("experiences")
    script = """
        const cards = named("tf-custom-scalar-multi-line-chart-card");
        return cards.map(card => text(card.shadowRoot.querySelector("#matches-list-title")));
    """
    # One curve a run on each of the two experiences; all of them together.
    expected = ["Matches (9)", "Matches (9)", "Matches (18)"]
    board.shows(script, lambda found: found == expected)
    smoothing = board.browser.execute_script(
        WALK + 'return named("tf-custom-scalar-dashboard")[0]._smoothingWeight'
    )
    assert smoothing == 0


def test_the_matrix_of_every_run_is_a_picture(board: Board):
    board.open("matrices")
    script = """
        const loaders = named("tf-image-loader").map(e => e.shadowRoot.querySelector("img"));
        return loaders.filter(image => image && image.naturalWidth > 0).length;
    """
    assert board.shows(script, lambda count: count == 9)
