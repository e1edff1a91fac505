"""The arena: DRAM in extents, each a memfd of its own and owned by one namespace for as long as it lives.

What a tenant may map is thus never another's. Extents are populated before they are used, because the first touch
of fresh pages costs more than the copy itself; a thread makes them ahead of need. Inside an extent a native
allocator hands out 4 KiB-aligned ranges without a system call.

A location is `extent number << 40 | offset`.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from collections import Counter
from dataclasses import dataclass

from kvstore import _native
from kvstore.errors import Closed, ConfigError, PermissionDenied, StorageError
from kvstore.places import EXTENT_SHIFT
from kvstore.record import BLOCK

_SHIFT = EXTENT_SHIFT
_OFFSET = (1 << _SHIFT) - 1
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; the standard library has no name for it
# A descriptor that is merely read-only can be opened again for writing through /proc, and a memfd that is cut off
# under its owner kills it. What the owner mapped before stays writable to it.
_SEALS = _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


@dataclass(eq=False)
class Extent:
    """One memfd, mapped and populated. `view` spans all of it."""

    number: int
    fd: int
    memory: mmap.mmap
    view: memoryview
    allocator: _native.Allocator
    owner: bytes | None = None

    @classmethod
    def make(cls, number: int, size: int) -> Extent:
        """Create, populate and seal an extent of `size` bytes."""
        fd = -1
        try:
            fd = os.memfd_create(f"kvstore-extent-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(fd, size)
            memory = mmap.mmap(fd, size, mmap.MAP_SHARED)
            view = memoryview(memory)
            _native.populate(view)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            if fd >= 0:
                os.close(fd)
            raise StorageError(f"no memory for an extent of {size} bytes: {error.strerror}") from error
        return cls(number, fd, memory, view, _native.Allocator(size, BLOCK))

    def destroy(self) -> None:
        """Give the memory back. Views that readers still hold keep their pages until they are dropped."""
        self.view.release()
        with contextlib.suppress(BufferError):
            self.memory.close()
        os.close(self.fd)


class Arena:
    """Extents for all namespaces. Callers hold `lock` around everything but `view`, `wait` and `close`."""

    def __init__(self, capacity: int, extent_bytes: int) -> None:
        self.extent_bytes = min(extent_bytes, capacity) // BLOCK * BLOCK
        if self.extent_bytes < 1:
            raise ConfigError(f"[dram] needs an extent and a capacity of at least {BLOCK} bytes, not {capacity}")
        count = capacity // self.extent_bytes
        self.capacity = count * self.extent_bytes
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
        self._failure: StorageError | None = None
        self._change = threading.Condition()
        self._maker = threading.Thread(target=self._make_extents, name="kvstore-arena", daemon=True)
        self._maker.start()

    @property
    def used(self) -> int:
        """Bytes of live allocations."""
        return sum(extent.allocator.used for extent in self._extents.values())

    @property
    def pending(self) -> bool:
        """Whether extents are still being made."""
        return self._pending > 0

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
            self._pending += 1
            self._promised[taker] += 1
            self._change.notify_all()
        return True

    def close(self) -> None:
        """Stop making extents and give all of them back; after `end`."""
        for each in self._holdings.values():
            each.wait_for_users()
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._maker.join()
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
            try:
                extent = Extent.make(number, self.extent_bytes)
            except StorageError as error:
                with self._change:
                    self._failure, self._pending = error, 0
                    self._change.notify_all()
                continue
            with self._change:
                self._spare.append(extent)
                self._pending -= 1
                self._change.notify_all()
