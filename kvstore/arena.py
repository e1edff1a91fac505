"""The arena: DRAM in extents, each a memfd of its own and owned by one namespace for as long as it lives.

What a tenant may map is thus never another's. Extents are populated before they are used, because the first touch
of fresh pages costs more than the copy itself; a thread makes them ahead of need. Inside an extent a native
allocator hands out 4 KiB-aligned ranges without a system call.

A location is `extent number << 40 | offset`.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections import Counter
from collections.abc import Sequence

from kvstore import _native, numa
from kvstore.errors import Closed, ConfigError, PermissionDenied, StorageError
from kvstore.extent import Extent, Making
from kvstore.places import EXTENT_SHIFT
from kvstore.record import BLOCK

_SHIFT = EXTENT_SHIFT
_OFFSET = (1 << _SHIFT) - 1


class Arena:
    """Extents for all namespaces. Callers hold `lock` around everything but `view`, `wait` and `close`.

    Extents lie in turn on the NUMA `nodes` that are named, or, where they can, on all that have processors. Their
    pages are `pages` (`kvstore.extent`), and locked in memory with `lock_memory`. `ConfigError` for what cannot be had.
    """

    def __init__(
        self, capacity: int, extent_bytes: int, *, nodes: Sequence[int] | None = None, pages: str = "auto",
        lock_memory: bool = False,
    ) -> None:  # fmt: skip
        self.extent_bytes = min(extent_bytes, capacity) // BLOCK * BLOCK
        if self.extent_bytes < 1:
            raise ConfigError(f"[dram] needs an extent and a capacity of at least {BLOCK} bytes, not {capacity}")
        count = capacity // self.extent_bytes
        self.capacity = count * self.extent_bytes
        self._making = Making(self.extent_bytes, pages, lock_memory)
        self._making.check(self.capacity)
        self._is_bound = nodes is not None
        self._nodes = _usable_nodes(nodes)
        self._on_node: Counter[int | None] = Counter()
        self._progress = 0  # bytes of the extent that is being made
        self.lock = _native.Mutex()
        self.epoch = 0  # grows when an extent is handed out or destroyed
        self._extents: dict[int, Extent] = {}
        self._owned: dict[bytes, list[Extent]] = {}
        self._holdings: dict[bytes, _native.Holdings] = {}
        self._ended = False
        self._spare: list[Extent] = []
        self._promised: Counter[bytes] = Counter()
        self._pending = count
        self._made = 0
        self._closed = False
        self._failure: StorageError | ConfigError | None = None
        self._change = threading.Condition()
        self._maker = threading.Thread(target=self._make_extents, name="kvstore-arena", daemon=True)
        self._maker.start()
        atexit.register(self._stop_making)  # a thread that the interpreter's end meets in native code takes it down

    @property
    def used(self) -> int:
        """Bytes of live allocations."""
        return sum(extent.allocator.used for extent in self._extents.values())

    @property
    def pending(self) -> bool:
        """Whether extents are still being made."""
        return self._pending > 0

    def stats(self) -> dict[str, float | int | str]:
        """What extents there are, of what pages and on which nodes, and how many bytes are still being populated."""
        with self._change:
            extents = [*self._extents.values(), *self._spare]
            progress = self._progress  # with the extents: the next one may begin anew
            pending = self._pending * self.extent_bytes - progress
        kinds = Counter(each.pages for each in extents)
        nodes = Counter(str(each.node) for each in extents if each.node is not None)
        return {
            "extents": len(extents),
            "populated_bytes": len(extents) * self.extent_bytes + progress,
            "to_populate_bytes": max(0, pending),
            "pages": _told(kinds) or "none yet",
            "huge_page_bytes": sum(each.huge for each in extents),
            "nodes": _told(nodes) or "any",
            "locked": "yes" if self._making.lock else "no",
        }

    def owned(self, owner: bytes) -> int:
        """Bytes of the extents that a namespace owns."""
        return len(self._owned.get(owner, ())) * self.extent_bytes

    def alloc(self, owner: bytes, nbytes: int) -> int:
        """The location of `nbytes` bytes in one of the owner's extents, or -1 if there is no room (yet)."""
        holdings = self.holdings(owner)
        location = holdings.alloc(nbytes)
        if location < 0 and nbytes <= self.extent_bytes and self._take(owner):
            return holdings.alloc(nbytes)
        return location

    def holdings(self, owner: bytes) -> _native.Holdings:
        """A namespace's extents, for native code that allocates."""
        found = self._holdings.get(owner)
        if found is None:
            found = self._holdings[owner] = _native.Holdings(self.lock)
            if self._ended:
                found.end()
        return found

    def end(self) -> None:
        """From now on nothing is handed out."""
        self._ended = True
        for each in self._holdings.values():
            each.end()

    def free(self, location: int, nbytes: int) -> None:
        """Give an allocation back."""
        self._extents[location >> _SHIFT].allocator.free(location & _OFFSET, nbytes)

    def view(self, location: int, start: int, nbytes: int) -> memoryview:
        """`nbytes` bytes of an allocation, from `start` bytes after its beginning."""
        at = (location & _OFFSET) + start
        extent = self._extents.get(location >> _SHIFT)
        if extent is None:
            raise Closed("the memory was given back: the store is closed")
        return extent.view[at : at + nbytes]

    def open(self, number: int, owner: bytes) -> tuple[int, int]:
        """A descriptor of an owner's extent, which the caller closes, and its size; else `PermissionDenied`."""
        extent = self._extents.get(number)
        if extent is None or extent.owner != owner:
            raise PermissionDenied(f"this namespace has no extent {number}")
        return os.dup(extent.fd), self.extent_bytes

    def owner(self, location: int) -> bytes:
        """The namespace that an allocation belongs to."""
        return self._extents[location >> _SHIFT].owner or b""

    def numbers(self, owner: bytes) -> frozenset[int]:
        """The extents that a namespace owns."""
        return frozenset(extent.number for extent in self._owned.get(owner, ()))

    def all_numbers(self) -> frozenset[int]:
        """All extents that there are, those of nobody too."""
        with self._change:
            return frozenset(each.number for each in (*self._extents.values(), *self._spare))

    def memory(self, number: int) -> memoryview | None:
        """All of an extent, whose pages stay as long as this does; None if there is none of that number."""
        with self._change:
            found = (each for each in (*self._extents.values(), *self._spare) if each.number == number)
            return next((each.view[:] for each in found), None)

    def wait(self, owner: bytes, seconds: float) -> bool:
        """Whether there is an extent for `owner` to take, after waiting for the next one if some are being made."""
        with self._change:
            if not self._is_free_for(owner) and self._pending:
                self._change.wait(seconds)
            return self._is_free_for(owner)

    def donor(self, taker: bytes) -> int | None:
        """The extent to empty for a namespace that has fewer extents than some other; None if there is none."""
        owner = max(self._owned, key=lambda each: len(self._owned[each]), default=taker)
        if owner == taker or len(self._owned[owner]) <= len(self._owned.get(taker, ())):
            return None
        return min(self._owned[owner], key=lambda extent: extent.allocator.used).number

    def holds(self, number: int, location: int) -> bool:
        """Whether a location lies in the extent of this number."""
        return location >> _SHIFT == number

    def replace(self, number: int, taker: bytes) -> bool:
        """Destroy an empty extent and have a fresh one made that only `taker` gets; False if it is in use."""
        extent = self._extents[number]
        if extent.allocator.used or extent.owner is None:
            return False
        self._owned[extent.owner].remove(extent)
        self.holdings(extent.owner).remove(number)
        del self._extents[number]
        self.epoch += 1
        extent.destroy()
        with self._change:
            self._on_node[extent.node] -= 1
            self._pending += 1
            self._promised[taker] += 1
            self._change.notify_all()
        return True

    def close(self) -> None:
        """Stop making extents and give all of them back; after `end`."""
        for each in self._holdings.values():
            each.wait_for_users()
        self._stop_making()
        atexit.unregister(self._stop_making)
        self.epoch += 1
        for extent in [*self._extents.values(), *self._spare]:
            extent.destroy()
        self._extents.clear()
        self._owned.clear()
        self._spare.clear()

    def _take(self, owner: bytes) -> bool:
        with self._change:
            if not self._is_free_for(owner):
                if self._failure and not self._extents:
                    raise self._failure
                return False
            extent = self._spare.pop(0)
            self._promised -= Counter([owner])
        extent.owner = owner
        self._extents[extent.number] = extent
        self._owned.setdefault(owner, []).append(extent)
        self.holdings(owner).add(extent.number, extent.view, extent.allocator)
        self.epoch += 1
        return True

    def _is_free_for(self, owner: bytes) -> bool:
        """Whether an owner may take a spare extent: one promised to it, or one promised to nobody."""
        return bool(self._spare) and (self._promised[owner] > 0 or len(self._spare) > self._promised.total())

    def _make_extents(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._pending or self._closed)
                if self._closed:
                    return
                self._made += 1
                number = self._made
                node = min(self._nodes, key=lambda each: self._on_node[each])
            try:
                extent = Extent.make(
                    number, self._making, node, strict=self._is_bound, progress=self._note_progress
                )  # fmt: skip
            except (StorageError, ConfigError) as error:
                with self._change:
                    self._failure, self._pending, self._progress = error, 0, 0
                    self._change.notify_all()
                continue
            with self._change:
                self._spare.append(extent)
                self._on_node[node] += 1
                self._pending -= 1
                self._progress = 0
                self._change.notify_all()

    def _note_progress(self, nbytes: int) -> None:
        if self._closed:
            raise StorageError("the arena is closed: the extent is not needed any more")
        self._progress = nbytes

    def _stop_making(self) -> None:
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._maker.join()


def _told(counts: Counter[str]) -> str:
    """The one thing that was counted, or how often each was."""
    return next(iter(counts), "") if len(counts) < 2 else ", ".join(f"{n} × {what}" for what, n in counts.items())


def _usable_nodes(nodes: Sequence[int] | None) -> list[int | None]:
    """Nodes to spread extents over; None alone where the kernel is left to choose.

    `ConfigError` for named ones that cannot be used.
    """
    wanted = numa.nodes_with_cpus() if nodes is None else list(nodes)
    if nodes is None and len(wanted) < 2:
        return [None]
    if not wanted:
        raise ConfigError("[dram] nodes: name a NUMA node, or leave it out")
    numa.check_nodes(wanted, "[dram] nodes")
    try:
        for node in wanted:
            probe, _ = _native.map_aligned(-1, BLOCK)
            numa.bind(probe, node, "[dram] nodes")
    except ConfigError:
        if nodes is not None:
            raise
        return [None]
    return [*wanted]
