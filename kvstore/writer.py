"""Writing: memory for a part, the bytes with their checksums, the moment it becomes visible, and how durable it is.

A chunk's life: reserved → written → committed → evicted or quarantined. Nothing is seen before it is committed,
and a writer that goes away before that leaves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.api import Ack, Offer
from kvstore.catalog import Geometry, Namespace, Scope
from kvstore.core import DRAM, NVME, Copy, Core, Removed, now_ms
from kvstore.errors import Closed, Corrupt, InvalidArgument, Shed, StorageError, TooLarge
from kvstore.keys import ChunkRef
from kvstore.record import GROUP_DTYPE, Record, unpack
from kvstore.spec import Part
from kvstore.tiers.base import Owner, Tier, TierFull
from kvstore.tiers.dram import zero_padding

Digests = npt.NDArray[np.uint8]


class Writer:
    """Puts parts into DRAM and, when asked, on disk before it acknowledges them."""

    def __init__(self, core: Core, owner: Owner) -> None:
        self._core = core
        self._owner = owner
        self.wake_mover: Callable[[Namespace], None] = _nobody

    def put(self, scope: Scope, offer: Offer, ack: Ack) -> bool:
        """Copy a part in, hashing it on the way; False if it was there already."""
        geometry = self._check(scope, offer.ref, offer.part, offer.first_valid)
        if offer.data.nbytes != geometry.nbytes:
            raise InvalidArgument(f"{offer.data.nbytes} bytes were offered for a part of {geometry.nbytes}")
        self._check_ack(ack)
        if self._known(scope, offer.ref, offer.part, offer.first_valid):
            self._ensure(scope, offer.ref, offer.part, ack)
            return False
        reservation = self._reserve(scope, offer.ref, offer.part, offer.first_valid, geometry)
        with reservation:
            digests = _native.copy_hash_many(reservation.data, offer.data, geometry.offsets, geometry.lengths)
            return reservation.publish(digests, ack)

    def reserve(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int) -> StoreReservation:
        """Memory for a part, to be filled in place."""
        return self._reserve(scope, ref, part, first_valid, self._check(scope, ref, part, first_valid))

    def allocate(self, namespace: Namespace, nbytes: int, patience_s: float) -> int:
        """Location of free memory; evicts what is clean and waits for the mover. `Shed` when that takes too long."""
        core, deadline = self._core, time.monotonic() + patience_s
        while True:
            core.check_open()
            location = core.dram.reserve(namespace.digest, nbytes)
            if location >= 0:
                return location
            if core.dram.wait_for_memory(0.05) or self._evict_clean(namespace, nbytes):
                continue
            self.wake_mover(namespace)
            with core.lock:
                if time.monotonic() >= deadline or not core.room.wait(min(0.05, patience_s)):
                    if time.monotonic() < deadline:
                        continue
                    core.counters["shed_pressure"] += 1
                    raise Shed(f"no memory for {nbytes} bytes within {patience_s:g} s: all is leased, pinned or busy")

    def persist(self, scope: Scope, copy: Copy, patience: int = 4) -> None:
        """Write a DRAM copy (with a reader on it) to the NVMe tier, making room there if need be."""
        core = self._core
        tier = core.nvme
        if tier is None:
            raise StorageError("there is no NVMe tier to persist to; add [nvme] to the configuration")
        record, header, payload = self._open(copy)
        tier.describe(scope.namespace.name, scope.spec)
        for _ in range(patience):
            try:
                with core.gate.passing():
                    self._write(tier, scope, record, header, payload)
                return
            except TierFull as full:
                reason = str(full)
            with core.gate.alone():
                if not tier.make_room(copy.total, self._owner):
                    break
        core.counters["shed_no_space"] += 1
        raise Shed(f"{tier.name} has no room for {copy.total} bytes: {reason}", "no_space")

    def _write(self, tier: Tier, scope: Scope, record: Record, header: bytes, payload: memoryview) -> None:
        core, location = self._core, tier.write(header, payload, record)
        with core.lock:
            placed = core.publish(scope, record, NVME, location)
            if placed >= 0:
                core.counters["demoted_bytes"] += record.stored
                core.events.emit("moved", scope.namespace.name, record.key, record.spec, record.part, tier.name)
        if placed < 0:
            tier.delete(location, record.total_bytes)

    def _open(self, copy: Copy) -> tuple[Record, bytes, memoryview]:
        view = self._core.dram.view(copy.location, 0, copy.total)
        header = bytes(view[: copy.header])
        return unpack(header), header, view[copy.header :]

    def _check_ack(self, ack: Ack) -> None:
        if ack is not Ack.STORED and self._core.nvme is None:
            raise InvalidArgument(f"ack={ack.value!r} needs an NVMe tier; this store has none")

    def _check(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int) -> Geometry:
        self._core.check_open()
        scope.spec.check_part(part)
        if not 1 <= ref.tokens <= scope.spec.chunk_tokens or not 0 <= ref.position <= 0xFFFFFFFF - ref.tokens:
            raise InvalidArgument(f"{ref.tokens} tokens at {ref.position} are no chunk of this spec")
        if first_valid and not (scope.spec.groups[part.group].window and 0 < first_valid < ref.tokens):
            raise InvalidArgument(f"first_valid={first_valid} does not fit a chunk of {ref.tokens} tokens")
        geometry = scope.geometry(part, ref.tokens)
        if geometry.total > self._core.dram.max_record:
            raise TooLarge(
                f"a part of {geometry.nbytes} bytes does not fit an extent of {self._core.dram.max_record}; "
                "raise [dram] extent and capacity or lower chunk_tokens"
            )
        return geometry

    def _known(self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int) -> bool:
        core = self._core
        with core.lock:
            chunk, row = core.find_part(scope, ref.key, part)
            if chunk >= 0:
                known = core.index.chunk(chunk)
                if (known.position, known.tokens) != (ref.position, ref.tokens):
                    raise InvalidArgument(
                        f"key {ref.key.hex()} is known with {known.tokens} tokens at {known.position}, "
                        f"not {ref.tokens} at {ref.position}"
                    )
            return row >= 0 and core.index.part(row).first_valid <= first_valid

    def _reserve(
        self, scope: Scope, ref: ChunkRef, part: Part, first_valid: int, geometry: Geometry
    ) -> StoreReservation:
        self._keep_quota(scope.namespace, geometry.total)
        location = self.allocate(scope.namespace, geometry.total, self._core.config.put_wait_s)
        return StoreReservation(self, scope, ref, part, first_valid, geometry, location)

    def _keep_quota(self, namespace: Namespace, nbytes: int) -> None:
        if not namespace.quota or namespace.used + nbytes <= namespace.quota:
            return
        core, removed = self._core, Removed()
        with core.lock:
            for tier in reversed(range(len(core.tiers))):
                for row in core.policy(tier, namespace).victims():
                    if namespace.used + nbytes <= namespace.quota:
                        break
                    if core.index.chunk_evictable(row, now_ms()):
                        core.drop_chunk(row, removed)
            fits = namespace.used + nbytes <= namespace.quota
            core.counters["shed_quota"] += not fits
        removed.settle()
        if not fits:
            raise Shed(f"namespace {namespace.name!r} has used its quota of {namespace.quota} bytes", "quota")

    def _evict_clean(self, namespace: Namespace, nbytes: int) -> int:
        """Drop DRAM copies that a lower tier has too (all of them where there is none); bytes freed."""
        core, removed, freed, passed = self._core, Removed(), 0, 0
        with core.lock:
            index, now = core.index, now_ms()
            for row in core.policy(DRAM, namespace).victims():
                if freed >= nbytes or passed > core.dram.capacity // 8:
                    break
                if not index.chunk_evictable(row, now):
                    continue
                scope = core.catalog.scopes[index.chunk(row).scope]
                copies = list(core.placements(row, DRAM))
                size = sum(index.placement(each).stored for each in copies)
                if core.nvme is not None and any(
                    index.find_placement(index.placement(each).part, NVME) < 0 for each in copies
                ):
                    passed += size
                    continue
                for each in copies:
                    core.withdraw(scope, each, removed)
                freed += size
        removed.settle()
        return freed

    def _ensure(self, scope: Scope, ref: ChunkRef, part: Part, ack: Ack) -> None:
        """Give a part that is there already the durability that is asked for."""
        if ack is Ack.STORED:
            return
        core = self._core
        with core.lock:
            _, row = core.find_part(scope, ref.key, part)
            if row < 0:
                return
            in_dram = core.index.find_placement(row, DRAM)
            copy = core.hold(in_dram, scope, part) if core.index.find_placement(row, NVME) < 0 <= in_dram else None
        if copy is not None:
            try:
                self.persist(scope, copy)
            finally:
                core.let_go([copy])
        if ack is Ack.SYNCED and core.nvme is not None:
            core.nvme.sync()


def _nobody(namespace: Namespace) -> None:
    """Before there is a mover nobody waits for one."""
    del namespace


class StoreReservation:
    """Memory of the arena for one part; see `kvstore.api.Reservation`."""

    def __init__(
        self,
        writer: Writer,
        scope: Scope,
        ref: ChunkRef,
        part: Part,
        first_valid: int,
        geometry: Geometry,
        location: int,
    ) -> None:
        self._writer = writer
        self._core = writer._core
        self._scope, self._ref, self._part, self._first_valid = scope, ref, part, first_valid
        self._geometry = geometry
        self._location = location
        self._open = True
        self.data = self._core.dram.view(location, geometry.header, geometry.nbytes)

    def commit(self, ack: Ack = Ack.STORED, *, expect: bytes = b"") -> bool:
        """Hash what was written and publish it; see `kvstore.api.Reservation.commit`."""
        geometry = self._geometry
        if not self._open:
            raise Closed("this reservation was committed or aborted already")
        self._writer._check_ack(ack)
        digests = _native.xxh3_128_many(self.data, geometry.offsets, geometry.lengths)
        if expect and digests.tobytes() != expect:
            self.abort()
            raise Corrupt(f"the bytes of chunk {self._ref.key.hex()} do not match the checksums sent with them")
        return self.publish(digests, ack)

    def publish(self, digests: Digests, ack: Ack) -> bool:
        """Write the header and make the part visible; then wait for what `ack` promises."""
        if not self._open:
            raise Closed("this reservation was committed or aborted already")
        core, record = self._core, self._record(digests)
        view = core.dram.view(self._location, 0, self._geometry.total)
        view[: self._geometry.header] = record.pack()
        zero_padding(view, self._geometry.header + self._geometry.nbytes)
        removed, copy = Removed(), None
        with core.lock:
            core.check_open()
            self._replace_shorter(removed)
            placement = core.publish(self._scope, record, DRAM, self._location)
            if placement >= 0:
                self._open = False
                core.counters["stored"] += 1
                core.counters["stored_bytes"] += record.stored
                core.events.emit(
                    "stored", self._scope.namespace.name, record.key, record.spec, record.part, core.dram.name
                )
                copy = core.hold(placement, self._scope, self._part)
        removed.settle()
        if copy is None:
            self.abort()
        else:
            core.let_go([copy]) if ack is Ack.STORED else None
        return self._acknowledge(copy, ack)

    def abort(self) -> None:
        """Give the memory back unless it was published."""
        if self._open:
            self._open = False
            self.data.release()
            self._core.dram.delete(self._location, self._geometry.total)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()

    def _acknowledge(self, copy: Copy | None, ack: Ack) -> bool:
        core = self._core
        if ack is not Ack.STORED and copy is not None:
            try:
                self._writer.persist(self._scope, copy)
            finally:
                core.let_go([copy])
            if ack is Ack.SYNCED and core.nvme is not None:
                core.nvme.sync()
        elif copy is None:
            self._writer._ensure(self._scope, self._ref, self._part, ack)
        return copy is not None

    def _replace_shorter(self, removed: Removed) -> None:
        """A windowed part that starts earlier takes the place of one that starts later. Needs the lock."""
        core = self._core
        chunk, row = core.find_part(self._scope, self._ref.key, self._part)
        if row < 0 or core.index.part(row).first_valid <= self._first_valid:
            return
        if core.index.chunk_evictable(chunk, now_ms()):
            for placement in core.index.part_placements(row):
                core.withdraw(self._scope, placement, removed)

    def _record(self, digests: Digests) -> Record:
        geometry, ref, scope = self._geometry, self._ref, self._scope
        groups: npt.NDArray[Any] = np.zeros(len(geometry.offsets), GROUP_DTYPE)
        groups["offset"], groups["length"], groups["xxh3"] = geometry.offsets, geometry.lengths, digests
        return Record(
            key=ref.key,
            parent=ref.parent,
            spec=scope.spec.digest,
            namespace=scope.namespace.digest,
            part=self._part,
            position=ref.position,
            tokens=ref.tokens,
            logical=geometry.nbytes,
            stored=geometry.nbytes,
            groups=groups,
            first_valid=self._first_valid,
            created_ms=now_ms(),
        )
