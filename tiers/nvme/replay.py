"""Snapshot plus journal gives the live rows and what is known of every segment: for recovery and for compaction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kvstore.record import BLOCK
from kvstore.tiers.nvme.journal import ENTRY_DTYPE, JournalContent, Op
from kvstore.tiers.nvme.location import BLOCK_BITS, segment_of
from kvstore.tiers.nvme.rows import Table, column, join, pick, row_bytes
from kvstore.tiers.nvme.snapshot import Life, Snapshot

Extents = npt.NDArray[np.int64]
_BLOCK_MASK = np.uint64((1 << BLOCK_BITS) - 1)


@dataclass(frozen=True)
class Replayed:
    """`state` is the snapshot brought up to date; `extents` the `[n, 2]` starts and ends known above `resolved`."""

    state: Snapshot
    extents: dict[int, Extents]
    stopped: bool
    damage: Sequence[str]


def replay(snapshot: Snapshot, journals: Sequence[JournalContent]) -> Replayed:
    """Apply the entries that `snapshot` does not contain yet; the last word on a location counts.

    After damage no life that was open in the snapshot counts as closed, so that what the lost entries told is
    looked for in the segments.
    """
    entries, following, damage = _entries_after(snapshot.sequence, journals)
    op = entries["op"]
    told = column(entries, "row")
    rows = join([snapshot.rows, pick(told, op == Op.PUT)])
    rows = pick(rows, ~np.isin(rows["location"], told["location"][op == Op.DELETE]))
    lives = _lives(snapshot, entries, told["location"], trust_closes=not damage)
    freed = np.array([key for key, life in lives.items() if life.freed], np.uint64)
    rows = pick(rows, ~np.isin(rows["location"] >> np.uint64(BLOCK_BITS), freed))
    extents = _extents(pick(told, (op == Op.PUT) | (op == Op.VOID)), lives)
    resolved = {key: _resolve(life, extents.get(key)) for key, life in lives.items()}
    stopped = bool(len(op)) and int(op[-1]) == Op.STOP and not damage
    state = Snapshot(following - 1, rows, resolved)
    return Replayed(state, extents, stopped, damage)


def known_rows(rows: Table, keys: Sequence[int]) -> npt.NDArray[np.bool_]:
    """Which rows lie in one of these lives."""
    lives = rows["location"] >> np.uint64(BLOCK_BITS)
    return np.isin(lives, np.array(keys, np.uint64))


def offsets(rows: Table) -> npt.NDArray[np.int64]:
    """Where in its segment each row's record begins."""
    found: npt.NDArray[np.int64] = (rows["location"] & _BLOCK_MASK).astype(np.int64) * BLOCK
    return found


def gaps(life: Life, extents: Extents | None, size: int) -> list[tuple[int, int]]:
    """The (start, end) between what is known of a life, up to the end of its segment."""
    found, at = [], life.resolved
    for start, end in extents if extents is not None else ():
        if start > at:
            found.append((at, int(start)))
        at = max(at, int(end))
    return [*found, (at, size)] if at < size else found


def _entries_after(sequence: int, journals: Sequence[JournalContent]) -> tuple[Table, int, list[str]]:
    following, damage, kept = sequence + 1, [j.damage for j in journals if j.damage], [np.zeros(0, ENTRY_DTYPE)]
    for journal in sorted(journals, key=lambda j: j.first):
        if journal.first > following:
            damage.append(f"journal entries {following} to {journal.first - 1} are missing")
        kept.append(pick(journal.entries, journal.entries["sequence"] > sequence))
        following = max(following, journal.end)
    if not journals:
        damage.append("the journal is missing")
    return join(kept), following, damage


def _lives(
    snapshot: Snapshot, entries: Table, locations: npt.NDArray[np.uint64], *, trust_closes: bool
) -> dict[int, Life]:
    lives, ops = dict(snapshot.lives), entries["op"]
    placed = ops != Op.STOP
    keys, ops, generations = locations[placed] >> np.uint64(BLOCK_BITS), ops[placed], entries["generation"][placed]
    for key, index in zip(*np.unique(keys, return_index=True), strict=True):
        number, generation = segment_of(int(key)), int(generations[index])
        lives.setdefault(int(key), Life(number, generation, BLOCK))
    for op, field in ((Op.CLOSE, "closed"), (Op.FREE, "freed")):
        if op is Op.CLOSE and not trust_closes:
            continue
        for key in np.unique(keys[ops == op]):
            lives[int(key)] = replace(lives[int(key)], **{field: True})
    return lives


def _extents(rows: Table, lives: dict[int, Life]) -> dict[int, Extents]:
    """What the journal's rows cover, by life, in order; freed lives left out."""
    keys = rows["location"] >> np.uint64(BLOCK_BITS)
    order = np.argsort(rows["location"], kind="stable")
    starts = offsets(rows)
    ends = starts + row_bytes(rows).astype(np.int64)
    both = np.stack([starts, ends], axis=1)[order]
    found, first = np.unique(keys[order], return_index=True)
    pieces = np.split(both, first[1:]) if len(found) else []
    return {int(key): piece for key, piece in zip(found, pieces, strict=True) if not lives[int(key)].freed}


def _resolve(life: Life, extents: Extents | None) -> Life:
    """Move `resolved` up to the first gap."""
    if extents is None:
        return life
    known = np.concatenate([[life.resolved], np.maximum.accumulate(extents[:, 1])])
    open_at = np.flatnonzero(extents[:, 0] > np.maximum(known[:-1], life.resolved))
    top = int(known[open_at[0]]) if len(open_at) else int(known[-1])
    return replace(life, resolved=max(life.resolved, top))
