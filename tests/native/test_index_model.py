"""The index against dictionaries, under random operations."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore._native import Index
from kvstore.rows import REF_DTYPE

MAX_CHUNKS = 12
NAMES = st.tuples(st.integers(0, 1), st.integers(0, 20))
PARTS = st.tuples(st.integers(0, 1), st.integers(0, 1))


@dataclass
class Chunk:
    row: int
    leases: int = 0
    parts: dict[tuple[int, int], dict[int, tuple[int, bool]]] = field(default_factory=dict)


def key_of(number: int) -> bytes:
    return number.to_bytes(32, "little")


class AgainstDictionaries(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.index = Index(MAX_CHUNKS, 99)
        self.chunks: dict[tuple[int, int], Chunk] = {}

    @rule(name=NAMES, part=PARTS, tier=st.integers(0, 2), exact=st.booleans())
    def add(self, name: tuple[int, int], part: tuple[int, int], tier: int, exact: bool) -> None:
        scope, number = name
        if name not in self.chunks and len(self.chunks) == MAX_CHUNKS:
            with pytest.raises(OverflowError):
                self.index.insert_chunk(scope, key_of(number), bytes(32), number, 16, 0)
            return
        row = self.index.insert_chunk(scope, key_of(number), bytes(32), number, 16, 0)
        chunk = self.chunks.setdefault(name, Chunk(row))
        assert row == chunk.row
        if part not in chunk.parts and self.part_count() == 2 * MAX_CHUNKS:
            with pytest.raises(OverflowError):
                self.index.add_part(row, *part, 0, 8, 0, 1)
            self.prune(name)
            return
        self.place(chunk, part, tier, exact)

    def place(self, chunk: Chunk, part: tuple[int, int], tier: int, exact: bool) -> None:
        part_row = self.index.add_part(chunk.row, *part, 0, 8, 0, 1)
        placements = chunk.parts.setdefault(part, {})
        if tier in placements:
            with pytest.raises(ValueError, match="in tier"):
                self.index.add_placement(part_row, tier, 0, 0, exact, 0, 0)
        else:
            placements[tier] = (self.index.add_placement(part_row, tier, 0, 0, exact, 0, 0), exact)

    def prune(self, name: tuple[int, int]) -> None:
        gone = not self.chunks[name].parts and not self.chunks[name].leases
        assert self.index.prune(self.chunks[name].row) is gone
        if gone:
            del self.chunks[name]

    def part_count(self) -> int:
        return sum(len(chunk.parts) for chunk in self.chunks.values())

    @precondition(lambda self: self.part_count())
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(n for n, c in self.chunks.items() if c.parts)))
        chunk = self.chunks[name]
        part = data.draw(st.sampled_from(sorted(chunk.parts)))
        tier = data.draw(st.sampled_from(sorted(chunk.parts[part])))
        removed = self.index.remove_placement(chunk.parts[part].pop(tier)[0])
        part_gone = not chunk.parts[part]
        if part_gone:
            del chunk.parts[part]
        chunk_gone = part_gone and not chunk.parts and not chunk.leases
        if chunk_gone:
            del self.chunks[name]
        assert removed == part_gone + 2 * chunk_gone

    @precondition(lambda self: self.chunks)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        chunk = self.chunks[data.draw(st.sampled_from(sorted(self.chunks)))]
        self.index.lease(np.array([chunk.row], np.int64))
        chunk.leases += 1

    @precondition(lambda self: self.chunks)
    @rule(data=st.data())
    def unlease(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.chunks)))
        chunk = self.chunks[name]
        rows = np.array([chunk.row], np.uint32)
        if chunk.leases == 0:
            with pytest.raises(ValueError, match="no lease"):
                self.index.unlease(rows)
            return
        chunk.leases -= 1
        gone = not chunk.leases and not chunk.parts
        assert self.index.unlease(rows) == ([chunk.row] if gone else [])
        if gone:
            del self.chunks[name]

    @invariant()
    def same_rows(self) -> None:
        placements = sum(len(tiers) for chunk in self.chunks.values() for tiers in chunk.parts.values())
        assert self.index.counts() == (len(self.chunks), self.part_count(), placements)
        assert sorted(self.index.chunks(0, 100)[0].tolist()) == sorted(c.row for c in self.chunks.values())
        for chunk in self.chunks.values():
            assert self.index.chunk(chunk.row).leases == chunk.leases
            for (group, rank), tiers in chunk.parts.items():
                part = self.index.find_part(chunk.row, group, rank, 0, 8)
                assert set(self.index.part_placements(part)) == {row for row, _ in tiers.values()}

    @invariant()
    def same_lookups(self) -> None:
        refs = np.zeros(21, REF_DTYPE)
        refs["key"][:, 0] = refs["position"] = np.arange(21)
        refs["tokens"] = 16
        parts = np.array([(g, r, 0, 8) for g in (0, 1) for r in (0, 1)], np.uint16)
        for scope in (0, 1):
            found = [self.chunks.get((scope, number)) for number in range(21)]
            rows, present, _ = self.index.lookup(scope, refs, parts, True, 0)
            assert rows.tolist() == [-1 if chunk is None else chunk.row for chunk in found]
            for j, part in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
                exact = [chunk is not None and any(e for _, e in chunk.parts.get(part, {}).values()) for chunk in found]
                assert present[j].astype(bool).tolist() == exact


TestAgainstDictionaries = AgainstDictionaries.TestCase
TestAgainstDictionaries.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_a_crowded_table_keeps_every_key() -> None:
    """Thousands of insertions and removals in long probe runs: a wrong backward shift loses keys."""
    rng = np.random.default_rng(0)
    index = Index(1400, 3)
    live: dict[bytes, int] = {}
    for step in range(30_000):
        if len(live) < 1400 and (step < 1400 or rng.random() < 0.5):
            key = rng.bytes(32)
            chunk = index.insert_chunk(0, key, bytes(32), 0, 1, 0)
            part = index.add_part(chunk, 0, 0, 0, 1, 0, 1)
            live[key] = index.add_placement(part, 0, 0, 0, True, 0, 0)
        elif live:
            key = list(live)[int(rng.integers(len(live)))]
            assert index.remove_placement(live.pop(key)) == 3
            assert index.find(0, key) == -1
        if step % 1000 == 0:
            assert (index.find_many(0, b"".join(live)) >= 0).all()
    assert index.counts() == (len(live),) * 3
