"""Reading traces: both formats, and what is wrong with a line, by file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from kvstore.errors import InvalidArgument
from kvstore.sim.formats import parse
from kvstore.sim.trace import mix, read, then

from .traces import REAL, linked, real, write

LINE = {"timestamp": 5, "input_length": 40, "output_length": 3, "hash_ids": [7, 8, 9]}


def test_hash_ids_with_a_partial_last_block(tmp_path: Path) -> None:
    trace = read(write(tmp_path / "a.jsonl", [LINE, {**LINE, "timestamp": 2, "hash_ids": [7, 8], "input_length": 32}]))
    assert (trace.name, trace.block, trace.requests, trace.events, trace.chunks) == ("a", 16, 2, 5, 3)
    assert trace.times_ms.tolist() == [2, 5]  # in the order of their time
    assert trace.chunk.tolist() == [0, 1, 0, 1, 2]
    assert trace.chunk_tokens.tolist() == [16, 16, 8]
    assert trace.position.tolist() == [0, 16, 0, 16, 32]
    assert trace.starts.tolist() == [0, 2, 5]
    assert trace.linked.tolist() == [1, 1]


def test_the_block_is_found_out_or_said(tmp_path: Path) -> None:
    whole = write(
        tmp_path / "w.jsonl", [{**LINE, "input_length": 1000 * n + 7, "hash_ids": list(range(n))} for n in (3, 60)]
    )
    with pytest.raises(InvalidArgument, match="say it with --block"):
        read(whole)
    assert read(whole, block=1000).chunk_tokens.tolist() == [1000] * 60
    said = write(tmp_path / "s.jsonl", [{**LINE, "input_length": 150, "hash_ids": [1, 2], "block_tokens": 100}])
    assert read(said).chunk_tokens.tolist() == [100, 50]
    with pytest.raises(InvalidArgument, match=r"w\.jsonl:1: 3 hash_ids are too many for 3007 tokens in blocks of 2000"):
        read(whole, block=2000)


def test_a_gzipped_file_and_its_first_requests(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl.gz"
    with gzip.open(path, "wt") as file:
        for n in range(5):
            file.write(json.dumps({**LINE, "timestamp": n}) + "\n\n")
    assert (read(path).name, read(path).requests) == ("b", 5)
    assert read(path, most=3).requests == 2  # of three lines one is empty


def test_segments(tmp_path: Path) -> None:
    line = {"timestamp": 1.5, "input_length": 21, "segments": [[4, 10, "sys"], [9, 11, "user"], [4, 10, "sys"]]}
    trace = read(write(tmp_path / "r.jsonl", [line]))
    assert (trace.block, trace.chunks, trace.linked.tolist()) == (0, 2, [0])
    assert trace.times_ms.tolist() == [1500]
    assert trace.input_tokens.tolist() == [31]  # never less than its segments
    assert trace.position.tolist() == [0, 10, 21]
    with pytest.raises(InvalidArgument, match="leave --block away"):
        read(tmp_path / "r.jsonl", block=16)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "holds no requests"),
        ([[1]], r":1: no JSON object"),
        ([{"timestamp": 1}], "neither hash_ids nor segments"),
        ([LINE, {**LINE, "hash_ids": "7"}], r":2: hash_ids is a list, not \"7\""),
        ([LINE, {**LINE, "hash_ids": [1, 2, None]}], r":2: hash_ids are whole numbers"),
        ([LINE, {**LINE, "hash_ids": [1, 2, 1 << 63]}], r":2: hash_ids are whole numbers of 63 bits"),
        ([{"timestamp": 0, "segments": [[1 << 63, 4]]}], r":1: a segment is"),
        ([{"timestamp": 0, "segments": [[1, 1 << 31]]}], r":1: a prompt of 2147483648 tokens is too long"),
        ([LINE, {**LINE, "input_length": -1}], r":2: input_length is a number of tokens, not -1"),
        ([LINE, {**LINE, "input_length": 40.0}], r":2: input_length is a number of tokens"),
        ([LINE, {**LINE, "timestamp": None}], r":2: timestamp is a time, not null"),
        ([LINE, {**LINE, "timestamp": float("nan")}], r":2: timestamp is a time"),
        ([{**LINE, "hash_ids": [], "input_length": 3}], "holds no ids"),
        ([{"timestamp": 0, "segments": [[1]]}], r":1: a segment is \[id, tokens, kind\], not \[1\]"),
        ([{"timestamp": 0, "segments": [[1, 0, "x"]]}], r":1: segment 1 has 0 tokens"),
        ([{"timestamp": 0, "segments": [[1, 4], [2, 5], [1, 6]]}], r":1: segment 1 has 6 tokens here, and 4 elsewhere"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, lines: list[Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        read(write(tmp_path / "wrong.jsonl", lines))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"cannot be read: .*No such file"):
        parse(tmp_path / "none.jsonl")
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"timestamp": 1}\n' * 1000)[:-20])
    with pytest.raises(InvalidArgument, match="cannot be read"):
        parse(tmp_path / "cut.jsonl.gz")
    (tmp_path / "half.jsonl").write_text(json.dumps(LINE) + '\n{"timestamp"')
    with pytest.raises(InvalidArgument, match=r"half\.jsonl:2: no JSON"):
        parse(tmp_path / "half.jsonl")


def test_traces_side_by_side_are_tenants() -> None:
    one, two = linked([[1, 2], [1, 2, 3]], tail=4), linked([[1], [5], [1, 6]])
    both = mix([one, two])
    assert (both.requests, both.chunks, both.names) == (5, 3 + 3, ("by-hand", "by-hand 2"))
    assert both.tenants.tolist() == [0, 1, 0, 1, 1]
    assert both.times_ms.tolist() == [0, 0, 1000, 1000, 2000]
    assert both.chunk.tolist() == [0, 1, 3, 0, 1, 2, 4, 3, 5]
    assert both.position.tolist() == [0, 16, 0, 0, 16, 32, 0, 0, 16]
    assert both.chunk_tokens.tolist() == [16, 16, 4, 16, 16, 16]
    assert both.block == 16


def test_traces_one_after_the_other_are_one_tenant() -> None:
    both = then([linked([[1], [2]]), linked([[1, 2]])])
    assert both.tenants.tolist() == [0, 0, 0]
    assert both.times_ms.tolist() == [0, 1000, 1000]
    assert both.chunk.tolist() == [0, 1, 2, 3]  # other files, other texts
    assert both.names == ("by-hand>by-hand",)


@pytest.mark.parametrize(("name", "block"), [*zip(REAL, (512, 512, 1024), strict=True), ("rag_segments", 0)])
def test_the_real_traces(name: str, block: int) -> None:
    trace = real(name)
    assert trace.block == block
    assert trace.chunk_tokens[trace.chunk].sum() <= trace.input_tokens.sum(dtype="int64")
    assert trace.chunks == len(set(trace.chunk.tolist()))
