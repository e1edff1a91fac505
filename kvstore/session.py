"""A session: the embedded backend of one client, bound to a namespace. Its leases end with it."""

from __future__ import annotations

import math
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from kvstore import _native
from kvstore.api import (
    MAX_AWAITED_S,
    Ack,
    ChunkInfo,
    Description,
    Drain,
    Fidelity,
    Found,
    Offer,
    Page,
    Placed,
    PlacementInfo,
    Query,
    Want,
)
from kvstore.catalog import Namespace, Scope
from kvstore.core import Core
from kvstore.decoding import OwnView
from kvstore.device_views import DeviceViews
from kvstore.errors import Closed, InvalidArgument, PermissionDenied, StorageError
from kvstore.events import Watcher
from kvstore.hazards import open_board
from kvstore.intake import teach, teach_gets
from kvstore.keys import ChunkRef, check_key, pack_keys
from kvstore.leases import UNTIL_RELEASED, check_lease
from kvstore.loader import Loader
from kvstore.lookups import Lookups
from kvstore.marks import drain_marks
from kvstore.placer import Placer
from kvstore.places import NOWHERE, check_items, pack_items, unpack_places
from kvstore.policy import Rows
from kvstore.reader import Reader, StoreView
from kvstore.reservation import StoreReservation
from kvstore.spec import KVSpec, Part
from kvstore.usage import now_ms, steady_ms
from kvstore.writer import Writer

if TYPE_CHECKING:
    from kvstore.store import Store
    from kvstore.tiers.hbm.ipc import SharedSlab

MAX_PIN_S = 366 * 86400


