"""Sharing with other hosts: they are told what this one holds, and of the use of what it reads from them.

What was read from another host stays that host's to tell of: this one's copy goes first when room is needed, and its
use here is told there, so that the hosts together keep what was used last, each record once.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvstore import _native
from kvstore.core import Core
from kvstore.errors import KVStoreError
from kvstore.namespace import namespace_digest
from kvstore.objects import NAMESPACE as OBJECTS
from kvstore.policy import Rows
from kvstore.removed import Removed
from kvstore.spec import Part
from kvstore.tiers.base import Name
from kvstore.tiers.remote.names import pack

if TYPE_CHECKING:
    from kvstore.tiers.peers import PeersTier

BACKLOG = 100_000  # parts of which others are to be told; with more of them all is told anew
AT_ONCE = 512
ROWS_AT_ONCE = 64  # looked at under the lock
PAUSE_S = 0.25  # while the directory is not to be used
TELL_S = 0.1  # uses are told of so often


class _Touched(NamedTuple):
    namespace: str
    spec: bytes
    key: bytes
    part: Part


def sharing_of(core: Core) -> Sharing | None:
    """The sharing of a store, if a directory of hosts is among its tiers."""
    if core.peers is None or core.uses is None:
        return None
    from kvstore.tiers.peers import PeersTier

    tier = core.tiers[core.peers]
    return Sharing(core, core.peers, tier, core.uses) if isinstance(tier, PeersTier) else None


class Sharing:
    """Keeps the directory up with the index, in a thread of its own, and tells owners of uses in another."""

    def __init__(self, core: Core, number: int, tier: PeersTier, uses: _native.UseLog) -> None:
        """`uses` is of that tier, whose number it is."""
        self._core, self._number, self._tier, self._uses = core, number, tier, uses
        self._touched: deque[_Touched] = deque()
        self._batch: list[_Touched] = []
        self._changed = threading.Condition()
        self._stop = threading.Event()
        self._gone = threading.Event()
        self._anew = self._telling_all = False
        self._threads = [
            threading.Thread(target=self._publish_all, name="kvstore-peers-publish", daemon=True),
            threading.Thread(target=self._tell_all, name="kvstore-peers-uses", daemon=True),
        ]

    def start(self) -> None:
        """Begin to tell of uses."""
        self._tier.watch_hosts(self._gone.set)
        self._threads[1].start()

    def advertise(self, where: str) -> None:
        """Tell other hosts of this one, which is reached there, and of what it holds, now and from now on."""
        self._core.events.listen(self._hear)
        self._tier.directory.advertise(where, self._begin_anew)
        self._threads[0].start()

    @property
    def waiting(self) -> int:
        """Parts of which the directory is to be told; 1 more while it is told of everything."""
        return len(self._touched) + len(self._batch) + (self._anew or self._telling_all)

    def close(self) -> None:
        """Stop, and give the lease up: what the directory says of this host counts for nothing from now on."""
        with self._changed:
            self._stop.set()
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._tier.directory.close()

    def _hear(self, kind: str, namespace: str, key: bytes, spec: bytes, part: Part) -> None:
        """Something became of a part; what, the publishing thread sees for itself. Called under the store's lock."""
        del kind
        if namespace == OBJECTS:  # they are other hosts' already
            return
        if len(self._touched) >= BACKLOG:
            self._anew = True
            return
        self._touched.append(_Touched(namespace, spec, key, part))
        if len(self._touched) == 1:
            with self._changed:
                self._changed.notify_all()

    def _begin_anew(self) -> None:
        with self._changed:
            self._anew = True
            self._changed.notify_all()

    def _publish_all(self) -> None:
        while not self._stop.is_set():
            with self._changed:
                if not self._touched and not self._anew and not self._batch:
                    self._changed.wait(PAUSE_S)
            if not (self._tier.directory.is_open and self._tier.directory.life):
                self._stop.wait(PAUSE_S)
                continue
            try:
                if self._anew:
                    self._publish_index()
                else:
                    self._publish_some()
            except KVStoreError:  # the directory's breaker knows; the batch is told again
                self._stop.wait(PAUSE_S)

    def _publish_index(self) -> None:
        """Tell of everything, as when a life has begun."""
        core, cursor = self._core, 0
        self._telling_all, self._anew = True, False
        self._touched.clear()
        self._batch = []
        try:
            while cursor >= 0 and not self._stop.is_set() and not self._anew:
                names, life = [], self._tier.directory.life
                with core.lock:
                    rows, cursor = core.index.chunks(cursor, ROWS_AT_ONCE)
                    for row in rows.tolist():
                        names += self._own_parts(row)
                if names:
                    self._tier.directory.publish(names, life)
        except KVStoreError:
            self._anew = True
            raise
        finally:
            self._telling_all = False

    def _own_parts(self, row: int) -> list[bytes]:
        """Packed names of what is this host's of a chunk. Needs the lock."""
        core, index = self._core, self._core.index
        chunk, scope, found = index.chunk(row), core.catalog.scopes[index.chunk(row).scope], list[bytes]()
        for part_row in index.chunk_parts(row) if scope.namespace.name != OBJECTS else ():
            if self._is_own(part_row):
                part = index.part(part_row)
                which = Part(part.group, part.rank, (part.layer_start, part.layer_end))
                found.append(pack(Name(scope.namespace.digest, scope.spec.digest, chunk.key, which)))
        return found

    def _publish_some(self) -> None:
        while self._touched and len(self._batch) < AT_ONCE:
            self._batch.append(self._touched.popleft())
        here, gone, life = dict[bytes, None](), dict[bytes, None](), self._tier.directory.life
        for start in range(0, len(self._batch), ROWS_AT_ONCE):
            with self._core.lock:
                for touched in self._batch[start : start + ROWS_AT_ONCE]:
                    name = Name(namespace_digest(touched.namespace), touched.spec, touched.key, touched.part)
                    (here if self._holds(name) else gone)[pack(name)] = None
        if here:
            self._tier.directory.publish(list(here), life)
        if gone:
            self._tier.directory.withdraw(list(gone), life)
        self._batch = []

    def _holds(self, name: Name) -> bool:
        """Whether this host is the one to tell of a record. Needs the lock."""
        scope = self._core.catalog.find(name.namespace, name.spec)
        if scope is None:
            return False
        _, row = self._core.find_part(scope, name.key, name.part)
        return row >= 0 and self._is_own(row)

    def _is_own(self, part_row: int) -> bool:
        """Whether a tier of this host's own has a part, and no other host as far as it knows. Needs the lock."""
        core, index = self._core, self._core.index
        tiers = [index.placement(each).tier for each in index.part_placements(part_row)]
        return self._number not in tiers and any(not core.tiers[tier].shared for tier in tiers)

    def _tell_all(self) -> None:
        while not self._stop.wait(TELL_S):
            copies = dict[int, int]()
            with self._core.lock:
                uses = self._uses.take()
            for prefix in reversed(uses):
                for location, placement in self._copies(prefix):  # the last use first: it is to be the last there, too
                    copies.setdefault(location, placement)
            if copies:
                self._take_over(copies, self._tier.tell_used(list(copies)))
            if self._gone.is_set():
                self._gone.clear()
                self._take_over_gone()

    def _take_over_gone(self) -> None:
        """What hosts had that are gone is known no more, and what this one has of it is its own."""
        core, cursor = self._core, 0
        while cursor >= 0 and not self._stop.is_set():
            with core.lock:
                rows, cursor = core.index.chunks(cursor, ROWS_AT_ONCE)
                copies = dict(each for row in rows.tolist() for each in self._copies_of(row))
            self._take_over(copies, [location for location in copies if self._tier.is_gone(location)])

    def _copies(self, rows: Rows) -> list[tuple[int, int]]:
        """Locations and placements of what other hosts have of chunks of one prefix, root first."""
        found, listed = list[tuple[int, int]](), rows.tolist()
        for start in range(0, len(listed), ROWS_AT_ONCE):
            with self._core.lock:
                for row in listed[start : start + ROWS_AT_ONCE]:
                    with contextlib.suppress(IndexError):  # it is gone by now
                        found += self._copies_of(row)
        return found

    def _copies_of(self, row: int) -> list[tuple[int, int]]:
        core = self._core
        return [(core.index.placement(each).loc, each) for each in core.placements(row, self._number)]

    def _take_over(self, copies: Mapping[int, int], lost: Sequence[int]) -> None:
        """What another host has let go of is this one's from now on, if it has a copy."""
        core, removed = self._core, Removed()
        if not lost:
            return
        with core.lock:
            for location in lost:
                placement = copies[location]
                try:
                    place = core.index.placement(placement)
                except IndexError:  # it is gone by now
                    continue
                if (place.tier, place.loc) == (self._number, location) and not place.readers:
                    scope = core.catalog.scopes[core.index.chunk(core.chunk_of(placement)).scope]
                    core.withdraw(scope, placement, removed)
        core.settle(removed)
