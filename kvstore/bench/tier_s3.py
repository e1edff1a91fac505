"""`kvstore bench tier s3`: the engine against obstore itself, on the same server in processes of its own.

The server is `moto`'s, or with `--server ceph` a Ceph cluster's gateway. The baseline is what a program writes with
obstore's plain calls in threads: `put` with the condition that nothing is there, `get_range` and one copy of what it
gives into the caller's memory, which is where the engine's bytes end as well; and for look-ups `get_range_async` for
all names at once. Both have the same sizes and numbers of requests in flight, in an order drawn anew each round. What
is read is compared with what was written. The servers keep everything in their memory; moto is Python, and is what
limits both.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any

from kvstore import _native
from kvstore.bench.ceph_server import ceph_server
from kvstore.bench.contest import Contender, Taken, check_sizes, in_threads, paired, source_and_target
from kvstore.bench.cpu import CpuClock
from kvstore.bench.finds import HEAD_BYTES, find_rows, prepared
from kvstore.bench.measure import Bar, Row
from kvstore.bench.s3_server import S3Server, moto_server
from kvstore.errors import Corrupt, InvalidArgument
from kvstore.tiers.remote.s3 import S3Engine

MIB = 1 << 20
SIZES = (256 << 10, MIB, 4 * MIB, 16 * MIB)
SERVERS: dict[str, Callable[[], AbstractContextManager[S3Server]]] = {"moto": moto_server, "ceph": ceph_server}
IN_FLIGHT = (1, 4)
BAR = Bar(ratio=0.9)
TIMEOUT_S = 60.0
_BATCH = 32 * MIB
_LEAST = 4  # records in a batch
_NOTE = "everything in the memory of {}; time per record of a batch"
Times = dict[Contender, Taken]


def run(
    *, sizes: Sequence[int] = SIZES, server: str = "moto", rounds: int = 10,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:  # fmt: skip
    """Rows for `raw-write`, `write`, `raw-read` and `read` at each of `sizes` (bytes), `raw-find` and `find`.

    `server` is one of `SERVERS`. `InvalidArgument` where its packages are missing.
    """
    if server not in SERVERS:
        raise InvalidArgument(f"{server!r} is no S3 server here: one of {', '.join(SERVERS)}")
    check_sizes(sizes)
    say = progress or (lambda text: None)
    rows: list[Row] = []
    with SERVERS[server]() as place:
        place.make_bucket("bench")
        with closing(S3Engine(place.place("bench"))) as engine:
            contest = _Contest(engine, place.pid, _NOTE.format(server), max(_batch_bytes(size) for size in sizes))
            for size in sizes:
                say(f"records of {size >> 10} KiB")
                rows += contest.measure(size, rounds)
            rows += contest.find(3 * rounds)
    return rows


def _batch_bytes(size: int) -> int:
    return max(_BATCH // size, _LEAST) * size


class _Contest:
    """One bucket, and memory for one batch."""

    def __init__(self, engine: S3Engine, pid: int, note: str, nbytes: int) -> None:
        import obstore

        self._engine, self._obstore, self._pid, self._note = engine, obstore, pid, note
        self._store = engine.place.open(TIMEOUT_S)
        self._source, self._target = source_and_target(nbytes)
        self._cpu, self._server_cpu = CpuClock(), CpuClock(pid)

    def measure(self, size: int, rounds: int) -> list[Row]:
        """The rows of one record size."""
        nbytes = _batch_bytes(size)
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
                        times[case].setdefault((who, threads), Taken()).add(len(pieces), seconds, used, served)
                self._engine.delete(names, TIMEOUT_S)
        return [row for case in ("write", "read") for row in self._rows(case, size, times[case])]

    def find(self, rounds: int) -> list[Row]:
        """The rows of look-ups."""
        there = prepared(self._source)
        for name, whole in there.items():
            self._engine.put(name, [whole], TIMEOUT_S)
        with asyncio.Runner() as runner:
            return find_rows(
                there, lambda names: runner.run(self._raw_heads(names)),
                lambda names: self._engine.heads(names, HEAD_BYTES, TIMEOUT_S), rounds=rounds, note=self._note,
                pid=self._pid,
            )  # fmt: skip

    async def _raw_heads(self, names: Sequence[str]) -> Sequence[bytes | None]:
        async def head(name: str) -> bytes | None:
            try:
                return bytes(await self._obstore.get_range_async(self._store, name, start=0, length=HEAD_BYTES))
            except FileNotFoundError:
                return None

        return await asyncio.gather(*map(head, names))

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

    def _rows(self, case: str, size: int, times: Times) -> list[Row]:
        """A raw row and ours for each number of requests in flight."""
        rows = []
        for threads in IN_FLIGHT:
            raw, ours = (
                times[who, threads].row(name, f"{threads} in flight", size, self._note)
                for who, name in (("raw", f"raw-{case}"), ("ours", case))
            )
            rows += paired(raw, ours, BAR)
        return rows
