"""The page in a real browser: what it shows, in light and dark, and what it must not do."""

import json
import re
from pathlib import Path

import pytest

from clplat.report.__main__ import main
from tests.written_runs import write_run

EVIL = "<script>document.title='run'</script><img src=http://127.0.0.1:9/x onerror=alert(1)>"
VALUES = {
    "ewc": (0.2, 0.3, 0.25),
    "replay": (0.8, 0.85, 0.9),
    "lwf": (0.22, 0.31, 0.29),
    EVIL: (0.1, 0.12, 0.1),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("page") / "runs"
    for k, (name, values) in enumerate(VALUES.items()):
        for seed, accuracy in enumerate(values):
            write_run(runs / f"{k}/{seed}", name, f"d{k}", seed, accuracy, memory_bytes=1000 * k)
    main([str(runs), "--baseline", "ewc"])
    return runs / "report.html"


def show(browser, page: Path, scheme: str = "light") -> None:
    browser.get_log("browser")
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get(page.as_uri())


def column(browser, number: int) -> list[str]:
    cells = f"table tbody tr td:nth-child({number})"
    script = "return [...document.querySelector('table').querySelectorAll(arguments[0])]"
    return browser.execute_script(f"{script}.map((cell) => cell.innerText)", cells)


def luminance(colour: str) -> float:
    """Relative, of WCAG 2."""
    channels = [int(c) / 255 for c in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_it_names_no_address_and_no_file_beside_it(page):
    text = page.read_text()
    assert EVIL not in text
    own = text.replace("http://127.0.0.1:9/x", "")  # in a name, escaped
    assert "http" not in re.sub(r"http-equiv", "", own)
    assert re.findall(r"<script|<link|<img|<iframe|@import|url\((?!#)", own) == ["<link", "<script"]
    references = re.findall(r"(?:href|src)=\"([^\"]*)\"", own)
    assert {r for r in references if not r.startswith(("#", "data:"))} == set()


def test_the_same_runs_give_the_same_page(page, tmp_path):
    main([str(page.parent), "--baseline", "ewc", "--out", str(tmp_path)])
    assert (tmp_path / "report.html").read_text() == page.read_text()


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_everything_without_network_or_errors(browser, page, scheme):
    show(browser, page, scheme)
    assert browser.get_log("browser") == []
    fetched = "return performance.getEntriesByType('resource').map((entry) => entry.name)"
    assert [name for name in browser.execute_script(fetched) if not name.startswith("data:")] == []
    assert browser.title == "split_digits: 12 runs of 4 configurations"  # no name has run
    names = column(browser, 1)
    assert names == ["replay", "lwf", "ewc", EVIL]
    assert column(browser, 3)[0].split("\n") == ["0.850 ± 0.050", "[0.726, 0.974]"]
    captions = browser.execute_script(
        "return [...document.querySelectorAll('figure')].map((f) => f.innerText.trim())"
    )
    begins = ("accuracy over", "accuracy on each", "forgetting against", "ranks by accuracy of 4")
    assert len(captions) == 4
    assert all(c.startswith(b) for c, b in zip(captions, begins, strict=True))
    wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.execute_script(wide)


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_and_lines_stand_out_from_the_page(browser, page, scheme):
    show(browser, page, scheme)
    style = "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]"
    paper = browser.execute_script(style, "body", "backgroundColor")
    assert (luminance(paper) < 0.1) == (scheme == "dark")
    for selector in ("body", "td small", "figcaption", ".note"):
        assert contrast(browser.execute_script(style, selector, "color"), paper) >= 4.5
    # Whatever the figures draw upon the page itself; the cells of heat maps have their own ground.
    inks = browser.execute_script(
        "const seen = new Set();"
        "for (const e of document.querySelectorAll('figure:not(:nth-of-type(2)) svg use')) {"
        "  const s = getComputedStyle(e);"
        "  seen.add(s.fill === 'none' ? s.stroke : s.fill);"
        "}"
        "return [...seen].filter((colour) => colour.startsWith('rgb'))"
    )
    assert len(inks) >= 4
    for ink in inks:
        assert contrast(ink, paper) >= 2, ink


@pytest.mark.browser
def test_a_click_on_a_head_sorts_the_rows_by_number(browser, page):
    show(browser, page)
    head = browser.find_elements("css selector", "table th button")[2]
    assert head.text == "accuracy"
    head.click()
    assert column(browser, 1) == [EVIL, "ewc", "lwf", "replay"]
    head.click()
    assert column(browser, 1) == ["replay", "lwf", "ewc", EVIL]
    browser.find_elements("css selector", "table th button")[3].click()  # the difference
    assert column(browser, 4)[0].startswith("-0.1")
    assert column(browser, 4)[-1] == "baseline"
    assert browser.get_log("browser") == []


@pytest.mark.browser
def test_no_script_but_its_own_may_run(browser, page, tmp_path):
    """Were a name to get through unescaped, the page's policy would still stop it."""
    text = page.read_text().replace("<body>", "<body><script>document.title = 'mine'</script>")
    (tmp_path / "broken.html").write_text(text)
    show(browser, tmp_path / "broken.html")
    assert browser.title.startswith("split_digits")
    log = json.dumps(browser.get_log("browser"))
    assert "Content Security Policy" in log
