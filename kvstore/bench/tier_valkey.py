"""`kvstore bench tier valkey`: the remote tier over a `redis-server` of its own against the client library itself.

The client's SET takes a batch from the same memory, and its GET makes `bytes` of it as it always does; the tier
receives into the caller's memory. Both go through so many threads, one connection each, over TCP on this host, in
turns that change from round to round. `find` is one look-up of 100 names against one pipeline of GETRANGE. Everything
that is read is compared with what was written, outside the clock. The server keeps everything in its memory and
nothing on disk.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.bench.contest import Taken, check_sizes, in_threads, paired, source_and_target
from kvstore.bench.cpu import CpuClock
from kvstore.bench.finds import HEAD_BYTES, OBJECT_BYTES, find_rows, prepared
from kvstore.bench.measure import Bar, Row
from kvstore.bench.redis_server import RedisServer
from kvstore.errors import ConfigError, Corrupt
from kvstore.namespace import namespace_digest
from kvstore.record import Record, group_table
from kvstore.spec import KVSpec, Part
from kvstore.tiers.remote import RemoteTier
from kvstore.tiers.remote.valkey import ValkeyEngine

KIB, MIB = 1 << 10, 1 << 20
SIZES = (256 * KIB, MIB, 4 * MIB, 16 * MIB)
THREADS = (1, 4)
BAR = Bar(ratio=0.9)
TIMEOUT_S = 60.0
READER = "the client with libvalkey" if find_spec("libvalkey") else "the client without libvalkey"
_BATCH = 16 * MIB  # short turns, so that what else the machine does falls on both alike
_LEAST_RECORDS = 4
_JOINED_BYTES = 6000  # a longer word of a request is sent from where it lies
_PLACES = 4  # batches in turn, for the client and for the tier each
_NOTE = f"redis-server of its own over TCP on this host, {READER}; time per record of a batch"
_FIND_NOTE = f"redis-server of its own over TCP on this host, {READER}; one pipeline"
_SPEC = KVSpec.dense("bench", layers=1, kv_heads=1, head_dim=64)
Digests = npt.NDArray[np.uint8]


def run(
    *, sizes: Sequence[int] = SIZES, threads: Sequence[int] = THREADS, rounds: int = 48, hedge: bool = False,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:  # fmt: skip
    """Rows for `raw-write`, `write`, `raw-read` and `read` at each of `sizes` (bytes) and numbers of `threads`,
    `raw-find` and `find`.

    `hedge` measures the tier as it reads with hedging. `Unavailable` without `redis-server`, `ConfigError` without
    the client library.
    """
    check_sizes(sizes)
    say = progress or (lambda text: None)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kvstore-valkey-") as folder, _server(Path(folder)) as server:
        for size in sizes:
            for count in threads:
                say(f"records of {size >> 10} KiB, {count} threads")
                with closing(_Contest(server, size, count, hedge)) as contest:
                    rows += contest.measure(rounds)
        with closing(_Contest(server, OBJECT_BYTES, 1, hedge)) as contest:
            rows += contest.find(20 * rounds)
    return rows


class _Contest:
    """The client library and a tier at one server, records of one size."""

    def __init__(self, server: RedisServer, size: int, threads: int, hedge: bool) -> None:
        self._size, self._threads, self._count = size, threads, max(_BATCH // size, _LEAST_RECORDS)
        self._batch = self._count * size
        self._client = _client(server)
        self._client.flushall()
        engine = ValkeyEngine(server.url(), connections=2 * threads + 1)
        self._tier = RemoteTier(engine, capacity=4 * _PLACES * self._batch, io_threads=threads, hedge=hedge)
        self._source, self._target = source_and_target(self._batch)
        self._pid = server.pid
        self._clocks = CpuClock(), CpuClock(server.pid)
        self._serial = 0
        self._digests: dict[tuple[str, int], Digests] = {}
        self._records: dict[int, list[tuple[Record, int]]] = {}

    def measure(self, rounds: int) -> list[Row]:
        """Four rows."""
        taken = {case: Taken() for case in ("raw-write", "write", "raw-read", "read")}
        turns = [("raw-write", self._raw_write), ("write", self._write)]
        for number in range(-_PLACES, rounds):
            self._forget(number)
            for case, step in _order(number, turns):
                figures = step(number % _PLACES)
                if number >= 0:
                    taken[case].add(self._count, *figures)
        turns = [("raw-read", self._raw_read), ("read", self._read)]
        for number in range(-1, rounds):
            for case, step in _order(number, turns):
                figures = step(number % _PLACES)
                if number >= 0:
                    taken[case].add(self._count, *figures)
        mode = f"{self._threads} threads" if self._threads > 1 else "1 thread"
        rows = {case: each.row(case, mode, self._size, _NOTE) for case, each in taken.items()}
        return [row for case in ("write", "read") for row in paired(rows[f"raw-{case}"], rows[case], BAR)]

    def find(self, rounds: int) -> list[Row]:
        """The rows of look-ups."""
        engine, there = self._tier.engine, prepared(self._source)
        for name, whole in there.items():
            self._client.set(f"raw-{name}", whole)
            engine.put(name, [whole], TIMEOUT_S)
        return find_rows(
            there, self._raw_heads, lambda names: engine.heads(names, HEAD_BYTES, TIMEOUT_S), rounds=rounds,
            note=_FIND_NOTE, pid=self._pid,
        )  # fmt: skip

    def _raw_heads(self, names: Sequence[str]) -> Sequence[bytes | None]:
        """One pipeline: Redis says the same of a value that is empty and of none."""
        pipeline = self._client.pipeline(transaction=False)
        for name in names:
            pipeline.getrange(f"raw-{name}", 0, HEAD_BYTES - 1)
        return [head or None for head in pipeline.execute()]

    def _forget(self, number: int) -> None:
        """Free both's room before either writes, in turns: what the server's allocator reuses makes a difference."""
        place = number % _PLACES
        for who in _order(number // 2, ("raw", "tier")):
            if who == "raw":
                for index in range(self._count):
                    self._client.unlink(f"raw-{place}-{index}")
            else:
                for record, location in self._records.pop(place, []):
                    self._tier.delete(location, record.total_bytes)

    def _raw_write(self, place: int) -> tuple[float, float, float]:
        pieces = self._stamp("raw", place)
        return self._timed(lambda index: self._client.set(f"raw-{place}-{index}", pieces[index]))

    def _write(self, place: int) -> tuple[float, float, float]:
        pieces, tier = self._stamp("tier", place), self._tier
        records = [
            _record(digest, self._size, self._serial + i) for i, digest in enumerate(self._digests["tier", place])
        ]
        headers = [record.pack() for record in records]
        locations = [0] * len(pieces)

        def write(index: int) -> None:
            locations[index] = tier.write(headers[index], pieces[index], records[index])

        figures = self._timed(write)
        self._records[place] = list(zip(records, locations, strict=True))
        return figures

    def _raw_read(self, place: int) -> tuple[float, float, float]:
        values: list[Any] = [None] * self._count

        def read(index: int) -> None:
            values[index] = self._client.get(f"raw-{place}-{index}")

        figures = self._timed(read)
        self._check("raw", place, values)
        return figures

    def _read(self, place: int) -> tuple[float, float, float]:
        pieces, records, tier = self._pieces(self._target), self._records[place], self._tier
        self._target[::4096] = bytes(self._batch // 4096)
        start = records[0][0].header_bytes
        figures = self._timed(lambda index: tier.read_into(records[index][1], start, pieces[index]))
        self._check("tier", place, pieces)
        return figures

    def _timed(self, work: Callable[[int], object]) -> tuple[float, float, float]:
        before = [clock.seconds() for clock in self._clocks]
        seconds = in_threads(self._threads, self._count, work)
        used, served = (clock.seconds() - was for clock, was in zip(self._clocks, before, strict=True))
        return seconds, used, served

    def _stamp(self, who: str, place: int) -> list[memoryview]:
        """Make every piece unlike any before it, and remember what it is."""
        pieces = self._pieces(self._source)
        for piece in pieces:
            self._serial += 1
            piece[:8] = self._serial.to_bytes(8, "little")
        self._digests[who, place] = _digests(pieces)
        return pieces

    def _check(self, who: str, place: int, found: Sequence[Any]) -> None:
        if not np.array_equal(_digests(found), self._digests[who, place]):
            raise Corrupt(f"{who} read something else than was written")

    def _pieces(self, memory: memoryview) -> list[memoryview]:
        return [memory[at : at + self._size] for at in range(0, self._batch, self._size)]

    def close(self) -> None:
        """Close both."""
        self._client.close()
        self._tier.close()


def _client(server: RedisServer) -> Any:
    """The library as it is fastest: libvalkey reads for it where that is installed, and Python packs."""
    try:
        import valkey
        from valkey.connection import PythonRespSerializer
    except ImportError as error:
        raise ConfigError(f"the client is missing ({error}): pip install 'tiered-kvstore[valkey]'") from None
    pool = valkey.ConnectionPool(port=server.port, socket_read_size=MIB)
    pool.connection_kwargs["command_packer"] = PythonRespSerializer(_JOINED_BYTES, pool.get_encoder().encode)
    return valkey.Valkey(connection_pool=pool)


@contextmanager
def _server(folder: Path) -> Iterator[RedisServer]:
    server = RedisServer(folder)
    try:
        yield server
    finally:
        server.stop()


def _record(digest: npt.NDArray[np.uint8], size: int, serial: int) -> Record:
    groups = group_table([(0, size)], digest.reshape(1, 16))
    key = _native.xxh3_128(digest.tobytes()) + serial.to_bytes(16, "little")
    return Record(key, bytes(32), _SPEC.digest, namespace_digest("bench"), Part(), 0, 256, size, size, groups)


def _digests(pieces: Sequence[Any]) -> Digests:
    return np.stack([np.frombuffer(_native.xxh3_128(piece), np.uint8) for piece in pieces])


def _order(number: int, turns: Sequence[Any]) -> Sequence[Any]:
    """Everybody once, another one first from round to round."""
    first = number % len(turns)
    return [*turns[first:], *turns[:first]]
