"""`kvstore bench nvme`: the tier against the best that plain threads reach with O_DIRECT on files beside it.

A batch of 64 MiB or more is written or read at a time, first by one and then by the other, in changing order, and
the working set of up to 1 GiB is gone through in turn, so that neither reads what it has just read. Both write from
and read into the same aligned memory, both flush after each batch of writes, and what is read is compared with what
was written. Room in the tier is made before the clock starts. Nothing is in this machine's page cache; a virtual
disk's host may cache.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.bench.contest import (
    Contender,
    Taken,
    best,
    check_sizes,
    folder_in,
    in_threads,
    paired,
    source_and_target,
)
from kvstore.bench.cpu import CpuClock
from kvstore.bench.measure import Bar, Row
from kvstore.bench.nvme_recover import recover_rows
from kvstore.bench.raw_disk import RawFile
from kvstore.errors import Corrupt, InvalidArgument, StorageError
from kvstore.namespace import namespace_digest
from kvstore.record import Record, group_table
from kvstore.spec import KVSpec, Part
from kvstore.testing.owners import BookOwner
from kvstore.tiers.nvme import NvmeTier

MIB = 1 << 20
SIZES = (256 << 10, MIB, 4 * MIB, 16 * MIB)
THREADS = (1, 2, 4, 8)
BAR = Bar(ratio=0.9)
_WORKING_SET = 1 << 30
_BATCH = 64 * MIB
_SPEC = KVSpec.dense("bench", layers=1, kv_heads=1, head_dim=64)
Digests = npt.NDArray[np.uint8]
_NOTE = "nothing cached on this machine, maybe on the disk's host; time per record of a batch"
Times = dict[Contender, Taken]


def run(
    path: Path,
    *,
    sizes: Sequence[int] = SIZES,
    rounds: int = 16,
    recover_records: int = 100_000,
    progress: Callable[[str], None] | None = None,
) -> list[Row]:
    """Rows for `raw-write`, `write`, `raw-read` and `read` at each of `sizes` (bytes), then recovery.

    `rounds` batches are measured of each. Works in a new folder in `path` and removes it. `recover_records` of 0
    leaves recovery out. `StorageError` if the file system has too little room.
    """
    check_sizes(sizes)
    say = progress or (lambda text: None)
    rows: list[Row] = []
    with folder_in(path, "nvme") as folder:
        working_set = min(_WORKING_SET, _free(folder) // 4 // (128 * MIB) * 128 * MIB)
        if working_set < 256 * MIB:
            raise StorageError(f"{path} has too little room for a benchmark: free 1 GiB, or choose another folder")
        largest = max(map(_batch_bytes, sizes))
        if largest > working_set // 2:
            raise InvalidArgument(f"{largest} bytes in flight are too much for {working_set}: measure smaller records")
        say(f"preparing {2 * working_set >> 20} MiB in {folder}")
        with closing(_Contest(folder, working_set, largest)) as contest:
            for size in sizes:
                say(f"records of {size >> 10} KiB")
                rows += contest.measure(size, rounds)
    if recover_records:
        with folder_in(path, "nvme") as folder:
            rows += recover_rows(folder, recover_records, 5, say)
    return rows


def _batch_bytes(size: int) -> int:
    return max(_BATCH // size, 8) * size


@dataclass
class _Batch:
    """What was written last at one place of the working set."""

    digests: Digests
    locations: list[int] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)


class _Contest:
    """A raw file and a tier of the same working set, and memory for one batch."""

    def __init__(self, folder: Path, working_set: int, nbytes: int) -> None:
        self._working_set = working_set
        self._raw = RawFile(folder / "raw", working_set)
        segment = max(64 * MIB, working_set // 4)
        self._tier = NvmeTier(
            folder / "tier", capacity=working_set * 5 // 4 + 4 * segment, segment_bytes=segment, reserve_bytes=0,
            io_threads=max(THREADS) - 1,  # the caller is one more
        )  # fmt: skip
        self._tier.recover()
        self._tier.describe("bench", _SPEC)
        self._source, self._target = source_and_target(nbytes)
        self._serial = 0
        self._cpu = CpuClock()
        self._written = {"raw": 0, "ours": 0}

    def measure(self, size: int, rounds: int) -> list[Row]:
        """The four rows of one record size."""
        nbytes = _batch_bytes(size)
        places = self._working_set // nbytes
        raw: dict[int, _Batch] = {}
        ours: dict[int, _Batch] = {}
        writes, reads = Times(), Times()
        warm = -(-2 * places // len(THREADS))  # the first passes bring every block into being
        for number in range(-warm, rounds):
            self._write_round(number, places, size, nbytes, raw, ours, writes if number >= 0 else Times())
        for number in range(rounds):
            self._read_round(number, places, size, nbytes, raw, ours, reads)
        for batch in ours.values():
            self._forget(batch)
        return [*_rows("write", size, writes), *_rows("read", size, reads)]

    def _write_round(
        self, number: int, places: int, size: int, nbytes: int, raw: dict[int, _Batch], ours: dict[int, _Batch],
        times: Times,
    ) -> None:  # fmt: skip
        pieces, count = _cut(self._source, size, nbytes), nbytes // size
        for who, threads in _order(number, (("raw", n) for n in THREADS), (("ours", n) for n in THREADS)):
            digests = self._stamp(pieces)
            place = self._written[who] % places
            self._written[who] += 1
            if who == "raw":
                used = self._cpu.seconds()
                seconds = self._raw.write(threads, place * nbytes, pieces)
                used = self._cpu.seconds() - used
                raw[place] = _Batch(digests)
            else:
                if place in ours:
                    self._forget(ours[place])
                ours[place], seconds, used = self._write_ours(threads, pieces, digests)
            times.setdefault((who, threads), Taken()).add(count, seconds, used)

    def _write_ours(self, threads: int, pieces: Sequence[memoryview], digests: Digests) -> tuple[_Batch, float, float]:
        tier, size = self._tier, len(pieces[0])
        records = [_record(digest, size) for digest in digests]
        headers = [record.pack() for record in records]
        if not tier.make_room(len(pieces) * records[0].total_bytes, BookOwner(lambda record: True)):
            raise StorageError("the tier of the benchmark is full")
        locations = [0] * len(pieces)

        def write(index: int) -> None:
            locations[index] = tier.write(headers[index], pieces[index], records[index])

        used = self._cpu.seconds()
        seconds = in_threads(threads, len(pieces), write)
        start = time.perf_counter()
        tier.sync()
        seconds += time.perf_counter() - start
        return _Batch(digests, locations, records), seconds, self._cpu.seconds() - used

    def _read_round(
        self, number: int, places: int, size: int, nbytes: int, raw: dict[int, _Batch], ours: dict[int, _Batch],
        times: Times,
    ) -> None:  # fmt: skip
        pieces, count = _cut(self._target, size, nbytes), nbytes // size
        contenders = _order(number, (("raw", n) for n in THREADS), [("ours", 0)])
        for turn, (who, threads) in enumerate(contenders):
            # A place of its own for each: the disk's host may keep what was just read.
            place = (number * (len(THREADS) + 1) + turn) % places
            self._target[:nbytes:4096] = bytes(nbytes // 4096)
            used = self._cpu.seconds()
            if who == "raw":
                seconds, batch = self._raw.read(threads, place * nbytes, pieces), raw[place]
            else:
                batch = ours[place]
                header = batch.records[0].header_bytes
                requests = [(at, header, piece) for at, piece in zip(batch.locations, pieces, strict=True)]
                start = time.perf_counter()
                outcomes = self._tier.read_many(requests)
                seconds = time.perf_counter() - start
                if any(outcomes):
                    raise next(error for error in outcomes if error is not None)
            used = self._cpu.seconds() - used
            if not np.array_equal(_digests(pieces), batch.digests):
                raise Corrupt(f"{who} read something else than was written")
            times.setdefault((who, threads), Taken()).add(count, seconds, used)

    def _stamp(self, pieces: Sequence[memoryview]) -> Digests:
        """Make every piece unlike any before it."""
        for piece in pieces:
            self._serial += 1
            piece[:8] = self._serial.to_bytes(8, "little")
        return _digests(pieces)

    def _forget(self, batch: _Batch) -> None:
        for location, record in zip(batch.locations, batch.records, strict=True):
            self._tier.delete(location, record.total_bytes)

    def close(self) -> None:
        """Close the files."""
        self._raw.close()
        self._tier.close()


def _rows(case: str, size: int, times: Times) -> list[Row]:
    """The best raw row and the tier's best, both by their medians."""
    raw, ours = (
        times[who, threads].row(name, f"{threads} threads" if threads else "read_many", size, _NOTE)
        for who, name in (("raw", f"raw-{case}"), ("ours", case))
        for threads in [best(times, who)]
    )
    return paired(raw, ours, BAR)


def _record(digest: npt.NDArray[np.uint8], size: int) -> Record:
    groups = group_table([(0, size)], digest.reshape(1, 16))
    key = hashlib.sha256(digest.tobytes()).digest()
    return Record(key, bytes(32), _SPEC.digest, namespace_digest("bench"), Part(), 0, 256, size, size, groups)


def _digests(pieces: Sequence[memoryview]) -> Digests:
    found = [np.frombuffer(_native.xxh3_128(piece), np.uint8) for piece in pieces]
    return np.stack(found)


def _cut(memory: memoryview, size: int, nbytes: int) -> list[memoryview]:
    return [memory[at : at + size] for at in range(0, nbytes, size)]


def _order(number: int, *contestants: Any) -> Sequence[tuple[str, int]]:
    """Everybody once, in an order that turns from round to round."""
    everybody = [each for group in contestants for each in group]
    turn = number % len(everybody)
    return everybody[turn:] + everybody[:turn]


def _free(folder: Path) -> int:
    system = os.statvfs(folder)
    return system.f_bavail * system.f_frsize