class Session:
    """One client's way into a store of this process; see `kvstore.api.Backend` for what each method promises."""

    def __init__(
        self,
        store: Store,
        core: Core,
        reader: Reader,
        loader: Loader,
        writer: Writer,
        namespace: Namespace,
        number: int,
    ) -> None:
        self._store, self._core, self._writer = store, core, writer
        self._reader, self._loader = reader, loader
        self._placer = Placer(core, loader)
        self._lookups = Lookups(core, store.finder, loader, namespace, number, self._lease_end, self._take_lease)
        self._namespace = namespace
        self._number = number
        self._scopes: dict[bytes, Scope] = {}
        self._reservations: set[StoreReservation] = set()
        self._watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
        self._board: _native.HazardBoard | None = None
        self._gets: _native.PlainGets | None = None
        self._taught: set[bytes] = set()
        self._teaching = threading.Lock()
        self._closed = False

    def describe(self) -> Description:
        self._check_open()
        return self._store.describe(self._namespace)

    def register(self, spec: KVSpec) -> None:
        self._scope(spec)

    def scope(self, spec: KVSpec) -> Scope:
        """What the index calls a spec in this session's namespace by."""
        return self._scope(spec)

    def lookup(self, query: Query) -> Found:
        return self._lookups.find(self._scope(query.spec), query)

    def place(
        self,
        spec: KVSpec,
        items: Sequence[tuple[ChunkRef, Part]],
        *,
        fidelity: Fidelity = Fidelity.EXACT,
        verify: bool = False,
        lease: bytes,
        lease_s: float,
    ) -> Placed:
        """Where parts lie in DRAM, loaded first if need be, all their chunks under one lease.

        A lease of 0 s has no limit: it ends when it is released or with this session. `verify` checks DRAM copies
        too, which are otherwise trusted since they were checked on arrival.
        """
        return self.place_packed(
            spec, pack_items(items), fidelity=fidelity, verify=verify, lease=lease, lease_s=lease_s
        )

    def place_packed(
        self, spec: KVSpec, items: bytes, *, fidelity: Fidelity, verify: bool, lease: bytes, lease_s: float
    ) -> Placed:
        """`place` of items that are packed already (`kvstore.places.pack_items`)."""
        hold = self._holder(lease, lease_s)
        return self._placer.place(self._scope(spec), check_items(items), fidelity, verify, hold)

    def device_places(self, spec: KVSpec, items: bytes, *, device: str, lease: bytes, lease_s: float) -> bytes:
        """Where packed items lie on a device (`kvstore.devices`), under a lease if any does; `place` says what one is.

        A location is a slab's number and an offset, as in extents; `share_slab` says how to open the slab.
        """
        return self._store.devices.place(self._scope(spec), check_items(items), device, self._holder(lease, lease_s))

    def share_slab(self, device: str, number: int) -> SharedSlab:
        """How another process opens a slab of the namespace's; the caller closes its descriptor. Raises as `place`.

        `PermissionDenied` for any other number.
        """
        self._check_open()
        return self._store.devices.tier(device).share(number, self._namespace.digest)

    def device_views(
        self, spec: KVSpec, refs: Sequence[ChunkRef], part: Part, *, device: Any = None, lease_s: float = 0.0
    ) -> DeviceViews:
        spec.check_part(part)
        self._store.devices.check_any()  # where there is none, there need be no torch
        from kvstore.tiers.hbm.ipc import named_device

        lease, until = secrets.token_bytes(16), time.monotonic() + lease_s if lease_s else math.inf
        items, known = pack_items([(ref, part) for ref in refs]), named_device(device)
        places = unpack_places(self.device_places(spec, items, device=known, lease=lease, lease_s=lease_s))
        tier = self._store.devices.tier(known)
        tensors = [None if place[0] == NOWHERE else tier.view(place[0], 0, place[1]) for place in places]
        return DeviceViews(tensors, partial(self.release, [lease]), lambda: self._closed, until)

    def open_extent(self, number: int) -> tuple[int, int]:
        """A descriptor of one of the namespace's extents, which the caller closes, and its size in bytes.

        `PermissionDenied` for any other number, whether there is such an extent or not.
        """
        self._check_open()
        return self._core.dram.open_extent(number, self._namespace.digest)

    def extents(self) -> frozenset[int]:
        """Numbers of the extents that the namespace has now."""
        return self._core.dram.extents(self._namespace.digest)

    @property
    def extents_epoch(self) -> int:
        """Grows whenever an extent of any namespace was handed out or destroyed."""
        return self._core.dram.extents_epoch

    def open_shared_index(self) -> tuple[int, int]:
        """A descriptor of the namespace's index in shared memory (the caller closes it), and its length in bytes.

        For `kvstore.shared_index.SharedIndex`. The first call makes the index: 32 to 64 bytes a chunk of
        `max_chunks`. `StorageError` where there is no memory for it, and where a shared tier has to be asked too.
        """
        self._check_open()
        if self._store.finder is not None:
            raise StorageError("look-ups go to the store: a shared tier may hold what its index lacks")
        return self._core.shared.share(self._namespace)

    def honour(self, descriptor: int, nbytes: int) -> float:
        """Hold what stands in a hazard table of the client's until this session ends (`kvstore.hazards`).

        It replaces the table that was given before. `InvalidArgument` for another length, `StorageError` where it
        cannot be mapped; the caller has seen to it that it cannot shrink. Gives the seconds that a lease may last.
        """
        board, core, owner = open_board(descriptor, nbytes), self._core, self._namespace.digest
        with core.lock:
            self._check_open()
            if self._board is not None:
                core.hazards.remove(owner, self._board)
            self._board = board
            core.hazards.add(owner, board)
        return core.config.lease_limit_s

    @property
    def asks_misses(self) -> bool:
        """Whether a policy of the namespace learns of what look-ups under a lease miss."""
        with self._core.lock:
            return self._core.usage.wants_demand(self._namespace)

    def release(self, leases: Sequence[bytes]) -> None:
        core = self._core
        with core.lock:
            for lease in leases:
                core.leases.release(self._number, lease)
                core.forecasts.released((self._number, lease))
            core.room.notify_all()

    def get(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Sequence[Exception | None]:
        return self._reader.get(self._scope(spec), wants, fidelity, verify)

    def get_each(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Iterator[tuple[int, Exception | None]]:
        for want in wants:
            check_key(want.ref.key)
            spec.check_part(want.part)
        return self._reader.get_each(self._scope(spec), wants, fidelity, verify)

    def view(
        self, spec: KVSpec, ref: ChunkRef, part: Part, *, fidelity: Fidelity = Fidelity.EXACT, encoded: bool = False
    ) -> StoreView | OwnView:
        check_key(ref.key)
        spec.check_part(part)
        return self._reader.view(self._scope(spec), ref, part, fidelity, encoded)

    def artefact(self, digest: bytes) -> bytes:
        self._check_open()
        return self._core.coder.artefacts.get(digest).data

    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        return self._writer.put(self._scope(spec), offer, ack)

    def put_confirmed(self, spec: KVSpec, offer: Offer, ack: Ack, confirm: Callable[[], None]) -> bool:
        """`put` from memory that may change under it: `confirm` raises if it could have, once the bytes are taken."""
        return self._writer.put(self._scope(spec), offer, ack, confirm)

    def teach(self, puts: _native.StagedPuts, spec: KVSpec, part: Part, tokens: int) -> None:
        """Have puts of such a part taken natively from now on, where nothing is special about them."""
        teach(self._core, self._scope(spec), puts, part, tokens)

    def plain_gets(self, method: int, spec: KVSpec) -> _native.PlainGets:
        """What answers plain gets of a spec, and of those that were named before, as frames of this method."""
        scope = self._scope(spec)
        with self._teaching:
            if self._gets is None:
                self._gets = _native.PlainGets(method, self._core.room.wake)
            if spec.digest not in self._taught:
                self._taught.add(spec.digest)
                teach_gets(self._core, scope, self._gets)
            return self._gets

    def reserve(self, spec: KVSpec, ref: ChunkRef, part: Part, *, first_valid: int = 0) -> StoreReservation:
        reservation = self._writer.reserve(self._scope(spec), ref, part, first_valid)
        with self._core.lock:
            self._reservations = {each for each in self._reservations if each.is_open} | {reservation}
        if self._closed:
            reservation.abort()
        return reservation

    def delete(self, spec: KVSpec, keys: Sequence[bytes]) -> int:
        return self._store.delete(self._scope(spec), _checked(keys))

    def pin(self, spec: KVSpec, keys: Sequence[bytes], seconds: float) -> int:
        scope, core, count = self._scope(spec), self._core, 0
        if not 0 <= seconds <= MAX_PIN_S:
            raise InvalidArgument(f"a pin lasts up to {MAX_PIN_S} s, not {seconds:g}")
        until = now_ms() + int(seconds * 1000) if seconds > 0 else 0
        with core.lock:
            for key in _checked(keys):
                chunk = core.index.find(scope.number, key)
                if chunk >= 0:
                    core.index.pin(chunk, until)
                    count += 1
        return count

    def hint(self, spec: KVSpec, keys: Sequence[bytes], awaited_s: float) -> int:
        scope, core = self._scope(spec), self._core
        if not 0 <= awaited_s <= MAX_AWAITED_S:
            raise InvalidArgument(f"a prompt is awaited for up to {MAX_AWAITED_S} s, not {awaited_s:g}; pin it instead")
        packed = pack_keys(keys)
        drain_marks(core, self._namespace)  # of uses before this, or they would end it
        with core.lock:
            rows = core.index.find_many(scope.number, packed)
            there = rows[rows >= 0]
            core.usage.hinted(there, self._namespace, awaited_s)
        return len(there)

    def prefetch(self, spec: KVSpec, keys: Sequence[bytes], *, fidelity: Fidelity = Fidelity.EXACT) -> int:
        return self._loader.prefetch(self._scope(spec), _checked(keys), fidelity)

    def chunks(self, cursor: int = 0, limit: int = 1000) -> Page:
        self._check_open()
        if not 0 <= cursor <= 0x7FFFFFFF:
            raise InvalidArgument(f"{cursor} is no cursor that a list gave")
        if not 1 <= limit <= 100_000:
            raise InvalidArgument(f"a page holds 1 to 100000 chunks, not {limit}")
        return self._store.chunks(self._namespace, cursor, limit)

    def stats(self) -> dict[str, Any]:
        self._check_open()
        return self._store.stats(self._namespace)

    def drain(self, tier: str, path: str = "") -> Drain:
        self._check_operator()
        return self._store.drains.begin(tier, path)

    def resume(self, tier: str, path: str = "") -> Drain:
        self._check_operator()
        return self._store.drains.resume(tier, path)

    def watch(self, *, lookups: bool = False) -> Iterator[Any]:
        self._check_open()
        watcher = self._core.events.watch(self._namespace.name, lookups=lookups)
        self._watchers.add(watcher)
        return watcher

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        self._check_open()
        return self._store.verify(self._namespace)

    def close(self) -> None:
        """End leases, watchers and reservations of this session."""
        self._closed = True
        for watcher in list(self._watchers):
            watcher.close()
        for reservation in list(self._reservations):
            reservation.abort()
        with self._core.lock:
            if self._board is not None:
                self._core.hazards.remove(self._namespace.digest, self._board)
                self._board = None
            self._core.leases.end_session(self._number)
            self._core.forecasts.session_over(self._number)
            self._core.prefills.forget(self._number)
            self._core.room.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this client is closed")
        self._core.check_open()

    def _check_operator(self) -> None:
        self._check_open()
        if not self._core.config.may_operate(self._namespace.name):
            raise PermissionDenied(
                f"tiers belong to all tenants: the namespace {self._namespace.name!r} needs `operator = true`"
            )

    def _scope(self, spec: KVSpec) -> Scope:
        if self._closed or self._core.closed:
            self._check_open()
        found = self._scopes.get(spec.digest)
        if found is None:
            found = self._scopes[spec.digest] = self._store.scope(self._namespace, spec)
        return found

    def _lease_end(self, lease_s: float) -> int:
        """When a lease that is taken now ends, by `steady_ms`."""
        limit = self._core.config.lease_limit_s
        if not 0 < lease_s <= limit:
            raise InvalidArgument(f"a lease lasts up to {limit:g} s here, not {lease_s:g}; renew it instead")
        return steady_ms() + int(lease_s * 1000)

    def _holder(self, lease: bytes, lease_s: float) -> Callable[[Rows], None]:
        """What puts chunks under a lease, of 0 s until it is released. `InvalidArgument` for one that cannot be."""
        check_lease(lease)
        if lease_s:
            self._lease_end(lease_s)

        def hold(rows: Rows) -> None:
            self._take_lease(lease, self._lease_end(lease_s) if lease_s else UNTIL_RELEASED, rows)

        return hold

    def _take_lease(self, lease: bytes, until_ms: int, used: Rows) -> None:
        """Hold chunks. Needs the lock."""
        if self._closed:  # since this call began: nobody would end it
            raise Closed("this client is closed")
        self._core.leases.take(self._number, lease, used, until_ms)


class OwnedSession(Session):
    """The session of a client that opened the store itself: closing it closes the store."""

    def close(self) -> None:
        super().close()
        self._store.close()


def _checked(keys: Sequence[bytes]) -> Sequence[bytes]:
    for key in keys:
        check_key(key)
    return keys
