"""What the documentation shows: commands that exist, links that lead somewhere, and examples that run."""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Config, DramConfig, ServerConfig
from kvstore.cli.parser import build_parser
from kvstore.server import serve
from kvstore.store import Store

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")))
BLOCK = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
page = pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(page: Path, language: str) -> list[str]:
    return [text for named, text in BLOCK.findall(page.read_text()) if named == language]


def commands(page: Path) -> list[str]:
    """Every `kvstore …` of a page, in blocks and in lines."""
    lines = [line for text in blocks(page, "") for line in text.replace("\\\n", " ").splitlines()]
    inline = re.findall(r"`(kvstore [^`]+)`", BLOCK.sub("", page.read_text()))
    found = [" ".join(each.partition(" #")[0].split()) for each in (*lines, *inline)]
    return [each for each in found if each.startswith("kvstore ") and each != "kvstore COMMAND --help"]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@page
def test_commands_and_their_flags_are_known(page: Path) -> None:
    for command in commands(page):
        parser: Any = build_parser()
        words = shlex.split(command)[1:]
        while words and not words[0].isupper() and (choices := _choices(parser)):
            parser = choices[words.pop(0)]
        flags = {flag for action in parser._actions for flag in action.option_strings}
        for word in words:
            assert not word.startswith("-") or word.partition("=")[0] in flags, command


def _choices(parser: argparse.ArgumentParser) -> dict[str, Any]:
    (found,) = [each.choices for each in parser._actions if isinstance(each, argparse._SubParsersAction)] or [{}]
    return dict(found)


def test_targets_of_make_are_there() -> None:
    there = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        assert set(re.findall(r"`make ([\w-]+)", page.read_text())) <= there, page


def test_the_first_example_of_the_readme_runs(tmp_path: Path) -> None:
    (example,) = [text for text in blocks(ROOT / "README.md", "python") if "kvstore.open(" in text]
    for written, here in (("/var/tmp/kv", str(tmp_path / "kv")), ("2 << 30", "128 << 20"), ("16 << 30", "1 << 30")):
        assert written in example
        example = example.replace(written, here)
    example = example.replace("layers=32", "layers=2")
    kept: list[Any] = []
    names = {"token_ids": range(600), "kv_of": lambda ref: np.full((2, 2, ref.tokens, 8, 128), 7, np.float16)}
    exec(example + "\n            kept.append(array)\n", {**names, "kept": kept})
    assert [array.shape[2] for array in kept] == [256, 256, 88]
    assert all((array == 7).all() for array in kept)


def test_the_example_for_other_languages_runs() -> None:
    (example,) = [text for text in blocks(ROOT / "docs" / "server.md", "python") if "kvstore_pb2" in text]
    config = Config(dram=DramConfig(128 << 20, 64 << 20), server=ServerConfig(listen="127.0.0.1:0"))
    store = Store(config)
    server = serve(store, config)
    try:
        code = example.replace("127.0.0.1:7420", server.address)
        told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    finally:
        server.stop(0.2)
        store.close()
    assert (told.stdout.split(), told.stderr) == (["True", "True"], "")


def test_paths_may_be_text() -> None:
    config = kvstore.NvmeConfig("a", paths=("b", "c"))  # type: ignore[arg-type]
    assert (config.path, config.paths) == (Path("a"), (Path("b"), Path("c")))
    assert ServerConfig(tls_cert="x.pem").tls_cert == Path("x.pem")  # type: ignore[arg-type]
