"""Copies: records read where they lie, in whatever tier, and verified; and what becomes of those that are bad.

A bad copy is taken out, counted and told as `Corrupt`; the next reader finds another copy or a miss.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable
from typing import TypeVar

from kvstore import _native
from kvstore.api import Want
from kvstore.catalog import Scope
from kvstore.checked import check_digests, fill_from, groups_of, span, verify_record
from kvstore.core import DRAM, Copy, Core
from kvstore.decoding import check_known
from kvstore.errors import Corrupt, KVStoreError, NotFound, SpecMismatch, StorageError
from kvstore.record import NO_ARTEFACT, RAW, Record, unpack
from kvstore.removed import Removed
from kvstore.spec import Part

BAD, GONE = "quarantined", "evicted"  # damaged; lost by a shared tier, or of no use to this host
Result = TypeVar("Result")


class Copies:
    """Reads copies that the caller holds a reader on, and takes bad ones out.

    What a read finds wrong is noted; `finish`, which every reader ends with, acts on it.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._bad: dict[int, str] = {}  # placements to be taken out when their readers let go, and as what

    def header(self, copy: Copy) -> Record:
        """The header of a copy (with a reader on it), wherever it lies."""
        block, tier = memoryview(bytearray(copy.header)), self._core.tiers[copy.tier]

        def read(location: int) -> Record:
            tier.read_into(location, 0, block)
            return unpack(block)

        return self._wherever(copy, read)

    def read_whole(self, scope: Scope, key: bytes, part: Part, copy: Copy, memory: memoryview) -> None:
        """Read a whole record (with a reader on it) from a slower tier, verified, as it lies in memory."""
        memory[: copy.header] = self.fetch(scope, key, part, copy, memory).pack()

    def fetch(self, scope: Scope, key: bytes, part: Part, source: Copy, memory: memoryview) -> Record:
        """Read a whole record from a slower tier and verify it; a bad one is noted to be taken out."""
        tier = self._core.tiers[source.tier]

        def read(location: int) -> Record:
            tier.read_into(location, 0, memory)
            return verify_record(memory, scope, key, part, tier.name)

        return self._wherever(source, read)

    def fetch_layers(self, scope: Scope, want: Want, source: Copy) -> None:
        """Read the layers that are wanted from a slower tier into their destination, and verify them there."""
        if source.form != RAW:
            memory = memoryview(mmap.mmap(-1, source.total))
            self.check_decodable(self.fetch(scope, want.ref.key, want.part, source, memory), source)
            try:
                fill_from(memory, scope, want, source, False, self._core.coder)
            except (Corrupt, SpecMismatch):
                self._bad[source.placement] = BAD
                raise
            return
        tier, layers, start = self._core.tiers[source.tier], *span(scope, want)
        header = memoryview(bytearray(source.header))

        def read(location: int) -> None:
            for failure in tier.read_many([(location, 0, header), (location, source.header + start, want.out)]):
                if failure is not None:
                    raise failure
            groups = groups_of(header, scope, want, layers)
            digests = _native.xxh3_128_many(want.out, groups["offset"] - groups["offset"][0], groups["length"].copy())
            check_digests(digests, groups, want.ref.key, tier.name)

        self._wherever(source, read)

    def check_decodable(self, record: Record, source: Copy) -> None:
        """Raise `NotFound` for a copy that nobody here can decode, and note it to be taken out: it is a miss.

        In a shared tier it stays for hosts that can.
        """
        try:
            check_known(record.form, record.artefact, self._core.coder.artefacts.get, record.key)
        except NotFound:
            shared = self._core.tiers[source.tier].shared
            self._bad[source.placement] = GONE if shared else BAD
            if shared and record.artefact != NO_ARTEFACT:
                self._core.fetcher.want(record.artefact)
            with self._core.lock:
                self._core.counters["undecodable"] += 1
            raise

    def check(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> str:
        """Read a copy (with a reader on it) against its checksums; what is wrong with it, or nothing.

        One whose bytes are bad is quarantined when its reader lets go.
        """
        core = self._core
        try:
            if copy.tier == DRAM:
                verify_record(core.dram.view(copy.location, 0, copy.total), scope, key, part, core.dram.name)
            else:
                self.fetch(scope, key, part, copy, memoryview(mmap.mmap(-1, copy.total)))
        except (Corrupt, SpecMismatch) as error:
            self._bad[copy.placement] = BAD
            return str(error)
        except StorageError as error:
            return str(error)
        return ""

    def finish(self, scope: Scope, key: bytes, part: Part, source: Copy) -> None:
        """Take the reader off a copy, and the copy out if it was found bad."""
        kind = self._bad.pop(source.placement, "")
        self._core.let_go([source])
        if kind:
            self.quarantine(scope, key, part, source, kind)

    def quarantine(self, scope: Scope, key: bytes, part: Part, copy: Copy, kind: str = BAD) -> None:
        """Take a bad copy out; nobody is given it any more, even while somebody still reads it."""
        core, removed = self._core, Removed()
        with core.lock:
            _, row = core.find_part(scope, key, part)
            here = -1 if row < 0 else core.index.find_placement(row, copy.tier)
            if here == copy.placement and core.index.placement(here).loc == copy.location:
                core.condemn(scope, here, removed, kind)
        core.settle(removed)

    def reject(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> None:
        """Take out a copy in DRAM (that nobody holds any more for the caller) which was found bad while it was read.

        Where its bytes are those that were stored, and still cannot be decoded, the other copies cannot be either.
        """
        core, removed = self._core, Removed()
        if copy.form == RAW or self._is_damaged(scope, key, part, copy):
            self.quarantine(scope, key, part, copy)
            return
        with core.lock:
            _, row = core.find_part(scope, key, part)
            for placement in core.index.part_placements(row) if row >= 0 else ():
                if core.index.placement(placement).codec == copy.form:
                    core.condemn(scope, placement, removed)
            core.counters["undecodable"] += 1
        core.settle(removed)

    def _is_damaged(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> bool:
        """Whether a copy in DRAM is not what its checksums say, or is there no more."""
        core = self._core
        with core.lock:
            _, row = core.find_part(scope, key, part)
            here = -1 if row < 0 else core.index.find_placement(row, DRAM)
            if here != copy.placement or core.index.placement(here).loc != copy.location:
                return True
            core.hold(here, scope, part)
        try:
            verify_record(core.dram.view(copy.location, 0, copy.total), scope, key, part, core.dram.name)
        except (Corrupt, SpecMismatch):
            return True
        finally:
            core.let_go([copy])
        return False

    def _wherever(self, source: Copy, read: Callable[[int], Result]) -> Result:
        """`read` a record where it lies, again if the tier moves it meanwhile; a bad one is noted to be taken out."""
        location = source.location
        while True:
            try:
                return read(location)
            except KVStoreError as error:
                now = self._location(source)
                if now == location:
                    if isinstance(error, Corrupt | SpecMismatch | NotFound):
                        self._bad[source.placement] = GONE if isinstance(error, NotFound) else BAD
                    with self._core.lock:
                        self._core.counters[f"errors_{self._core.tiers[source.tier].name}"] += 1
                    raise
                location = now  # the tier has moved it to make room: there is another life in the old place

    def _location(self, source: Copy) -> int:
        """Where a placement with a reader on it lies now."""
        with self._core.lock:
            return int(self._core.index.placement(source.placement).loc)
