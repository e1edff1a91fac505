"""A slot: memory of the arena for one part that is not published yet."""

from __future__ import annotations

from dataclasses import dataclass

from kvstore.catalog import Geometry, Scope
from kvstore.keys import ChunkRef
from kvstore.record import Entry, Record
from kvstore.spec import Part


@dataclass(slots=True)
class Slot:
    """Memory of the arena for one part that is not published yet."""

    scope: Scope
    ref: ChunkRef
    part: Part
    first_valid: int
    geometry: Geometry
    location: int
    promised: bool = True  # counted towards the quota
    placed: bool = False  # the memory belongs to a chunk now
    record: Record | None = None  # of a part that was encoded

    def entry(self) -> Entry | Record:
        """What the index is told."""
        return self.raw_entry() if self.record is None else self.record

    def raw_entry(self) -> Entry:
        """What there is to tell of a part that is raw."""
        ref, geometry = self.ref, self.geometry
        return Entry(
            ref.key, ref.parent, self.part, ref.position, ref.tokens,
            geometry.nbytes, geometry.nbytes, geometry.total, self.first_valid,
        )  # fmt: skip
