"""Where text comes from: what is installed anyway, the user's files, or a dataset on disk.

A text is named by a string: "english", "python" or "cpp", which need no download; a path; or
"dataset:FOLDER[:COLUMN]". Nothing is fetched from anywhere.
"""

import gzip
import importlib
import importlib.util
import logging
import re
import zlib
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from clplat.errors import InputError

log = logging.getLogger(__name__)

MODULES = (
    *("argparse", "calendar", "configparser", "csv", "dataclasses", "difflib", "fractions"),
    *("functools", "gettext", "heapq", "inspect", "pickle", "random", "shutil", "statistics"),
    *("subprocess", "tarfile", "tempfile", "textwrap", "threading"),
)
READ = re.compile(r"\.(txt|md|rst|html?|[1-9])(\.gz)?$")  # .1 to .9: the sources of man pages
HTML = re.compile(r"\.html?(\.gz)?$")
BLOCK = re.compile(r"d[dt]|div|h[1-6]|li|p|pre|t[dhr]|table|title")
DATASET = "dataset:"


def extra(package: str, needed_by: str) -> Any:
    """A package of the extra `text`. InputError, naming what needs it, where it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise InputError(
            f"{needed_by}: needs the package {package}, which is not installed; "
            "pip install 'clplat[text]'"
        ) from error


# --- what is installed anyway ----------------------------------------------------------------


def english() -> str:
    """The topics of Python's interactive help, in order: a reference manual's prose."""
    from pydoc_data.topics import topics

    return "\n\n".join(topics[name] for name in sorted(topics))


def python() -> str:
    """The sources of `MODULES` of the standard library, comments and all."""
    specs = [importlib.util.find_spec(module) for module in MODULES]
    loaders: list[Any] = [spec.loader for spec in specs if spec is not None]
    sources = (loader.get_source(loader.name) for loader in loaders)
    return "\n\n".join(filter(None, sources))


def cpp() -> str:
    """The headers of c10, the core library of PyTorch, which are shipped with it."""
    import torch

    folder = Path(torch.__file__).parent / "include" / "c10"
    files = sorted([*(folder / "core").glob("*.h"), *(folder / "util").glob("*.h")])
    return "\n\n".join(file.read_text(encoding="utf-8") for file in files)


EMBEDDED: dict[str, Callable[[], str]] = {f.__name__: f for f in (english, python, cpp)}


# --- files -----------------------------------------------------------------------------------


class _Prose(HTMLParser):
    """Collects the text of a page: no tags, scripts or styles, a line end after each block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = False

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._hidden = tag in ("script", "style")
        if tag == "br":
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = False
        if BLOCK.fullmatch(tag):
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def without_tags(page: str) -> str:
    """What an HTML page says, no more than one empty line in a row."""
    parser = _Prose()
    parser.feed(page)
    parser.close()
    return re.sub(r"\s*\n\s*\n", "\n\n", "".join(parser.parts)).strip()


def _file(path: Path, key: str) -> str:
    raw = path.read_bytes()
    if path.suffix == ".gz":
        try:
            raw = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(
                f"{key}={path}: expected a whole gzip file ({error}); fetch it again"
            ) from error
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{key}={path}: not UTF-8 (byte {error.start}); expected text in UTF-8; convert it, "
            "for example by iconv -f latin1 -t utf-8"
        ) from error
    return without_tags(text) if HTML.search(path.name) else text


def _folder(folder: Path, key: str) -> str:
    found = [path for path in sorted(folder.rglob("*")) if READ.search(path.name)]
    files = {path.resolve(): path for path in found if path.is_file()}  # once, whatever its names
    return "\n\n".join(_file(path, key) for path in files.values())


# --- datasets --------------------------------------------------------------------------------


def _dataset(place: str, key: str) -> str:
    """`place` is FOLDER or FOLDER:COLUMN."""
    given = f"{key}={DATASET}{place}"
    folder, column = place, "text"
    if not Path(place).is_dir():
        folder, _, column = place.rpartition(":")
    if not folder or not Path(folder).is_dir():
        raise InputError(
            f"{given}: no such folder; expected {DATASET}FOLDER[:COLUMN], FOLDER as "
            "Dataset.save_to_disk leaves it; save the dataset there"
        )
    datasets = extra("datasets", given)
    try:
        data = datasets.load_from_disk(folder)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{given}: not a dataset that datasets.load_from_disk can read "
            f"({str(error).splitlines()[0]}); save it anew by its save_to_disk"
        ) from error
    if isinstance(data, datasets.DatasetDict):
        if "train" not in data:
            raise InputError(
                f"{given}: expected a split train; there are {', '.join(data)}; name the folder "
                "of one of these"
            )
        data = data["train"]
    texts = [name for name, kind in data.features.items() if "string" in str(kind.dtype)]
    if column not in texts:
        raise InputError(
            f"{given}: no column {column} of text; expected one of {', '.join(texts) or 'none'}; "
            f"name it, {DATASET}{folder}:COLUMN"
        )
    return "\n\n".join(filter(None, data[column]))


# --- by name ---------------------------------------------------------------------------------


def read(name: str, key: str = "scenario.sources") -> str:
    """A text by its name, the same on every call; `key` is the config's, for messages.

    Embedded: "english" (Python's reference topics, 0.5 MB), "python" (modules of the standard
    library, 1 MB) and "cpp" (PyTorch's headers, 1 MB). A path: one file, or the .txt, .md, .rst,
    .html and man pages (.1 to .9) below a folder, in the order of their paths; .gz as well, HTML
    without its tags. Debian's packages have such: debian-handbook (/usr/share/doc/debian-handbook
    /html/fr-FR, and some 25 languages more), python3-doc (/usr/share/doc/python3/html),
    manpages-fr (/usr/share/man/fr). "dataset:FOLDER[:COLUMN]": a dataset that `save_to_disk` of
    the package datasets left, its split "train", the column "text" unless said otherwise.
    InputError: no such text, no UTF-8, nothing in it, no such column.
    """
    if name in EMBEDDED:
        text = EMBEDDED[name]()
    elif name.startswith(DATASET):
        text = _dataset(name.removeprefix(DATASET), key)
    elif Path(name).is_dir():
        text = _folder(Path(name), key)
    elif Path(name).is_file():
        text = _file(Path(name), key)
    else:
        raise InputError(
            f"{key}={name}: no such text; expected {', '.join(EMBEDDED)}, the path of a file or "
            f"folder, or {DATASET}FOLDER[:COLUMN]; correct it"
        )
    if not text.strip():
        raise InputError(
            f"{key}={name}: no text in it; expected a file with some, or a folder of .txt, .md, "
            ".rst, .html or man pages, .gz as well; name another"
        )
    log.info("%s: read, %d characters", name, len(text))
    return text
