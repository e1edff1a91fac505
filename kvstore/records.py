"""Records as they lie in this host's own tiers, for other hosts: told of by name, read verbatim, in any form.

What a shared tier has is not told: whoever asks can ask there, and two hosts must not send each other in circles.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NamedTuple, Self

import numpy as np

from kvstore import _native
from kvstore.api import Fidelity
from kvstore.catalog import Scope
from kvstore.core import DRAM, Copy, Core
from kvstore.errors import Corrupt, NotFound, Shed
from kvstore.intake import part_scope
from kvstore.keys import ChunkRef
from kvstore.loader import Loader
from kvstore.record import Entry
from kvstore.tiers.base import Name
from kvstore.tiers.remote.names import unpack as unpack_name
from kvstore.usage import now_ms

AT_ONCE = 64  # names looked up under the lock
RECENT_MS = _native.PeerReads.RECENT_MS  # a use told of so lately is not told again by the reads that follow it


class HeldRecord:
    """Bytes of a record that stay where they are until it is closed."""

    def __init__(self, data: memoryview, close: Callable[[], None]) -> None:
        self.data = data
        self._close = close

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.data = memoryview(b"")
        self._close()


class _Found(NamedTuple):
    scope: Scope
    chunk: int
    placement: int
    name: Name


class Records:
    """What other hosts may ask of this one's store: every namespace's records."""

    def __init__(self, core: Core, loader: Loader) -> None:
        self._core, self._loader = core, loader
        self._own = bytes(number for number, tier in enumerate(core.tiers) if not tier.shared)
        self._reads: _native.PeerReads | None = None
        self._taught: set[int] = set()

    def native_reads(self, record_method: int, object_method: int) -> _native.PeerReads:
        """What answers frames of these methods without Python: records of a spec once one was read here.

        What was given before is told of no more specs.
        """
        self._taught.clear()
        self._reads = _native.PeerReads(record_method, object_method, self._core.room.wake)
        return self._reads

    def find(self, names: Sequence[bytes], *, used: bool = False) -> Sequence[Entry | None]:
        """What is here of packed names. `used` tells that they were used just now, those of a prefix root first.

        No tier is asked: an entry is what the index knows, its artefact left out.
        """
        core = self._core
        found: list[Entry | None] = [None] * len(names)
        for start in reversed(range(0, len(names), AT_ONCE)):  # the root is to be the last that was used
            chunks: dict[Scope, dict[int, None]] = {}
            with core.lock:
                for index, packed in enumerate(names[start : start + AT_ONCE], start):
                    place = self._find(unpack_name(packed))
                    if place is not None:
                        found[index] = self._entry(place)
                        chunks.setdefault(place.scope, {})[place.chunk] = None
                for scope, rows in chunks.items() if used else ():
                    core.usage.used_unleased(np.fromiter(rows, np.int64), scope.namespace)
        return found

    def read(self, packed: bytes, offset: int, nbytes: int, form: int, total: int) -> HeldRecord:
        """Bytes of the record of a packed name, in DRAM; what a slower tier has is loaded first, or read past DRAM.

        `NotFound` where it is not here in this form and length, `Corrupt` for bytes beyond its end.
        """
        core, name = self._core, unpack_name(packed)
        if offset + nbytes > total:
            raise Corrupt(f"a record of {total} bytes has none at {offset + nbytes}")
        with core.lock:
            place = self._find(name)
            if place is None:
                raise NotFound(f"no record of key {name.key.hex()} is here")
            scope, chunk = place.scope, core.index.chunk(place.chunk)
            copy = core.hold(place.placement, scope, name.part)
            if chunk.last_use < now_ms() - RECENT_MS:
                core.usage.used_unleased(np.array([place.chunk], np.int64), scope.namespace)
            core.counters["peer_reads"] += 1
            core.counters["peer_bytes"] += nbytes
        self._check_same(copy, form, total)
        self._teach(scope)
        if copy.tier == DRAM:
            return self._held(copy, offset, nbytes)
        with core.lock:
            exact = core.index.placement(copy.placement).exact
        core.let_go([copy])
        ref = ChunkRef(name.key, chunk.parent, chunk.position, chunk.tokens)
        try:
            copy = self._loader.hold_in_dram(scope, ref, name.part, Fidelity.EXACT if exact else Fidelity.LOSSY)
        except Shed:
            return self._read_around(scope, name, offset, nbytes, form, total)
        self._check_same(copy, form, total)
        return self._held(copy, offset, nbytes)

    def _teach(self, scope: Scope) -> None:
        if self._reads is not None and scope.number not in self._taught:
            self._taught.add(scope.number)
            self._reads.add_records(scope.spec.digest, part_scope(self._core, scope))

    def _check_same(self, copy: Copy, form: int, total: int) -> None:
        if (copy.form, copy.total) != (form, total):
            self._core.let_go([copy])
            raise NotFound(f"the record is here in form {copy.form} with {copy.total} bytes, not {form} with {total}")

    def _held(self, copy: Copy, offset: int, nbytes: int) -> HeldRecord:
        core = self._core
        return HeldRecord(core.dram.view(copy.location, offset, nbytes), lambda: core.let_go([copy]))

    def _read_around(self, scope: Scope, name: Name, offset: int, nbytes: int, form: int, total: int) -> HeldRecord:
        """Bytes of a record that DRAM has no room for just now."""
        core = self._core
        with core.lock:
            place = self._find(name)
            if place is None:
                raise NotFound(f"no record of key {name.key.hex()} is here")
            copy = core.hold(place.placement, scope, name.part)
        self._check_same(copy, form, total)
        if copy.tier == DRAM:
            return self._held(copy, offset, nbytes)
        memory = memoryview(mmap.mmap(-1, copy.total))
        try:
            self._loader.copies.read_whole(scope, name.key, name.part, copy, memory)
        finally:
            self._loader.copies.finish(scope, name.key, name.part, copy)
        return HeldRecord(memory[offset : offset + nbytes], _nothing)

    def _find(self, name: Name) -> _Found | None:
        """The best copy that lies here. Needs the lock."""
        core = self._core
        scope = core.catalog.find(name.namespace, name.spec)
        if scope is None:
            return None
        chunk, row = core.find_part(scope, name.key, name.part)
        if row < 0 or chunk in core.doomed:
            return None
        for exact in (True, False):
            placement = core.index.best_placement(row, exact, self._own)
            if placement >= 0 and placement not in core.bad:
                return _Found(scope, chunk, placement, name)
        return None

    def _entry(self, found: _Found) -> Entry:
        index, name = self._core.index, found.name
        chunk, place = index.chunk(found.chunk), index.placement(found.placement)
        part = index.part(place.part)
        header = found.scope.header_bytes(name.part)
        copy = Copy(found.placement, place.tier, place.loc, place.stored, place.codec, header)
        return Entry(
            name.key, chunk.parent, name.part, chunk.position, chunk.tokens, part.logical, place.stored, copy.total,
            part.first_valid, place.codec, place.level, place.exact,
        )  # fmt: skip


def _nothing() -> None:
    """Memory of one's own needs no giving back."""
