"""`kvstore bench tier s3`: the engine against obstore itself, on the same server, `moto`'s in a process of its own.

The baseline is what a program writes with obstore's plain calls in threads: `put` with the condition that nothing is
there, `get_range` and one copy of what it gives into the caller's memory, which is where the engine's bytes end as
well. Both have the same sizes and numbers of requests in flight, in an order drawn anew each round. What is read is
compared with what was written. The server keeps everything in its memory, and is Python: it is what limits both.
"""

from __future__ import annotations

import mmap
import random
import socket
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import numpy as np

from kvstore import _native
from kvstore.bench.cpu import CpuClock
from kvstore.bench.measure import Bar, Row, cpu_facts, percentile
from kvstore.bench.raw_disk import in_threads
from kvstore.bench.s3_server import make_bucket, place_at, s3_server
from kvstore.bench.tcp_peer import HOST
from kvstore.errors import Corrupt
from kvstore.tiers.remote.s3 import S3Engine

MIB = 1 << 20
SIZES = (256 << 10, MIB, 4 * MIB, 16 * MIB)
IN_FLIGHT = (1, 4)
BAR = Bar(ratio=0.9)
TIMEOUT_S = 60.0
_BATCH = 32 * MIB
_LEAST = 4  # records in a batch
_NOTE = "everything in the server's memory; time per record of a batch"
Times = dict[tuple[str, int], list[tuple[float, float, float]]]  # seconds, CPU seconds, the server's, a record


def run(*, sizes: Sequence[int] = SIZES, rounds: int = 10, progress: Callable[[str], None] | None = None) -> list[Row]:
    """Rows for `raw-write`, `write`, `raw-read` and `read` at each of `sizes` (bytes)."""
    say = progress or (lambda text: None)
    rows: list[Row] = []
    with _engine() as (engine, pid):
        contest = _Contest(engine, pid)
        for size in sizes:
            say(f"records of {size >> 10} KiB")
            rows += contest.measure(size, rounds)
    return rows


@contextmanager
def _engine() -> Iterator[tuple[S3Engine, int]]:
    with socket.create_server((HOST, 0)) as free:
        port = int(free.getsockname()[1])
    with s3_server(port) as pid:
        make_bucket(port, "bench")
        with closing(S3Engine(place_at(port, "bench"))) as engine:
            yield engine, pid


class _Contest:
    """One bucket, and memory for one batch."""

    def __init__(self, engine: S3Engine, pid: int) -> None:
        import obstore

        self._engine, self._obstore = engine, obstore
        self._store = engine.place.open(TIMEOUT_S)
        nbytes = max(_BATCH, _LEAST * max(SIZES))
        self._source, self._target = (memoryview(mmap.mmap(-1, nbytes)) for _ in range(2))
        words = np.frombuffer(self._source, np.uint64)
        words[:] = np.random.default_rng(0).integers(0, 1 << 63, len(words), dtype=np.uint64)
        self._target[:] = self._source  # both are in memory before the clock starts
        self._cpu, self._server_cpu = CpuClock(), CpuClock(pid)

    def measure(self, size: int, rounds: int) -> list[Row]:
        """The four rows of one record size."""
        nbytes = max(_BATCH, _LEAST * size)
        pieces, targets = ([m[at : at + size] for at in range(0, nbytes, size)] for m in (self._source, self._target))
        expected = [_native.xxh3_128(piece) for piece in pieces]
        times: dict[str, Times] = {"write": {}, "read": {}}
        contenders = [(who, threads) for threads in IN_FLIGHT for who in ("raw", "ours")]
        order = random.Random(size)
        for number in range(-1, rounds):
            for who, threads in order.sample(contenders, len(contenders)):
                names = [f"{who}/{index}" for index in range(len(pieces))]
                for case, step in self._steps(who, names, pieces, targets).items():
                    self._target[:nbytes:4096] = bytes(nbytes // 4096)
                    used, served = self._cpu.seconds(), self._server_cpu.seconds()
                    seconds = in_threads(threads, len(pieces), step)
                    used, served = self._cpu.seconds() - used, self._server_cpu.seconds() - served
                    if case == "read" and [_native.xxh3_128(target) for target in targets] != expected:
                        raise Corrupt(f"{who} read something else than was written")
                    if number >= 0:
                        each = tuple(value / len(pieces) for value in (seconds, used, served))
                        times[case].setdefault((who, threads), []).append((each[0], each[1], each[2]))
                self._engine.delete(names, TIMEOUT_S)
        return [row for case in ("write", "read") for row in _rows(case, size, times[case])]

    def _steps(
        self, who: str, names: Sequence[str], pieces: Sequence[memoryview], targets: Sequence[memoryview]
    ) -> dict[str, Callable[[int], Any]]:
        engine, store, obstore = self._engine, self._store, self._obstore
        if who == "ours":
            return {
                "write": lambda i: engine.put(names[i], [pieces[i]], TIMEOUT_S),
                "read": lambda i: engine.read_into(names[i], 0, targets[i], TIMEOUT_S),
            }

        def read(i: int) -> None:
            _native.copy(targets[i], obstore.get_range(store, names[i], start=0, length=len(targets[i])))

        return {"write": lambda i: obstore.put(store, names[i], pieces[i], mode="create"), "read": read}


def _rows(case: str, size: int, times: Times) -> list[Row]:
    """A raw row and ours for each number of requests in flight."""
    rows = []
    for threads in IN_FLIGHT:
        raw = _row(f"raw-{case}", size, threads, times["raw", threads])
        ours = _row(case, size, threads, times["ours", threads])
        ours |= {"baseline": raw["case"], "ratio": raw["p50_s"] / ours["p50_s"]}
        BAR.judge(ours)
        rows += [raw, ours]
    return rows


def _row(name: str, size: int, threads: int, taken: Sequence[tuple[float, float, float]]) -> Row:
    p50 = statistics.median(seconds for seconds, _, _ in taken)
    return {
        "case": name,
        "mode": f"{threads} in flight",
        "bytes": size,
        "p50_s": p50,
        "p99_s": percentile([seconds for seconds, _, _ in taken], 0.99),
        "gbps": size / p50 / 1e9,
        "baseline": None,
        "ratio": None,
        **cpu_facts(sum(used for _, used, _ in taken), sum(served for _, _, served in taken), len(taken), size),
        "rounds": len(taken),
        "note": _NOTE,
        "bar": None,
        "met": None,
    }
