"""What segments cost: a trace of real requests over an NVMe tier that is full, beside an LRU without segments.

Every request finds the longest prefix that is there and puts the blocks that were missing; the first half of the
requests fills the tier, the second is measured. Records are written and moved for real, with a payload much smaller
than KV would be, in proportion to their tokens. `hit_ratio` is that of tokens; `write_amplification` is what went to
the drive, with records that were moved, journals and snapshots, over what was admitted. The owner does what a store
does: it keeps what was used since its segment was filled. `longest_write_s` is the longest that any write took,
with room made where it was needed.

    python -m kvstore.bench.nvme_trace FOLDER TRACE SHARE
"""

from __future__ import annotations

import json
import sys
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.bench.contest import folder_in
from kvstore.bench.measure import Row, percentile, report
from kvstore.bench.workloads import Blocks, chain_of, trace
from kvstore.gate import Gate
from kvstore.keys import ChunkRef
from kvstore.namespace import namespace_digest
from kvstore.record import BLOCK, Record, group_table, padded
from kvstore.spec import Part
from kvstore.testing.records import aligned_memory, make_spec
from kvstore.tiers.base import Tier, TierFull, Verdict
from kvstore.tiers.nvme import NvmeTier

MOST_WRITTEN, MOST_POINTS = 1.3, 0.01
TOKEN_BYTES = 56  # a block of 512 tokens and its header: 32 KiB
SEGMENTS = 256  # what the defaults make of a tier: 64 GiB in pieces of 256 MiB


