"""Opening a folder: what snapshot and journal tell, held against the segments that are really there.

That is all after a clean stop and after kill -9, because what the journal does not have was never acknowledged. Where
journal or snapshot is damaged, whatever part of a segment they do not account for is searched for records sealed for
that life of that place: a journal that lost its end, its middle or all of it costs time and nothing that was
persisted. Then, and only then, a fresh snapshot and journal are written.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import StorageError
from kvstore.record import BLOCK
from kvstore.tiers.base import RECOVERED_DTYPE
from kvstore.tiers.nvme.io import Transfer
from kvstore.tiers.nvme.journal import Entry, JournalContent, Op, load_journal
from kvstore.tiers.nvme.location import BLOCK_BITS, MAX_SEGMENTS, locate
from kvstore.tiers.nvme.log import Log
from kvstore.tiers.nvme.replay import Replayed, gaps, known_rows, offsets, replay
from kvstore.tiers.nvme.rows import Table, join, pack_row, pick, place_row, row_bytes
from kvstore.tiers.nvme.scan import SegmentScan
from kvstore.tiers.nvme.segment import Segment, State, unpack_header
from kvstore.tiers.nvme.segments import SegmentTable
from kvstore.tiers.nvme.snapshot import Life, Snapshot, load_snapshot
from kvstore.tiers.pool import IoPool


@dataclass
class Opening:
    """One opening of a folder."""

    table: SegmentTable
    log: Log
    transfer: Transfer
    pool: IoPool
    notes: list[str] = field(default_factory=list)
    _segments: dict[int, Segment] = field(default_factory=dict)

    def run(self) -> tuple[Table, bool]:
        """Live rows, and whether the last stop was clean. Fills the table and starts the log."""
        snapshot, problem = load_snapshot(self.log.snapshot_path)
        journals = [j for p in (self.log.journal_path, self.log.next_path) if (j := load_journal(p)) is not None]
        segments = self._segments
        self._sweep()
        self._find_segments()
        if snapshot is None and not journals and not segments:
            self.log.restart(Snapshot())
            return np.zeros(0, RECOVERED_DTYPE), True
        if snapshot is None:
            self.notes.append(problem)
        told = replay(snapshot or Snapshot(), journals)
        self.notes += told.damage
        clean = told.stopped and snapshot is not None
        rows = self._rows_in_place(told.state.rows, told.state.lives, segments)
        if told.damage:
            rows = self._without_copies(join([rows, self._search(told, segments)]))
        rows = self._fit_capacity(rows, segments)
        self._settle_states(rows, told, segments)
        intact = snapshot is not None and not told.damage and len(journals) == 1
        self._start_log(rows, told, journals[0] if intact else None)
        return rows, clean

    def abandon(self) -> None:
        """Close what was opened, after `run` failed."""
        for segment in self._segments.values():
            if segment.number not in self.table.segments and segment.fd >= 0:
                os.close(segment.fd)

    def _sweep(self) -> None:
        """Remove what a process left behind that was killed while it wrote a file."""
        folder = self.table.folder.parent
        for path in (*folder.glob("*.tmp"), *folder.glob("catalog/*.tmp"), *self.table.folder.glob(".probe-*")):
            path.unlink()

    def _find_segments(self) -> None:
        for name in sorted(os.listdir(self.table.folder)):
            stem, dot, suffix = name.partition(".")
            if dot and suffix == "seg" and stem.isdecimal() and int(stem) < MAX_SEGMENTS:
                number = int(stem)
                if number not in self.table.numbers:
                    self.notes.append(f"{name} belongs to another drive; left alone")
                    continue
                segment = self._segments[number] = Segment(number, self.table.limits.segment_bytes)
                self._inspect(segment)

    def _inspect(self, segment: Segment) -> None:
        """Say of a file what it is: ours, empty, or something to leave alone."""
        number, path = segment.number, self.table.path(segment.number)
        try:
            segment.fd = self.table.open_file(number)
            length = os.fstat(segment.fd).st_size
            with mmap.mmap(-1, BLOCK) as memory, memoryview(memory) as block:
                os.preadv(segment.fd, [block], 0)
                blank = not any(block)
                head = unpack_header(block)
        except StorageError as error:
            raise StorageError(f"{path}: {error}") from error
        except OSError as error:
            self._lose(segment, f"{path.name} cannot be read ({error.strerror}); its records are dropped")
            return
        if head is not None and head[0] == number and length >= head[2]:
            segment.generation, segment.size = head[1], head[2]
        elif blank or (head is not None and head[0] == number):
            if not blank:
                self.notes.append(f"{path.name} is cut off at {length} bytes; its records are dropped")
            os.close(segment.fd)
            segment.fd, segment.generation = -1, head[1] if head is not None else 0
        else:
            segment.size = length
            self._lose(segment, f"{path.name} has a foreign header; left alone, its records are dropped")

    def _lose(self, segment: Segment, note: str) -> None:
        self.notes.append(note)
        segment.state = State.LOST
        if segment.fd >= 0:
            os.close(segment.fd)
            segment.fd = -1

    def _rows_in_place(self, rows: Table, lives: dict[int, Life], segments: dict[int, Segment]) -> Table:
        """The rows whose life is the one that their segment's header names, and which end inside it."""
        sizes = np.zeros(MAX_SEGMENTS, np.int64)
        keys = np.full(MAX_SEGMENTS, 1 << 63, np.uint64)  # of no life
        for life in lives.values():
            segment = segments.get(life.segment)
            if segment is not None and segment.fd >= 0 and segment.generation == life.generation:
                sizes[life.segment], keys[life.segment] = segment.size, segment.key
            elif segment is None and not life.freed:
                self.notes.append(f"{life.segment:06d}.seg is missing; its records are dropped")
        numbers = _numbers(rows)
        alive = keys[numbers] == rows["location"] >> np.uint64(BLOCK_BITS)
        kept = pick(rows, alive & (offsets(rows) + row_bytes(rows).astype(np.int64) <= sizes[numbers]))
        if len(rows) > len(kept):
            self.notes.append(f"{len(rows) - len(kept)} records were dropped with their segments")
        return kept

    def _search(self, told: Replayed, segments: dict[int, Segment]) -> Table:
        """Rows of the records that no journal accounts for."""
        jobs: list[tuple[Segment, list[tuple[int, int]]]] = []
        for segment in segments.values():
            if segment.fd < 0 or not segment.generation:
                continue
            life = told.state.lives.get(segment.key) or Life(segment.number, segment.generation, BLOCK)
            if not life.closed and not life.freed:
                jobs.append((segment, gaps(life, told.extents.get(segment.key), segment.size)))
        found: list[bytes] = []

        def search(index: int) -> None:
            segment, ranges = jobs[index]
            scan = SegmentScan(
                lambda at, out: self.transfer.read(segment.fd, at, out), segment.number, segment.generation
            )
            try:
                for record, location in scan.find(ranges):
                    found.append(pack_row(record, location, record.created_ms))
            except (OSError, EOFError) as error:
                self.notes.append(f"{self.table.path(segment.number).name} cannot be searched ({error})")

        if jobs:
            self.pool.run(len(jobs), search)
        if found:
            self.notes.append(f"{len(found)} records were found in their segments and not in the journal")
        return np.frombuffer(b"".join(found), RECOVERED_DTYPE)

    def _without_copies(self, rows: Table) -> Table:
        """One row of each record: a move that was interrupted leaves two."""
        mixed = np.zeros(len(rows), np.uint64)
        for name in ("key", "namespace", "spec"):
            mixed += np.ascontiguousarray(rows[name][:, :8]).view("<u8")[:, 0]
        order = np.argsort(mixed, kind="stable")
        if len(rows) < 2 or not (mixed[order][1:] == mixed[order][:-1]).any():
            return rows
        identity = rows.copy()
        identity["location"] = identity["_pad"] = 0
        last = {identity[index].tobytes(): index for index in range(len(rows))}
        return rows[sorted(last.values())]

    def _fit_capacity(self, rows: Table, segments: dict[int, Segment]) -> Table:
        """Drop the emptiest segments of a folder that is larger than the capacity now asked for."""
        excess = sum(s.size for s in segments.values()) - self.table.limits.total_bytes
        if excess <= 0:
            return rows
        left, _, _ = _tallies(rows)
        for segment in sorted(segments.values(), key=lambda s: left.get(s.number, 0)):
            if excess <= 0 or segment.state is State.LOST:
                continue
            if segment.number in left:
                self.notes.append(f"{segment.number:06d}.seg is over the capacity; its records are dropped")
                rows = pick(rows, ~known_rows(rows, [segment.key]))
            excess -= segment.size
            self.table.remove(segments.pop(segment.number))
        return rows

    def _settle_states(self, rows: Table, told: Replayed, segments: dict[int, Segment]) -> None:
        """Say of each segment whether it is free, complete, or the one to append to."""
        live, counts, ends = _tallies(rows)
        newest = _newest(rows)
        best: Segment | None = None
        for segment in segments.values():
            if segment.state is State.LOST or segment.number not in live:
                continue
            life, extents = told.state.lives.get(segment.key), told.extents.get(segment.key)
            known = int(extents[:, 1].max()) if extents is not None else BLOCK
            segment.head = max(ends[segment.number], known, life.resolved if life is not None else BLOCK)
            segment.live, segment.records = live[segment.number], counts[segment.number]
            segment.state, segment.filled_ms = State.CLOSED, newest[segment.number]
            room = 0 if life is not None and life.closed else segment.size - segment.head
            if room and (best is None or room > best.size - best.head):
                best = segment
        if best is not None:
            best.state = State.OPEN
        for segment in segments.values():
            if segment.state is State.FREE and segment.size != self.table.limits.segment_bytes:
                self.table.remove(segment)
            else:
                self.table.adopt(segment)

    def _start_log(self, rows: Table, told: Replayed, journal: JournalContent | None) -> None:
        """Go on with `journal`, or begin anew if there is none to go on with or rows had to be dropped."""
        lives = {}
        for segment in self.table.segments.values():
            if segment.generation:
                closed, freed = segment.state is State.CLOSED, segment.state is State.FREE
                lives[segment.key] = Life(segment.number, segment.generation, segment.head, closed, freed)
        if journal is None or len(rows) != len(told.state.rows):
            self.log.restart(replace(told.state, rows=rows, lives=lives))
            return
        self.log.resume(journal.first, journal.following)
        for key, life in lives.items():
            before = told.state.lives.get(key)
            row = place_row(locate(key, 0), 0)
            if life.closed and not (before and before.closed):
                self.log.append(Entry(Op.CLOSE, life.generation, row))
            if life.freed and not (before and before.freed):
                self.log.append(Entry(Op.FREE, life.generation, row))


