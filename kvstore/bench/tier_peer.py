"""`kvstore bench tier peer`: another kvstore as a tier against what its bulk client reaches, over TCP on this host.

`get` and `put` are the client's, of chunks; `read-record` is how hosts with a directory read from each other, `read`
and `write` are the remote tier over `kvstore://`, whose records are objects there. `find` asks for 100 records by name,
`lookup-100` the client's look-up of as many. All are one server's, go through so many threads, one connection each, in
turns that change from round to round; everything read is compared with what was written, outside the clock.
"""

from __future__ import annotations

import mmap
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.api import Offer
from kvstore.bench.contest import in_threads
from kvstore.bench.cpu import CpuClock
from kvstore.bench.measure import Bar, Row, cpu_facts, percentile
from kvstore.bench.processes import Server, server
from kvstore.channels.peer import PeerLines, split_address
from kvstore.errors import Corrupt
from kvstore.keys import ChunkRef
from kvstore.namespace import namespace_digest
from kvstore.peer_wire import NO_ROW, unpack_row
from kvstore.record import Entry, Record, group_table
from kvstore.spec import KVGroup, KVSpec
from kvstore.tiers.base import Name
from kvstore.tiers.remote import RemoteTier
from kvstore.tiers.remote.names import pack
from kvstore.tiers.remote.peer import PeerEngine