def run(path: Path, trace_path: Path, *, share: float = 0.05, requests: int = 12_031, ahead: bool = True) -> Row:
    """A row for a tier of `share` of the trace's distinct bytes, in a folder of its own in `path`.

    With `ahead` the tier frees segments before they are needed (`Tier.tend`).
    """
    workload = trace(trace_path, requests)
    distinct = {ref.key: _record_bytes(ref.tokens) for blocks in workload.requests for ref in chain_of(blocks)}
    capacity = int(share * sum(distinct.values()))
    with folder_in(path, "trace") as folder:
        lru = _lru(workload.requests, capacity)
        segment = max(64 << 10, capacity // SEGMENTS // BLOCK * BLOCK)
        with closing(NvmeTier(folder / "nvme", capacity=capacity, segment_bytes=segment, reserve_bytes=0)) as tier:
            tier.recover()
            tier.describe("bench", make_spec())
            cache = _Cache(tier)
            if ahead:
                tier.tend(cache)
            row = _measure(cache, workload.requests)
    row |= {"case": f"trace-{workload.name}", "mode": f"{share:.0%} {'ahead' if ahead else 'on demand'}"}
    row |= {"bytes": capacity, "lru_hit_ratio": lru, "segments": SEGMENTS}
    row["bar"] = f"written ≤ {MOST_WRITTEN:g} × admitted, hits ≥ LRU − {MOST_POINTS:.0%}"
    row["met"] = row["write_amplification"] <= MOST_WRITTEN and row["hit_ratio"] >= lru - MOST_POINTS
    return row


def _measure(cache: _Cache, requests: Sequence[Blocks]) -> Row:
    half, before = len(requests) // 2, (0, 0)
    for number, blocks in enumerate(requests):
        if number == half:
            cache.tally, before = _Tally(), cache.wear()
        cache.request(chain_of(blocks))
        if cache.tier.wants_checkpoint:
            cache.tier.checkpoint()
    stored, written = (now - then for now, then in zip(cache.wear(), before, strict=True))
    times = cache.tally.writes
    return {
        "p50_s": percentile(times, 0.5), "p99_s": percentile(times, 0.99), "longest_write_s": max(times),
        "gbps": None, "baseline": None, "ratio": None, "requests": len(requests) - half,
        "hit_ratio": cache.tally.hits / cache.tally.tokens, "stored_bytes": stored, "written_bytes": written,
        "write_amplification": written / stored, "note": "second half of the trace; times of a write",
    }  # fmt: skip


@dataclass
class _Tally:
    tokens: int = 0
    hits: int = 0
    writes: list[float] = field(default_factory=list)


@dataclass(slots=True)
class _Held:
    """A record in the tier and when it was used last (Unix milliseconds)."""

    location: int
    nbytes: int
    used_ms: int


class _Cache:
    """An index over a tier, and the tier's owner."""

    def __init__(self, tier: NvmeTier) -> None:
        self.tier, self.tally = tier, _Tally()
        self._held: OrderedDict[bytes, _Held] = OrderedDict()  # the least recently used first
        self._gate = Gate()
        self._memory = aligned_memory(1 << 20)
        self._spec, self._namespace = make_spec().digest, namespace_digest("bench")

    def wear(self) -> tuple[int, int]:
        """Bytes admitted and bytes written."""
        stats = self.tier.stats()
        return int(stats["stored_bytes"]), int(stats["written_bytes"])

    def request(self, refs: Sequence[ChunkRef]) -> None:
        """Use the longest prefix that is there and put the rest."""
        found = next((i for i, ref in enumerate(refs) if ref.key not in self._held), len(refs))
        self.tally.tokens += sum(ref.tokens for ref in refs)
        self.tally.hits += sum(ref.tokens for ref in refs[:found])
        for ref in reversed(refs[:found]):
            self._use(ref.key)
        for ref in refs[found:]:
            if ref.key in self._held:
                self._use(ref.key)
            else:
                self._put(ref)

    def _use(self, key: bytes) -> None:
        held = self._held.get(key)
        if held is not None:
            held.used_ms = _now_ms()
            self._held.move_to_end(key)

    def _put(self, ref: ChunkRef) -> None:
        nbytes = _record_bytes(ref.tokens) - BLOCK
        payload = self._memory[:nbytes]
        payload[:32] = ref.key
        groups = group_table([(0, nbytes)], _digest(payload))
        record = Record(
            ref.key, ref.parent, self._spec, self._namespace, Part(), ref.position, ref.tokens, nbytes, nbytes, groups
        )
        header, start = record.pack(), time.perf_counter()
        while not self._write(header, payload, record):
            if not self.tier.make_room(record.total_bytes, self):
                raise TierFull("the tier of the benchmark has no room")
        self.tally.writes.append(time.perf_counter() - start)

    def _write(self, header: bytes, payload: memoryview, record: Record) -> bool:
        with self._gate.passing():
            try:
                location = self.tier.write(header, payload, record)
            except TierFull:
                return False
            self._held[record.key] = _Held(location, record.total_bytes, _now_ms())
            return True

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Sequence[Verdict]:
        """Keep what was used since, the most recently used first."""
        del tier
        with self._gate.alone():
            found = [self._held.get(record.key) for record, _ in records]
            ours = [(i, held) for i, held in enumerate(found) if held is not None and held.location == records[i][1]]
            verdicts = [Verdict.DEAD] * len(records)
            for i, held in sorted(ours, key=lambda each: (-each[1].used_ms, records[each[0]][0].position)):
                keep = held.used_ms > since_ms and held.nbytes <= most
                most -= held.nbytes * keep
                verdicts[i] = Verdict.KEEP if keep else Verdict.DROP
                if not keep:
                    del self._held[records[i][0].key]
            return verdicts

    def moved(self, tier: Tier, record: Record, old: int, new: int) -> bool:
        """Follow a record."""
        del tier
        with self._gate.alone():
            held = self._held.get(record.key)
            if held is None or held.location != old:
                return False
            held.location = new
            return True


def _lru(requests: Sequence[Blocks], capacity: int) -> float:
    """Token hit ratio of the second half, of an LRU of whole records."""
    held: OrderedDict[bytes, int] = OrderedDict()
    used, tally = 0, _Tally()
    for number, blocks in enumerate(requests):
        refs = chain_of(blocks)
        found = next((i for i, ref in enumerate(refs) if ref.key not in held), len(refs))
        if number >= len(requests) // 2:
            tally.tokens += sum(ref.tokens for ref in refs)
            tally.hits += sum(ref.tokens for ref in refs[:found])
        for ref in reversed(refs[:found]):
            held.move_to_end(ref.key)
        for ref in refs[found:]:
            used += 0 if ref.key in held else _record_bytes(ref.tokens)
            held[ref.key] = _record_bytes(ref.tokens)
            held.move_to_end(ref.key)
        while used > capacity:
            used -= held.popitem(last=False)[1]
    return tally.hits / tally.tokens


def _record_bytes(tokens: int) -> int:
    return BLOCK + padded(tokens * TOKEN_BYTES)


def _digest(payload: memoryview) -> npt.NDArray[np.uint8]:
    return np.frombuffer(_native.xxh3_128(payload), np.uint8).reshape(1, 16)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    print(json.dumps(report("nvme-trace", [run(Path(sys.argv[1]), Path(sys.argv[2]), share=float(sys.argv[3]))])))