def _numbers(rows: Table) -> npt.NDArray[np.int64]:
    """The segment number of every row."""
    keys = rows["location"] >> np.uint64(BLOCK_BITS)
    return (keys & np.uint64(MAX_SEGMENTS - 1)).astype(np.int64)


def _tallies(rows: Table) -> tuple[dict[int, int], dict[int, int], dict[int, int]]:
    """Live bytes, records and the end of the last one, by the number of the segment; of rows in one life of each."""
    numbers, lengths = _numbers(rows), row_bytes(rows).astype(np.int64)
    first = int(numbers.min()) if len(rows) else 0
    numbers -= first
    counts, live = np.bincount(numbers), np.bincount(numbers, lengths)
    ends = np.zeros(len(counts), np.int64)
    np.maximum.at(ends, numbers, offsets(rows) + lengths)
    there = np.flatnonzero(counts)

    def by_number(values: npt.NDArray[Any]) -> dict[int, int]:
        return {int(n) + first: int(values[n]) for n in there}

    return by_number(live), by_number(counts), by_number(ends)


def _newest(rows: Table) -> dict[int, int]:
    """When the newest record in each segment was made, by the segment's number."""
    numbers = _numbers(rows)
    first = int(numbers.min()) if len(rows) else 0
    newest = np.zeros(int(numbers.max()) - first + 1 if len(rows) else 0, np.int64)
    np.maximum.at(newest, numbers - first, rows["created_ms"])
    return {number + first: int(at) for number, at in enumerate(newest)}
