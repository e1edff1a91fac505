"""`kvstore bench`: output, files, and what it says of wrong flags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .conftest import Run, only_json


def test_rows_go_to_standard_output_and_into_a_folder(cli: Run, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "new" / "out"
    result = cli(
        "bench", "mix", "--mode", "embedded", "--requests", "40", "--dram", "64MiB", "--json", "--out", str(out)
    )
    told = only_json(result)
    assert list(told) == ["bench", "machine", "rows"]
    assert (told["bench"], told["rows"][0]["case"], told["rows"][0]["clients"]) == ("mix", "zipf-1", 4)
    assert json.loads((out / "bench-mix.json").read_text()) == told
    assert (out / "bench-mix.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_shows_the_rows(cli: Run) -> None:
    result = cli("bench", "local", "--rounds", "1", "--model", "smollm2-135m", "--tokens", "16")
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[0].split()[:3] == ["case", "mode", "bytes"]
    assert "360 KiB" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("local", "--sizes", "3XB"), 2, ["3XB", "512MiB"]),
        (("local", "--sizes", "1000"), 2, ["multiple of 256 KiB"]),
        (("local", "--sizes", ""), 2, ["--sizes"]),
        (("local", "--model", "lama-3.1-8b"), 2, ["did you mean 'llama-3.1-8b'", "deepseek-v3"]),
        (("local", "--model", "qwen3-8b", "--sizes", "1MiB"), 2, ["--sizes or --model"]),
        (("local", "--tp", "2"), 2, ["--model"]),
        (("grpc", "--model", "qwen3-8b", "--tp", "3"), 2, ["cannot be split"]),
        (("local", "--clients", "2"), 2, ["--server"]),
        (("lookup", "--clients", "1,0"), 2, ["'0'"]),
        (("lookup", "--modes", "pigeon"), 2, ["no mode 'pigeon'"]),
        (("lookup", "--entries", "5"), 2, ["at least 2000"]),
        (("mix", "--trace", "/nowhere/x.jsonl"), 2, ["/nowhere/x.jsonl"]),
        (("mix", "--trace", "x", "--exponent", "1"), 2, ["not allowed with"]),
        (("mix", "--trace", "x", "--model", "qwen3-8b", "--tokens", "64"), 2, ["--tokens"]),
        (("mix", "--mode", "pigeon"), 2, ["pigeon"]),
        (("mix", "--exponent", "nan"), 2, ["'nan'"]),
        (("mix", "--mode", "embedded", "--out", "/dev/null/x"), 7, ["/dev/null/x"]),
    ],
)
def test_wrong_flags(called: Run, arguments: tuple[str, ...], code: int, words: list[str]) -> None:
    result = called("bench", *arguments)
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    assert result.stderr.startswith("kvstore: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert all(word in result.stderr for word in words), result.stderr
