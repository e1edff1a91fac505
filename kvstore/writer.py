"""Writing: memory for a part, the bytes with their checksums, the moment it becomes visible, and how durable it is.

A chunk's life: reserved → written → committed → evicted or quarantined. Nothing is seen before it is committed,
and a writer that goes away before that leaves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.api import Ack, Offer
from kvstore.catalog import Geometry, Namespace, Scope
from kvstore.core import DRAM, Copy, Core
from kvstore.descent import Descent, record_in_dram
from kvstore.errors import InvalidArgument, KVStoreError, Shed, TooLarge, Unavailable
from kvstore.keys import ChunkRef, check_key
from kvstore.marks import drain_marks
from kvstore.record import RAW, Entry, Record, write_header, write_record
from kvstore.removed import Removed
from kvstore.reservation import StoreReservation
from kvstore.slot import Slot
from kvstore.spec import Part
from kvstore.tiers.dram import zero_padding
from kvstore.usage import now_ms

Digests = npt.NDArray[np.uint8]


class Writer:
    """Puts parts into DRAM and, when asked, on disk before it acknowledges them."""

    def __init__(self, core: Core, descent: Descent) -> None:
        self._core = core
        self._descent = descent
        self.wake_mover: Callable[[Namespace], None] = _nobody

    def put(self, scope: Scope, offer: Offer, ack: Ack, confirm: Callable[[], None] | None = None) -> bool:
        """Copy a part in, hashing it on the way; False if it was there already.

        `confirm` is called between the copy and the moment it becomes visible; what it raises ends the put.
        """
        geometry = self._check(scope, offer.ref, offer.part, offer.first_valid)
        if offer.data.nbytes != geometry.nbytes:
            raise InvalidArgument(f"{offer.data.nbytes} bytes were offered for a part of {geometry.nbytes}")
        if ack is not Ack.STORED:
            self.check_ack(ack, geometry)
        namespace = scope.namespace
        with self._core.lock:
            known, copy = self.twin(scope, offer.ref, offer.part, offer.first_valid, ack)
            if not known and not namespace.quota:
                namespace.promised += geometry.total
        if known:
            self.ensure(scope, offer.ref.key, offer.part, copy, ack)
            return False
        if namespace.quota:
            self._keep_quota(namespace, geometry.total)
        slot = self._slot(scope, offer.ref, offer.part, offer.first_valid, geometry)
        try:
            entry = slot.raw_entry()
            write_record(
                self._core.dram.view(slot.location, 0, geometry.total), geometry.header, entry,
                scope.spec.digest, scope.namespace.digest, geometry.offsets, geometry.lengths, offer.data,
            )  # fmt: skip
            if confirm is not None:
                confirm()
            placed, copy = self._publish_in_form(slot, ack)
        finally:
            if not slot.placed:
                self.give_up(slot)
        if ack is not Ack.STORED:
            self.ensure(scope, offer.ref.key, offer.part, copy, ack)
        return placed

    def reserve(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int) -> StoreReservation:
        """Memory for a part, to be filled in place."""
        slot = self._reserve(scope, ref, part, first_valid, self._check(scope, ref, part, first_valid))
        return StoreReservation(self._core, self, slot)

    def publish(self, slot: Slot, digests: Digests, ack: Ack) -> tuple[bool, Copy | None]:
        """Write the header and make a part visible; see `_publish_in_form`."""
        scope, geometry, entry = slot.scope, slot.geometry, slot.raw_entry()
        view = self._core.dram.view(slot.location, 0, geometry.total)
        write_header(
            view[: geometry.header], entry, scope.spec.digest, scope.namespace.digest,
            geometry.offsets, geometry.lengths, digests,
        )  # fmt: skip
        zero_padding(view, geometry.header + geometry.nbytes)
        return self._publish_in_form(slot, ack)

    def _publish_in_form(self, slot: Slot, ack: Ack) -> tuple[bool, Copy | None]:
        """Make a raw part that was written visible, encoded first if its namespace says so: whether it was new.

        See `_publish` for the copy. What is raw and was encoded is not placed: its memory is the caller's to give up.
        """
        encoded = self._encoded(slot)
        if encoded is None:
            copy = self._publish(slot, slot.entry(), ack)
            return slot.placed, copy
        try:
            copy = self._publish(encoded, encoded.entry(), ack)
            return encoded.placed, copy
        finally:
            if not encoded.placed:
                self.give_up(encoded)

    def _encoded(self, slot: Slot) -> Slot | None:
        """Another slot with the part in the form that its namespace's puts have; None where it stays raw."""
        core, scope, geometry = self._core, slot.scope, slot.geometry
        wanted = core.coder.put_form(scope)
        if wanted is None:
            return None
        coded = core.coder.recode(scope, record_in_dram(core, slot.location, geometry.header, geometry.nbytes), wanted)
        record = coded.record
        if record.form == RAW:
            return None
        with core.lock:
            scope.namespace.promised += record.total_bytes
        offsets, lengths = record.groups["offset"].copy(), record.groups["length"].copy()
        shape = Geometry(record.stored, record.header_bytes, record.total_bytes, offsets, lengths)
        try:
            found = self._slot(scope, slot.ref, slot.part, slot.first_valid, shape)
        except Shed:  # not beside the raw one, which then is what there is
            return None
        found.record = record
        view = core.dram.view(found.location, 0, shape.total)
        view[: shape.header] = coded.header
        _native.copy(view[shape.header : shape.header + shape.nbytes], coded.payload[: shape.nbytes])
        zero_padding(view, shape.header + shape.nbytes)
        return found

    def _publish(self, slot: Slot, entry: Entry | Record, ack: Ack) -> Copy | None:
        """Make a written part visible (`slot.placed` tells), unless one as good is there.

        Gives a copy, held, where `ack` needs it written down, whether it came with this call or was there before.
        """
        core, removed, scope, geometry, copy = self._core, Removed(), slot.scope, slot.geometry, None
        ref = slot.ref
        try:
            with core.lock:
                core.check_open()
                self.count_no_longer(slot)
                if scope.windowed:
                    self._replace_shorter(slot, removed)
                slot.placed = core.commits.publish(scope, entry, DRAM, slot.location, removed) >= 0
                if slot.placed:
                    self._own(slot, removed)
                    core.counters["stored"] += 1
                    core.counters["stored_bytes"] += geometry.nbytes
                    core.events.emit(
                        "stored", scope.namespace.name, ref.key, scope.spec.digest, slot.part, core.dram.name
                    )
                if not slot.placed or ack is not Ack.STORED or core.doomed or core.bad:
                    _, copy = self.twin(scope, ref, slot.part, slot.first_valid, ack)
        finally:
            if removed:
                core.settle(removed)
        return copy

    def _own(self, slot: Slot, removed: Removed) -> None:
        """What is stored here is this host's own, whether another has it or not. Needs the lock."""
        core = self._core
        if core.peers is None:
            return
        _, row = core.find_part(slot.scope, slot.ref.key, slot.part)
        there = core.index.find_placement(row, core.peers)
        if there >= 0 and not core.index.placement(there).readers:
            core.withdraw(slot.scope, there, removed)

    def give_up(self, slot: Slot) -> None:
        """Give back the memory of a part that was not published."""
        with self._core.lock:
            self.count_no_longer(slot)
        self._core.dram.delete(slot.location, slot.geometry.total)

    def count_no_longer(self, slot: Slot) -> None:
        """A part is no longer promised to its namespace. Needs the lock."""
        if slot.promised:
            slot.promised = False
            slot.scope.namespace.promised -= slot.geometry.total

    def allocate(self, namespace: Namespace, nbytes: int, patience_s: float, *, wait_for_leases: bool = True) -> int:
        """Location of free memory; evicts what is clean and waits for the mover. `Shed` when that takes too long.

        Without `wait_for_leases` it is shed at once where the mover could not help either.
        """
        core, deadline = self._core, time.monotonic() + patience_s
        while True:
            core.check_open()
            epoch = core.dram.extents_epoch
            location = core.dram.reserve(namespace.digest, nbytes)
            if location >= 0:
                return location
            growing = core.dram.is_growing
            if core.dram.wait_for_memory(namespace.digest, 0.05) or core.dram.extents_epoch != epoch:
                continue  # what was waited for may have gone to another put, and has room for this one, too
            freed, dirty = self._evict_clean(namespace, nbytes)
            if freed:
                continue
            if growing:  # the time it takes to populate memory at the start is nobody's pressure
                deadline = time.monotonic() + patience_s
                continue
            self.wake_mover(namespace)
            with core.lock:
                if time.monotonic() >= deadline or not (dirty or wait_for_leases):
                    core.counters["shed_pressure"] += 1
                    raise Shed(f"no memory for {nbytes} bytes within {patience_s:g} s: all is leased, pinned or busy")
                core.room.wait(min(0.05, patience_s))

    def check_ack(self, ack: Ack, geometry: Geometry) -> None:
        """Raise unless a part of this size can be acknowledged so: by a tier that is there and takes records of it."""
        if ack is Ack.STORED:
            return
        core = self._core
        number = core.persistent
        if number is None and core.drained:
            raise Unavailable(f"ack={ack.value!r} has to wait: every tier that survives the process is being drained")
        if number is None:
            raise InvalidArgument(f"ack={ack.value!r} needs a tier that survives the process, as [nvme]; there is none")
        tier = core.tiers[number]
        if geometry.total > tier.max_record:
            raise TooLarge(
                f"a record of {geometry.total} bytes cannot be {ack.value}: {tier.name} takes {tier.max_record} at "
                "most; raise [nvme] segment or lower chunk_tokens"
            )

    def _check(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int) -> Geometry:
        core = self._core
        if core.closed:
            core.check_open()
        check_key(ref.key)
        check_key(ref.parent)
        geometry = scope.geometry(part, ref.tokens)
        if not 0 <= ref.position <= 0xFFFFFFFF - ref.tokens:
            raise InvalidArgument(f"{ref.tokens} tokens at {ref.position} are no chunk of this spec")
        if first_valid and not (scope.spec.groups[part.group].window and 0 < first_valid < ref.tokens):
            raise InvalidArgument(f"first_valid={first_valid} does not fit a chunk of {ref.tokens} tokens")
        if geometry.total > core.dram.max_record:
            raise TooLarge(
                f"a part of {geometry.nbytes} bytes does not fit an extent of {core.dram.max_record}; "
                "raise [dram] extent and capacity or lower chunk_tokens"
            )
        return geometry

    def twin(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int, ack: Ack) -> tuple[bool, Copy | None]:
        """Whether a part at least as good is there, and a copy of it, held, where `ack` needs it written down.

        A chunk that is marked to go stays, now that somebody offers it again. Needs the lock.
        """
        core = self._core
        chunk, row = core.find_part(scope, ref.key, part)
        if chunk < 0:
            return False, None
        known = core.index.chunk(chunk)
        if (known.position, known.tokens) != (ref.position, ref.tokens):
            raise InvalidArgument(
                f"key {ref.key.hex()} is known with {known.tokens} tokens at {known.position}, "
                f"not {ref.tokens} at {ref.position}"
            )
        if row < 0 or core.index.part(row).first_valid > first_valid:
            return False, None
        if core.bad and not core.bad.isdisjoint(core.index.part_placements(row)):
            core.counters["shed_leased"] += 1
            raise Shed(f"a damaged copy of chunk {ref.key.hex()} is still being read; put it again later", "leased")
        # What another host has it may let go of any time.
        exact = core.index.best_placement(row, True, core.writable) >= 0
        if not exact and not (self._lossy_will_do(scope) and core.index.best_placement(row, False, core.writable) >= 0):
            return False, None
        core.spare(chunk)
        if ack is Ack.STORED or core.redundancy.is_kept(row, exact=exact):
            return True, None
        return True, core.hold(core.index.best_placement(row, exact, core.writable), scope, part)

    def _lossy_will_do(self, scope: Scope) -> bool:
        """Whether a put would become lossy at once, so that a lossy copy is as good."""
        form = self._core.coder.put_form(scope)
        return form is not None and not form.codec.exact

    def ensure(self, scope: Scope, key: bytes, part: Part, copy: Copy | None, ack: Ack) -> None:
        """Give a part that is there the durability that is asked for; `copy` is what has to be written for it."""
        core = self._core
        if copy is not None:
            try:
                self._descent.persist(scope, key, part, copy)
            finally:
                self._descent.let_go(scope, key, part, copy)
        number = core.persistent
        if ack is Ack.SYNCED:  # what was there before may lie in a tier that is being drained
            for each in core.drained if number is None else {number, *core.drained}:
                core.tiers[each].sync()

    def _reserve(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int, geometry: Geometry) -> Slot:
        self._keep_quota(scope.namespace, geometry.total)
        return self._slot(scope, ref, part, first_valid, geometry)

    def _slot(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int, geometry: Geometry) -> Slot:
        """Memory for a part that its namespace has been promised room for."""
        try:
            location = self._core.dram.reserve(scope.namespace.digest, geometry.total)
            if location < 0:
                location = self.allocate(scope.namespace, geometry.total, self._core.config.put_wait_s)
        except KVStoreError:
            with self._core.lock:
                scope.namespace.promised -= geometry.total
            raise
        return Slot(scope, ref, part, first_valid, geometry, location)

    def _keep_quota(self, namespace: Namespace, nbytes: int) -> None:
        """Count `nbytes` as promised to a namespace, after letting go of its coldest chunks if need be."""
        core, removed, quota = self._core, Removed(), namespace.quota
        if not quota:
            with core.lock:
                namespace.promised += nbytes
            return
        if nbytes > quota:
            raise TooLarge(f"{nbytes} bytes are more than the quota of {quota} of namespace {namespace.name!r}")
        held = core.held(namespace)
        with core.lock:
            for tier in (*reversed(core.down), *core.on_devices):
                for row in core.usage.policy(tier, namespace).victims():
                    if namespace.taken + nbytes <= quota:
                        break
                    if core.may_go(row, held):
                        core.drop_own(row, removed)
            fits = namespace.taken + nbytes <= quota
            namespace.promised += nbytes * fits
            if not fits:
                core.counters["shed_quota"] += 1
        core.settle(removed)
        if not fits:
            raise Shed(f"namespace {namespace.name!r} has used its quota of {quota} bytes", "quota")

    def _replace_shorter(self, slot: Slot, removed: Removed) -> None:
        """A windowed part that starts earlier takes the place of one that starts later. Needs the lock."""
        core = self._core
        chunk, row = core.find_part(slot.scope, slot.ref.key, slot.part)
        if row < 0 or core.index.part(row).first_valid <= slot.first_valid:
            return
        if core.index.chunk_evictable(chunk, now_ms()):
            for placement in core.index.part_placements(row):
                core.withdraw(slot.scope, placement, removed)

    def _evict_clean(self, namespace: Namespace, nbytes: int) -> tuple[int, int]:
        """Drop DRAM copies that the next tier has too (or, while that is not to be used, any; all if there is none).

        Bytes freed, and bytes passed over that could go once they are written down.
        """
        core, removed, freed, passed = self._core, Removed(), 0, 0
        following = core.next_below(DRAM)
        next_ok = following is not None and core.is_usable(following)
        others = (number for number in core.down[1:] if core.tiers[number].writable and number != following)
        others_ok = any(map(core.is_usable, others))
        drain_marks(core, namespace)
        held = core.held(namespace)
        with core.lock:
            index = core.index
            for row in core.usage.coldest(DRAM, namespace):
                if freed >= nbytes or passed > core.dram.capacity // 8:
                    break
                if not core.may_go(row, held):
                    continue
                copies = list(core.placements(row, DRAM))
                if not core.redundancy.at_peers(copies) and (
                    (
                        following is not None
                        and next_ok
                        and not core.redundancy.all_in(following, copies)
                        and core.admissions.admits(following, row)
                    )
                    or (others_ok and not next_ok and any(core.redundancy.only_here(each) for each in copies))
                ):
                    passed += sum(index.placement(each).stored for each in copies)
                    continue
                core.drop_from(row, DRAM, removed, held)
                freed = removed.bytes_in(core.dram)
        core.settle(removed)
        return freed, passed


def _nobody(namespace: Namespace) -> None:
    """Before there is a mover nobody waits for one."""
    del namespace
