"""Texts by name: what is installed, files and folders, pages without tags, datasets on disk."""

import argparse
import functools
import gzip
import hashlib
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch

from clplat.errors import InputError
from scenarios.texts import EMBEDDED, MODULES, extra, read, without_tags

# --- what is installed anyway ------------------------------------------------------------------


def test_english_is_the_topics_of_pythons_help():
    assert read("english").split() == " ".join(topics[name] for name in sorted(topics)).split()


def test_python_is_the_source_of_modules_in_order():
    text = read("python")
    places = [
        text.index(Path(str(m.__file__)).read_text()) for m in (argparse, functools, textwrap)
    ]
    assert places == sorted(places)
    assert len(MODULES) == len(set(MODULES)) == 20


def test_cpp_is_headers_that_come_with_torch():
    header = Path(torch.__file__).parent / "include/c10/core/ScalarType.h"
    assert header.read_text(encoding="utf-8") in read("cpp")


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_texts_are_long_and_the_same_in_another_process(name):
    text = read(name)
    assert len(text) > 300_000
    assert read(name) == text
    script = f"import hashlib; from scenarios.texts import read; t = read({name!r}).encode()"
    script += "; print(hashlib.sha256(t).hexdigest())"
    command = [sys.executable, "-c", script]
    other = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert other == hashlib.sha256(text.encode()).hexdigest()


# --- files and folders -------------------------------------------------------------------------


def test_a_file_is_read_as_it_is_gzipped_or_not(tmp_path):
    text = "naïve — 日本語\n  indented\r\n"
    (tmp_path / "a.dat").write_bytes(text.encode())
    (tmp_path / "marked").write_bytes(b"\xef\xbb\xbf" + text.encode())
    (tmp_path / "b.log.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("a.dat", "marked", "b.log.gz"):
        assert read(str(tmp_path / name)) == text


def test_a_folder_is_its_texts_in_the_order_of_their_paths(tmp_path):
    files = {
        "b/deep/1.md": "first",
        "b/ls.1.gz": ".TH LS 1",
        "c.txt": "third",
        "d.rst.gz": "fourth",
        "e.html": "<p>fi<b>f</b>th</p>",
        "f.HTM": "not read, nor are the next",
        "g.py": "code",
        "h.changelog.gz": "changes",
        "README": "no suffix",
    }
    for name, text in reversed(files.items()):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        packed = gzip.compress(text.encode()) if name.endswith(".gz") else text.encode()
        (tmp_path / name).write_bytes(packed)
    (tmp_path / "again.txt").symlink_to(tmp_path / "c.txt")  # the same text twice would leak
    (tmp_path / "gone.txt").symlink_to(tmp_path / "nowhere")
    parts = read(str(tmp_path)).split("\n\n")
    assert parts == ["third", "first", ".TH LS 1", "fourth", "fifth"]  # by its first name


def test_a_page_is_read_without_its_tags():
    page = """<!DOCTYPE html><html><head><title>A &amp; B</title>
    <style>p {color: red}</style><script>if (a < b) {f("<p>");}</script></head>
    <body><h1>Head</h1><p>One <em>word</em>,<br>caf&eacute; &#8212; x &lt; y</p>


    <!-- a remark --><ul><li>first</li><li>second</li></ul>
<pre>
  def f():
      pass
</pre></body></html>"""
    text = without_tags(page)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    assert lines == [
        *("A & B", "Head", "One word,", "café — x < y", "first", "second", "def f():", "pass")
    ]
    assert "  def f():\n      pass" in text  # as it was indented
    assert not re.search(r"\n\s*\n\s*\n", text)


def test_a_gzipped_page_is_a_page(tmp_path):
    (tmp_path / "page.html.gz").write_bytes(gzip.compress(b"<p>text</p>", mtime=0))
    assert read(str(tmp_path / "page.html.gz")) == "text"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.txt",
            "café".encode("latin-1"),
            r"not UTF-8 \(byte 3\); expected text in UTF-8; conver",
        ),
        (
            "a.txt.gz",
            gzip.compress(b"text", mtime=0)[:-4],
            "expected a whole gzip file .*; fetch it again",
        ),
        ("a.txt.gz", b"text", "expected a whole gzip file .*; fetch it again"),
        ("a.txt", b" \n", "no text in it; expected a file with some, or a folder of .txt, .md"),
        ("a.html", b"<p> </p>", "no text in it; expected a file with some, or a folder of .txt"),
        ("a.dat", b"text", None),
    ],
)
def test_bad_files_are_told_by_name_also_within_a_folder(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    if message:
        with pytest.raises(InputError, match=rf"^scenario.sources={tmp_path / name}: {message}"):
            read(str(tmp_path / name))
    inside = tmp_path if message is None or "no text" in message else tmp_path / name
    with pytest.raises(InputError, match=rf"^scenario.general={inside}: {message or 'no text in'}"):
        read(str(tmp_path), "scenario.general")


def test_a_name_that_is_neither_is_told():
    message = r"scenario.sources=french: no such text; expected english, python, cpp, the path of a"
    with pytest.raises(InputError, match=message):
        read("french")


# --- datasets ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def datasets():
    return pytest.importorskip("datasets")


@pytest.fixture
def saved(tmp_path, datasets):
    """A dataset of two columns of text and one of numbers, on disk."""
    columns = {"text": ["one", None, "", "two é"], "other": ["a", "b", "c", "d"], "n": [1, 2, 3, 4]}
    datasets.Dataset.from_dict(columns).save_to_disk(tmp_path / "flat")
    return str(tmp_path / "flat")


def test_a_dataset_is_a_column_of_text(saved):
    assert read(f"dataset:{saved}") == "one\n\ntwo é"
    assert read(f"dataset:{saved}:other") == "a\n\nb\n\nc\n\nd"


def test_of_a_dataset_of_splits_the_one_for_training_is_read(tmp_path, datasets):
    parts = {name: datasets.Dataset.from_dict({"text": [name]}) for name in ("test", "train")}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "splits")
    assert read(f"dataset:{tmp_path}/splits") == "train"
    assert read(f"dataset:{tmp_path}/splits/test") == "test"
    datasets.DatasetDict({"test": parts["test"]}).save_to_disk(tmp_path / "one")
    with pytest.raises(InputError, match="expected a split train; there are test; name the folder"):
        read(f"dataset:{tmp_path}/one")


@pytest.mark.parametrize("column", ["body", "n"])
def test_a_column_that_is_no_text_is_told(saved, column):
    message = f"{saved}:{column}: no column {column} of text; expected one of text, other; name it"
    with pytest.raises(InputError, match=message):
        read(f"dataset:{saved}:{column}")


@pytest.mark.parametrize("place", ["/no/such", "somebody/corpus", "hf://datasets/a/b", "", ":text"])
def test_a_dataset_that_is_not_on_this_machine_is_not_fetched(place):
    message = rf"scenario.sources=dataset:{place}: no such folder; expected dataset:FOLDER\[:COLUMN"
    with pytest.raises(InputError, match=message):
        read(f"dataset:{place}")


def test_a_folder_that_is_no_dataset_is_told(tmp_path, datasets):
    with pytest.raises(InputError, match=r"not a dataset that datasets.load_from_disk can read"):
        read(f"dataset:{tmp_path}")


def test_a_missing_package_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        InputError, match=r"needs the package datasets.*pip install 'clplat\[text\]"
    ):
        read(f"dataset:{tmp_path}")
    assert extra("json", "test").loads("1") == 1
