"""The way down: a part's record is written from one tier to a slower one, in the form that it has there.

A tier that chooses by itself what goes is asked to make room; in any other the coldest chunks are let go until the
record fits.
"""

from __future__ import annotations

import mmap

from kvstore.catalog import Namespace, Scope
from kvstore.coder import Coded
from kvstore.copies import Copies
from kvstore.core import DRAM, Copy, Core
from kvstore.errors import KVStoreError, Shed, StorageError
from kvstore.record import NO_ARTEFACT, Entry, Record, padded, unpack
from kvstore.removed import Removed
from kvstore.spec import Part
from kvstore.tiers.base import Name, Owner, Present, Tier, TierFull

PATIENCE = 4
FIND_S = 1.0  # for what another host wrote
LOOKED_AT = 4096  # chunks of one namespace, when room is made for one record


def record_in_dram(core: Core, location: int, header_bytes: int, stored: int) -> Coded:
    """A record in DRAM, whose payload stays where it is."""
    view = core.dram.view(location, 0, header_bytes + padded(stored))
    header = bytes(view[:header_bytes])
    return Coded(unpack(header), header, view[header_bytes:])


class Descent:
    """Writes copies down. Whoever holds a reader on one ends with `let_go`."""

    def __init__(self, core: Core, copies: Copies, owner: Owner) -> None:
        self._core = core
        self._copies = copies
        self._owner = owner

    def let_go(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> None:
        """Take the reader off a copy, and the copy out if it was found bad."""
        self._copies.finish(scope, key, part, copy)

    def persist(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> None:
        """Write a copy (with a reader on it) to the first tier that survives the process."""
        target = self._core.persistent
        if target is None:
            raise StorageError("no tier that survives this process takes records: add [nvme], or end its drain")
        self.write(scope, key, part, copy, target)

    def write(self, scope: Scope, key: bytes, part: Part, copy: Copy, target: int, *, patience: int = PATIENCE) -> None:
        """Write a copy (with a reader on it) to tier `target`, making room there if need be (not with 0 `patience`).

        Raises `Shed` where there is no room to be had, `StorageError`, `Corrupt` for a source that is damaged.
        """
        core, tier = self._core, self._core.tiers[target]
        source = self.read(scope, key, part, copy)
        coded = core.coder.recode(scope, source, core.coder.form_in(scope, target))
        tier.describe(scope.namespace.name, scope.spec)
        if tier.shared and coded.record.artefact != NO_ARTEFACT:
            tier.keep_artefact(coded.record.artefact, core.coder.artefacts.get(coded.record.artefact).data)
        for _ in range(max(1, patience)):
            try:
                with core.gates[target].passing():
                    self._write(target, scope, *coded)
                return
            except TierFull as full:
                reason = str(full)
            if not patience or not self.make_room(target, coded.record.total_bytes):
                break
        core.counters["shed_no_space"] += 1
        raise Shed(f"{tier.name} has no room for {coded.record.total_bytes} bytes: {reason}", "no_space")

    def lift(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> bool:
        """Write a copy (with a reader on it) up to DRAM, if memory is free there; False if none is."""
        core, removed, placed = self._core, Removed(), -1
        coded = self.read(scope, key, part, copy)
        location = core.dram.reserve(scope.namespace.digest, copy.total)
        if location < 0:
            return False
        try:
            memory = core.dram.view(location, 0, copy.total)
            memory[: copy.header] = coded.header
            memory[copy.header :] = coded.payload
            with core.lock:
                placed = core.commits.publish(scope, coded.record, DRAM, location, removed)
                if placed >= 0:
                    core.events.emit("moved", scope.namespace.name, key, scope.spec.digest, part, core.dram.name)
        finally:
            core.settle(removed)
            if placed < 0:
                core.dram.delete(location, copy.total)
        return True

    def _write(self, target: int, scope: Scope, record: Record, header: bytes, payload: memoryview) -> None:
        core, tier, removed, placed = self._core, self._core.tiers[target], Removed(), -1
        try:
            with core.admissions.writing(target, record.total_bytes):
                kept, location = self._keep(tier, scope, record, header, payload)
        except TierFull:
            raise
        except KVStoreError:
            with core.lock:
                core.counters[f"errors_{tier.name}"] += 1
            raise
        try:
            with core.lock:
                placed = core.commits.publish(scope, kept, target, location, removed)
                if placed >= 0:
                    core.counters["demoted_bytes"] += kept.stored
                    core.counters[f"demoted_{tier.name}"] += 1
                    core.events.emit("moved", scope.namespace.name, record.key, record.spec, record.part, tier.name)
        finally:
            if placed < 0:
                let_go = removed.forgotten if self._lies_in(target, scope, record) else removed.evicted
                let_go.append((tier, location, kept.total_bytes))
            core.settle(removed)

    def _lies_in(self, target: int, scope: Scope, record: Record) -> bool:
        """Whether a tier that others share has the part by another location, so that what was written is that."""
        core = self._core
        if not core.tiers[target].shared:
            return False
        with core.lock:
            _, row = core.find_part(scope, record.key, record.part)
            return row >= 0 and core.index.find_placement(row, target) >= 0

    def _keep(
        self, tier: Tier, scope: Scope, record: Record, header: bytes, payload: memoryview
    ) -> tuple[Record | Entry, int]:
        """Write a record; or take another host's, in another form, that lies there and is as good."""
        try:
            return record, tier.write(header, payload, record)
        except Present:
            name = Name(record.namespace, record.spec, record.key, record.part)
            found = tier.find([name], FIND_S)[0]
            if found is None:
                raise
        if found[0].exact or not record.exact or scope.namespace.lossy:
            return found
        tier.delete(found[1], found[0].total_bytes)
        return record, tier.write(header, payload, record)

    def read(self, scope: Scope, key: bytes, part: Part, copy: Copy) -> Coded:
        """A record where it lies in DRAM, or as it was read from another tier and verified."""
        core = self._core
        if copy.tier == DRAM:
            return record_in_dram(core, copy.location, copy.header, copy.stored)
        memory = memoryview(mmap.mmap(-1, copy.total))
        record = self._copies.fetch(scope, key, part, copy, memory)
        return Coded(record, record.pack(), memory[copy.header :])

    def make_room(self, target: int, nbytes: int) -> bool:
        """Room in a tier that is full; False if there is none to be had."""
        tier = self._core.tiers[target]
        if tier.evicts:  # its owner holds the gate while it looks
            return tier.make_room(nbytes, self._owner)
        with self._core.gates[target].alone():
            return self._evict(target, nbytes)

    def _evict(self, target: int, nbytes: int) -> bool:
        """Let the coldest chunks of a tier go, first of the namespace that has most of them there."""
        core, tier, removed = self._core, self._core.tiers[target], Removed()
        with core.lock:
            usage = core.usage
            largest = sorted(core.catalog.namespaces.values(), key=lambda each: -len(usage.policy(target, each)))
        for namespace in largest:
            self._evict_of(namespace, target, nbytes, removed)
            if removed.bytes_in(tier) >= nbytes:
                break
        freed = removed.bytes_in(tier) >= nbytes
        core.settle(removed)
        return freed

    def _evict_of(self, namespace: Namespace, target: int, nbytes: int, removed: Removed) -> None:
        """Let the coldest chunks of a namespace go; what the next tier lacks is written there first."""
        core, tier = self._core, self._core.tiers[target]
        with core.lock:
            rows = core.usage.policy(target, namespace).victims()
        for _ in range(LOOKED_AT):
            if removed.bytes_in(tier) >= nbytes:
                return
            with core.lock:
                row = next(rows, -1)
                if row < 0:
                    return
                chunk = core.index.chunk(row)
                may_go = core.may_go(row, core.held(namespace))
                further = core.next_below(target)
                lacking = self._lacking(row, target, further) if may_go and further is not None else []
            if further is not None:
                self._write_further(lacking, further)
            with core.lock:
                row = core.index.find(chunk.scope, chunk.key)
                if row < 0 or (may_go and core.drop_from(row, target, removed, core.held(namespace))):
                    core.admissions.was_full(target)

    def _lacking(self, row: int, target: int, further: int) -> list[tuple[Scope, bytes, Part, Copy]]:
        """A chunk's parts that the next tier lacks, if that is to be used, each with a reader. Needs the lock."""
        core, index = self._core, self._core.index
        if not core.is_usable(further):
            return []
        chunk, found = index.chunk(row), []
        for placement in list(core.placements(row, target)):
            place = index.placement(placement)
            lacks = placement not in core.bad and not core.redundancy.has(further, place.part, exact=place.exact)
            if lacks and core.admissions.admits(further, row):
                found.append(core.hold_part(chunk, placement))
        return found

    def _write_further(self, parts: list[tuple[Scope, bytes, Part, Copy]], target: int) -> None:
        for held in parts:
            try:
                self.write(*held, target, patience=2)
            except KVStoreError:
                with self._core.lock:
                    self._core.counters["dropped_not_writable"] += self._core.redundancy.only_here(held[3].placement)
            finally:
                self.let_go(*held)
