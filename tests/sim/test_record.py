"""Recording from a real server in a process of its own, over every way in, and from the command line."""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import Client, KVSpec
from kvstore.api import Event
from kvstore.bench.processes import MODES, Server, server
from kvstore.bench.workloads import chain_of
from kvstore.errors import StorageError, Unavailable
from kvstore.keys import ChunkRef, pack_refs
from kvstore.sim.record import Recorder, record
from kvstore.sim.trace import read
from kvstore.spec import Part

SPEC = KVSpec.dense("small", layers=2, kv_heads=1, head_dim=16, chunk_tokens=64)
PROMPTS = [[1, 2, 3], [1, 2], [1, 2, 4, 5], [9]]


def refs_of(ids: list[int], tail: int = 10) -> list[ChunkRef]:
    return chain_of([*((number, 64) for number in ids[:-1]), (ids[-1], tail)])


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    with server(64 << 20) as one:
        yield one


def until_lines(path: Path, count: int) -> None:
    """Waits until so many requests are in the file."""
    deadline = time.monotonic() + 60
    while path.read_text().count("\n") < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def events(*chains: list[ChunkRef], spec: bytes = b"s" * 16) -> list[Event]:
    return [
        Event("lookup", b"", spec, Part(0, 0, (0, 0)), "", 5000 + 100 * n, refs=pack_refs(refs))
        for n, refs in enumerate(chains)
    ]


@pytest.mark.parametrize("mode", MODES)
def test_look_ups_of_a_live_server_become_a_trace(running: Server, mode: str, tmp_path: Path) -> None:
    with running.connect(mode) as asking, running.connect("bulk") as watching:
        assert asking.lookup(SPEC, refs_of([7, 8])).tokens == 0  # before: the client may have mapped the index by now

        def ask(stop: Callable[[], None]) -> None:
            for number, ids in enumerate(PROMPTS):
                if number % 2:
                    asking.lookup(SPEC, refs_of(ids))
                else:
                    asking.lookup(SPEC, refs_of(ids), lease_s=5.0).release()
            until_lines(tmp_path / "x.jsonl", len(PROMPTS))
            stop()

        told = record(
            watching, tmp_path / "x.jsonl", ready=lambda stop: threading.Thread(target=ask, args=(stop,)).start()
        )
    assert (told.requests, told.left_out, told.lost, told.chunk_tokens) == (4, 0, 0, 64)
    trace = read(tmp_path / "x.jsonl")
    assert trace.block == 64
    assert trace.input_tokens.tolist() == [138, 74, 202, 10]
    assert trace.chunk.tolist()[:7] == [0, 1, 2, 0, 3, 0, 1]  # a tail is another chunk than the whole
    assert (np.diff(trace.times_ms) >= 0).all()


def test_the_command_line_records_until_it_is_interrupted(running: Server, tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    command = [
        sys.executable,
        "-m",
        "kvstore",
        "sim",
        "--record",
        running.ready["address"],
        "--out",
        str(path),
        "--json",
    ]
    env = {name: value for name, value in os.environ.items() if not name.startswith("KVSTORE_")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "kvstore sim: recording\n"
        with running.connect("local") as client:
            for ids in PROMPTS:
                client.lookup(SPEC, refs_of(ids))
        until_lines(path, len(PROMPTS))
        process.send_signal(signal.SIGINT)
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    assert json.loads(out) == {"out": str(path), "requests": 4, "left_out": 0, "lost": 0, "chunk_tokens": 64}
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["input_length"] for line in lines] == [138, 74, 202, 10]
    keys = {ref.key.hex() for ids in PROMPTS for ref in refs_of(ids)}
    assert not any(f"{number:016x}"[:8] in key for line in lines for number in line["hash_ids"] for key in keys)


def test_a_server_that_dies_leaves_what_was_recorded(tmp_path: Path) -> None:
    with server(64 << 20) as mine, mine.connect("bulk") as asking, mine.connect("bulk") as watching:

        def ask_and_kill() -> None:
            asking.lookup(SPEC, refs_of(PROMPTS[0]))
            until_lines(tmp_path / "x.jsonl", 1)
            os.kill(mine.pid, signal.SIGKILL)

        killer = threading.Thread(target=ask_and_kill)
        with pytest.raises(Unavailable):
            record(watching, tmp_path / "x.jsonl", ready=lambda stop: killer.start())
        killer.join()
    assert read(tmp_path / "x.jsonl").requests == 1


def recorded(path: Path, *told: Event) -> tuple[Recorder, list[dict[str, Any]]]:
    recorder = Recorder(path)
    for event in told:
        recorder.take(event)
    recorder.close()
    return recorder, [json.loads(line) for line in path.read_text().splitlines()]


def test_a_gzipped_trace_for_a_time(running: Server, tmp_path: Path) -> None:
    with running.connect("bulk") as asking, running.connect("bulk") as watching:
        told = record(watching, tmp_path / "x.jsonl.gz", ready=lambda stop: ask_once(asking), seconds=2)
    assert gzip.decompress((tmp_path / "x.jsonl.gz").read_bytes()).count(b"\n") == told.requests == 1


def ask_once(client: Client) -> None:
    client.lookup(SPEC, refs_of([1, 2]))


def test_ids_are_salted_anew_each_time_and_follow_key_and_spec(tmp_path: Path) -> None:
    chain = refs_of([1, 2, 3])
    _, (first, again) = recorded(tmp_path / "a", *events(chain, chain))
    assert first["hash_ids"] == again["hash_ids"]
    assert (first["timestamp"], again["timestamp"]) == (0, 100)
    _, (other,) = recorded(tmp_path / "b", *events(chain))
    assert not set(first["hash_ids"]) & set(other["hash_ids"])
    _, (one, two) = recorded(tmp_path / "c", *events(chain), *events(chain, spec=b"t" * 16))
    assert not set(one["hash_ids"]) & set(two["hash_ids"])


def test_the_longest_of_several_chunks_at_one_place_counts(tmp_path: Path) -> None:
    chain = refs_of([1, 2, 3])
    shorter = ChunkRef(b"x" * 32, chain[1].key, 128, 5)
    _, (line,) = recorded(tmp_path / "a", *events([chain[0], chain[1], shorter, chain[2]]))
    assert (line["input_length"], len(line["hash_ids"])) == (138, 3)


def test_what_the_format_cannot_say_is_left_out(tmp_path: Path) -> None:
    chain = refs_of([1, 2, 3])
    short = refs_of([5], tail=12)
    recorder, lines = recorded(
        tmp_path / "a", *events(short, chain[1:], chain, chain_of([(1, 32), (2, 32)]), chain_of([(1, 128)]), []),
        Event("lost", b"", b"", Part(0, 0, (0, 0)), "", 0),
    )  # fmt: skip
    assert [line["input_length"] for line in lines] == [12, 138]  # a short prompt does not decide the block length
    assert (recorder.told.left_out, recorder.told.lost, recorder.told.chunk_tokens) == (4, 1, 64)


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be written"):
        Recorder(tmp_path / "none" / "x")
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    full = Recorder(Path("/dev/full"))
    with pytest.raises(StorageError, match="No space left"):
        full.take(*events(refs_of([1, 2, 3])))
    full.close()