KIB, MIB = 1 << 10, 1 << 20
SIZES = (256 * KIB, MIB, 4 * MIB, 16 * MIB)
THREADS = (1, 4)
BAR = Bar(ratio=0.9)
WITHIN_S = 60.0
_TOKEN = "bench-of-peers"
_BATCH = 32 * MIB
_LEAST_RECORDS = 4
_ASKED, _ASKS = 100, 8
_UNIT = 4096  # bytes of a token
_BASELINES = {"read-record": "get", "read": "get", "write": "put", "find": "lookup-100"}
_NOTE = (
    "a server of its own over TCP on this host, all in its DRAM; time per record of a batch; get checks, read does not"
)
_SPEC = KVSpec("bench-peer", "", "uint8", (KVGroup(tuple(range(16)), latent_dim=_UNIT // 16),), chunk_tokens=4096)
_PART = _SPEC.part()
Times = dict[str, list[tuple[float, float, float]]]


def run(
    *, sizes: Sequence[int] = SIZES, threads: Sequence[int] = THREADS, rounds: int = 24,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:  # fmt: skip
    """Rows for every case at each of `sizes` (bytes, multiples of 4 KiB) and numbers of `threads`."""
    say = progress or (lambda text: None)
    rows: list[Row] = []
    for size in sizes:
        for count in threads:
            say(f"records of {size >> 10} KiB, {count} threads")
            extent = 4 * max(_BATCH, _LEAST_RECORDS * size)  # one each for chunks and for objects, and some more
            flags = ("--dram-extent", str(extent), "--peers-token", _TOKEN)
            with server(3 * extent, *flags) as running, closing(_Contest(running, size, count)) as contest:
                rows += contest.measure(rounds)
    return rows


class _Contest:
    """All ways to one server, records of one size."""

    def __init__(self, running: Server, size: int, threads: int) -> None:
        self._size, self._threads, self._count = size, threads, max(_BATCH // size, _LEAST_RECORDS)
        with ExitStack() as stack:
            self._client = stack.enter_context(closing(running.connect("bulk")))
            address = str(running.ready["bulk"])
            host, port = split_address(address)
            self._lines = PeerLines(host, port, token=_TOKEN, context=None, name="the server")
            stack.callback(self._lines.close)
            engine = PeerEngine(f"kvstore://{address}", token=_TOKEN)
            self._tier = stack.enter_context(closing(RemoteTier(engine, capacity=1 << 40, io_threads=threads)))
            self._stack = stack.pop_all()
        while self._client.stats()["tiers"]["dram"][
            "to_populate_bytes"
        ]:  # or one namespace's extent is given to another
            time.sleep(0.01)
        nbytes = self._count * size
        self._source, self._target = (memoryview(mmap.mmap(-1, nbytes)) for _ in range(2))
        words = np.frombuffer(self._source, np.uint64)
        words[:] = np.random.default_rng(size).integers(0, 1 << 63, len(words), dtype=np.uint64)
        self._clocks = CpuClock(), CpuClock(running.pid)
        self._serial = 0
        self._times: Times = {case: [] for case in ("put", "write", "get", "read-record", "read", "lookup-100", "find")}

    def measure(self, rounds: int) -> list[Row]:
        """A row for every case; the first round is not counted."""
        for number in range(-1, rounds):
            refs, records, locations = self._write_round(number)
            self._read_round(number, refs, records, locations)
            names = [_name(ref) for ref in refs]
            asked = -(-_ASKED // len(refs))
            turns = [
                ("lookup-100", self._look_up((refs * asked)[:_ASKED])),
                ("find", self._asking((names * asked)[:_ASKED])),
            ]
            for case, step in _order(number, turns):
                self._timed(number, case, _ASKS, step)
            self._client.delete(_SPEC, [ref.key for ref in refs])
            for record, location in zip(records, locations, strict=True):
                self._tier.delete(location, record.total_bytes)
        return [self._row(case) for case in self._times]

    def _read_round(
        self, number: int, refs: Sequence[ChunkRef], records: Sequence[Record], locations: Sequence[int]
    ) -> None:
        """Read the batch by every way, in turns, and compare it."""
        found = self._found(refs)
        turns = [
            ("get", lambda i: self._get(refs[i], i)),
            ("read-record", lambda i: self._read_record(refs[i], found[i], i)),
            ("read", lambda i: self._tier.read_into(locations[i], records[i].header_bytes, self._out(i))),
        ]
        for case, step in _order(number, turns):
            self._target[::4096] = bytes(len(self._target) // 4096)
            self._timed(number, case, self._count, step)
            if self._digests(self._target) != self._digests(self._source):
                raise Corrupt(f"{case} gave something else than was written")

    def _write_round(self, number: int) -> tuple[list[ChunkRef], list[Record], list[int]]:
        """Put and write the batch anew, in turns."""
        tokens = self._size // _UNIT
        pieces = [self._source[i * self._size : (i + 1) * self._size] for i in range(self._count)]
        keys = []
        for piece in pieces:
            self._serial += 1
            piece[:8] = self._serial.to_bytes(8, "little")
            keys.append(_native.xxh3_128(piece[:4096]) + self._serial.to_bytes(16, "little"))
        refs = [ChunkRef(key, bytes(32), 0, tokens) for key in keys]
        records = [_record(ref, piece) for ref, piece in zip(refs, pieces, strict=True)]
        headers, locations = [record.pack() for record in records], [0] * self._count

        def write(index: int) -> None:
            locations[index] = self._tier.write(headers[index], pieces[index], records[index])

        def put(index: int) -> None:
            self._client.backend.put(_SPEC, Offer(refs[index], _PART, pieces[index], 0))

        for case, step in _order(number, [("put", put), ("write", write)]):
            self._timed(number, case, self._count, step)
        return refs, records, locations

    def _get(self, ref: ChunkRef, index: int) -> None:
        self._client.get(_SPEC, ref, out=np.frombuffer(self._out(index), np.uint8).reshape(_shape(ref)))

    def _read_record(self, ref: ChunkRef, entry: Entry, index: int) -> None:
        header = entry.total_bytes - self._size
        total, form = entry.total_bytes, entry.form
        self._lines.read_record(_name(ref), header, self._out(index), WITHIN_S, form=form, total=total)

    def _found(self, refs: Sequence[ChunkRef]) -> list[Entry]:
        rows = self._lines.find([_name(ref) for ref in refs], WITHIN_S)
        entries = [unpack_row(row, ref.key, _PART) for row, ref in zip(rows, refs, strict=True)]
        found = [entry for entry in entries if entry is not None]
        if len(found) < len(refs):
            raise Corrupt("the server does not have what was put a moment ago")
        return found

    def _asking(self, names: Sequence[bytes]) -> Callable[[int], None]:
        def find(index: int) -> None:
            if NO_ROW in self._lines.find(names, WITHIN_S):
                raise Corrupt("the server does not have what was put a moment ago")

        return find

    def _look_up(self, refs: Sequence[ChunkRef]) -> Callable[[int], None]:
        """Alternatives for one position: the index is asked for as many as `find` asks for."""

        def look_up(index: int) -> None:
            if not self._client.lookup(_SPEC, refs).tokens:
                raise Corrupt("the server does not have what was put a moment ago")

        return look_up

    def _timed(self, number: int, case: str, count: int, work: Callable[[int], object]) -> None:
        before = [clock.seconds() for clock in self._clocks]
        seconds = in_threads(self._threads, count, work)
        used, served = (clock.seconds() - was for clock, was in zip(self._clocks, before, strict=True))
        if number >= 0:
            self._times[case].append((seconds / count, used / count, served / count))

    def _row(self, case: str) -> Row:
        taken, moves = self._times[case], case not in ("find", "lookup-100")
        p50, size = statistics.median(each[0] for each in taken), self._size if moves else 0
        used, served = (sum(each[i] for each in taken) for i in (1, 2))
        row: Row = {
            "case": case, "mode": f"{self._threads} threads" if self._threads > 1 else "1 thread", "bytes": size,
            "p50_s": p50, "p99_s": percentile([each[0] for each in taken], 0.99), "gbps": size / p50 / 1e9 or None,
            "baseline": None, "ratio": None, **cpu_facts(used, served, len(taken), size), "rounds": len(taken),
            "note": _NOTE, "bar": None, "met": None,
        }  # fmt: skip
        if case in _BASELINES:
            row["baseline"] = _BASELINES[case]
            row["ratio"] = statistics.median(each[0] for each in self._times[row["baseline"]]) / p50
            if moves:
                BAR.judge(row)
        return row

    def _out(self, index: int) -> memoryview:
        return self._target[index * self._size : (index + 1) * self._size]

    def _digests(self, memory: memoryview) -> list[bytes]:
        return [_native.xxh3_128(memory[at : at + self._size]) for at in range(0, len(memory), self._size)]

    def close(self) -> None:
        """Close every way."""
        self._stack.close()


def _shape(ref: ChunkRef) -> tuple[int, ...]:
    return _SPEC.part_shape(_PART, ref.tokens)


def _name(ref: ChunkRef) -> bytes:
    return pack(Name(namespace_digest("default"), _SPEC.digest, ref.key, _PART))


def _record(ref: ChunkRef, piece: memoryview) -> Record:
    """The record of a chunk as the remote tier is given it, in another namespace than the client's."""
    ranges = _SPEC.layer_ranges(_PART, ref.tokens)
    columns: npt.NDArray[np.uint64] = np.array(ranges, np.uint64)
    groups = group_table(ranges, _native.xxh3_128_many(piece, columns[:, 0].copy(), columns[:, 1].copy()))
    namespace = namespace_digest("bench")
    size = len(piece)
    return Record(ref.key, ref.parent, _SPEC.digest, namespace, _PART, 0, ref.tokens, size, size, groups)


def _order(number: int, turns: Sequence[Any]) -> Sequence[Any]:
    """Everybody once, another one first from round to round."""
    first = number % len(turns)
    return [*turns[first:], *turns[:first]]
