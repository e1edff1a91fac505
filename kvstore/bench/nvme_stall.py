"""The longest that a write waits while segments are cleaned, and how reads fare beside writes.

One thread writes records of 1 MiB at a steady rate into a tier that is full, a quarter of which is moved when its
segment is cleaned; another may read at the same time.

    python -m kvstore.bench.nvme_stall FOLDER
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from kvstore.bench.contest import folder_in
from kvstore.bench.measure import Row, percentile, report
from kvstore.gate import Gate
from kvstore.record import Record
from kvstore.testing.owners import BookOwner
from kvstore.testing.records import Sample, aligned_memory, make_sample
from kvstore.tiers.base import Tier, TierFull, Verdict
from kvstore.tiers.nvme import NvmeTier

MIB = 1 << 20
RECORD = MIB - 4096
KEPT = 0.25


class _Owner(BookOwner):
    """Looks when nobody is between a write and its entry in the book."""

    def __init__(self, gate: Gate) -> None:
        dice = random.Random(1)
        super().__init__(lambda record: dice.random() < KEPT)
        self._gate = gate

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Sequence[Verdict]:
        with self._gate.alone():
            return super().judge(tier, records, since_ms, most)


def run(path: Path, *, seconds: float = 8.0, bytes_per_s: float = 400e6, segment: int = 64 * MIB) -> list[Row]:
    """Rows `write-while-cleaning` with segments freed ahead and on demand, and `read-beside-writes`."""
    rows = []
    for ahead in (True, False):
        with (
            folder_in(path, "stall") as folder,
            closing(NvmeTier(folder / "t", capacity=1280 * MIB, segment_bytes=segment, reserve_bytes=0)) as tier,
        ):
            tier.recover()
            rows += _Load(tier, ahead).measure(seconds, bytes_per_s)
    return rows


class _Load:
    """A full tier and what is done to it."""

    def __init__(self, tier: NvmeTier, ahead: bool) -> None:
        self._tier, self._ahead = tier, ahead
        self._gate = Gate()
        self._owner = _Owner(self._gate)
        self._samples = [make_sample(number, RECORD) for number in range(64)]
        self._written = 0
        while self._write(room=False):  # full
            pass
        if ahead:
            tier.tend(self._owner)

    def _write(self, *, room: bool = True) -> bool:
        sample = _renamed(self._samples[self._written % 64], self._written)
        while True:
            with self._gate.passing():
                try:
                    self._owner.enter(self._tier.write(sample.record.pack(), sample.payload, sample.record), sample)
                    self._written += 1
                    return True
                except TierFull:
                    if not room:
                        return False
            if not self._tier.make_room(sample.record.total_bytes, self._owner):
                raise TierFull("the tier of the benchmark has no room")

    def measure(self, seconds: float, bytes_per_s: float) -> list[Row]:
        """Write alone, then with a reader beside, then read alone."""
        mode = "ahead" if self._ahead else "on demand"
        rows = [_row("write-while-cleaning", mode, self._writes(seconds, bytes_per_s))]
        stop, reads = threading.Event(), list[float]()
        thread = threading.Thread(target=self._read_until, args=(stop, reads))
        thread.start()
        beside = self._writes(seconds / 2, bytes_per_s)
        stop.set()
        thread.join()
        alone, stop = list[float](), threading.Event()
        threading.Timer(seconds / 4, stop.set).start()
        self._read_until(stop, alone)
        return [*rows, _row("write-beside-reads", mode, beside), _row("read-beside-writes", mode, reads, alone)]

    def _writes(self, seconds: float, bytes_per_s: float) -> list[float]:
        times, start, pace = list[float](), time.perf_counter(), MIB / bytes_per_s
        while (begun := time.perf_counter()) < start + seconds:
            self._write()
            now = time.perf_counter()
            times.append(now - begun)
            time.sleep(max(0.0, start + len(times) * pace - now))
        return times

    def _read_until(self, stop: threading.Event, times: list[float]) -> None:
        out, number = aligned_memory(RECORD), 0
        while not stop.is_set():
            book = list(self._owner.book)[-600:]
            number += 7919
            start = time.perf_counter()
            self._tier.read_many([(book[number % len(book)], 4096, out)])
            times.append(time.perf_counter() - start)


def _renamed(sample: Sample, number: int) -> Sample:
    """The same payload under another key."""
    record = sample.record
    key = number.to_bytes(8, "little") + record.key[8:]
    renamed = Record(
        key, record.parent, record.spec, record.namespace, record.part, record.position, record.tokens,
        record.logical, record.stored, record.groups, created_ms=record.created_ms,
    )  # fmt: skip
    return Sample(renamed, sample.header, sample.payload)


def _row(case: str, mode: str, times: Sequence[float], baseline: Sequence[float] = ()) -> Row:
    p50 = percentile(times, 0.5)
    return {
        "case": case, "mode": mode, "bytes": RECORD, "p50_s": p50, "p99_s": percentile(times, 0.99),
        "longest_s": max(times), "gbps": RECORD / p50 / 1e9, "baseline": "read alone" if baseline else None,
        "ratio": percentile(baseline, 0.5) / p50 if baseline else None,
        "p99_ratio": percentile(baseline, 0.99) / percentile(times, 0.99) if baseline else None,
        "rounds": len(times), "note": "one thread each", "bar": None, "met": None,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(report("nvme-stall", run(Path(sys.argv[1])))))
