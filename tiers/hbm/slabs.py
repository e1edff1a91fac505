"""Slabs: pieces of device memory, each of one owner as long as anything of it lies there.

CUDA IPC hands out a whole slab, for reading and for writing; so where that is wanted the owner is a namespace, and what
an engine has opened is never another tenant's. A slab that was handed out stays its owner's for good, since that cannot
be taken back. Of the others, one that has become empty goes to whoever needs it, with zeros in it. While a namespace
has no slab yet, one is left for it: who comes first does not get them all for good.

A location is `slab number << 40 | offset`.
"""

from __future__ import annotations

import fcntl
import os
import threading
import uuid
from collections.abc import Callable, Sequence
from typing import Self

import torch

from kvstore import _native
from kvstore.errors import ConfigError, KVStoreError, StorageError
from kvstore.places import EXTENT_SHIFT
from kvstore.record import BLOCK

_OFFSET = (1 << EXTENT_SHIFT) - 1
# A file that is cut off under its owner kills it.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Slab:
    """Memory of one device as a uint8 tensor. `file` is its descriptor where it is host memory, else -1."""

    def __init__(self, number: int, memory: torch.Tensor, file: int = -1) -> None:
        self.number, self.memory, self.file = number, memory, file
        self.identity = uuid.uuid4().hex  # not given twice, whatever process or tier it was
        self.address, self.nbytes = memory.data_ptr(), memory.nbytes
        self.allocator = _native.Allocator(self.nbytes, BLOCK)
        self.owner: bytes | None = None
        self.last_owner: bytes | None = None
        self.exported = ""  # how another process opens it, once it has been handed out

    @classmethod
    def make(cls, number: int, nbytes: int, device: torch.device) -> Self:
        """Allocate. Raises `StorageError` where there is no memory."""
        try:
            if device.type == "cuda":
                return cls(number, torch.empty(nbytes, dtype=torch.uint8, device=device))
            # A file in memory, so that another process can open it as it would open device memory.
            file = os.memfd_create(f"kvstore-hbm-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            try:
                os.ftruncate(file, nbytes)
                fcntl.fcntl(file, fcntl.F_ADD_SEALS, _SEALS)
                memory = _native.map_file(file, nbytes, writable=True)
                _native.populate(memory)
            except OSError:
                os.close(file)
                raise
        except (RuntimeError, OSError) as error:  # torch's OutOfMemoryError is a RuntimeError
            raise StorageError(f"no memory for a slab of {nbytes} bytes on {device}: {error}") from error
        return cls(number, torch.from_numpy(memory), file)

    def close(self) -> None:
        """The memory goes when nobody has a view of it any more; other processes can open it no longer."""
        if self.file >= 0:
            os.close(self.file)
            self.file = -1


class Slabs:
    """All slabs of a tier, allocated up front."""

    def __init__(
        self, capacity: int, slab_bytes: int, device: torch.device, clear: Callable[[Slab], None], owners: int = 1
    ) -> None:
        """`clear` fills a slab with zeros; each of so many `owners` is left one slab.

        Raises `ConfigError` for sizes that cannot work, `StorageError`.
        """
        self.slab_bytes = min(slab_bytes, capacity) // BLOCK * BLOCK
        if self.slab_bytes < BLOCK or self.slab_bytes > _OFFSET:
            raise ConfigError(
                f"[hbm] capacity and slab must be {BLOCK} bytes or more (slabs {_OFFSET} at most), not "
                f"{capacity} and {slab_bytes}"
            )
        self.capacity = capacity // self.slab_bytes * self.slab_bytes
        self._clear, self._owners = clear, owners
        self._lock = threading.Lock()
        self._all: list[Slab] = []
        try:
            for number in range(capacity // self.slab_bytes):
                self._all.append(Slab.make(number, self.slab_bytes, device))
        except StorageError:
            self.close()
            raise
        self._spare = list(self._all)
        self._owned: dict[bytes, list[Slab]] = {}

    @property
    def used(self) -> int:
        """Bytes of live records."""
        with self._lock:
            return sum(slab.allocator.used for slab in self._all)

    @property
    def all(self) -> Sequence[Slab]:
        """Every slab, until `close`."""
        return self._all

    @property
    def exported(self) -> int:
        """How many slabs were handed out to other processes."""
        return sum(1 for slab in self._all if slab.exported)

    def alloc(self, owner: bytes, nbytes: int) -> int:
        """The location of `nbytes` bytes in one of an owner's slabs, or -1 if there is no room."""
        with self._lock:
            for slab in self._owned.get(owner, ()):
                offset = slab.allocator.alloc(nbytes)
                if offset >= 0:
                    return slab.number << EXTENT_SHIFT | offset
            taken = self._take(owner) if nbytes <= self.slab_bytes else None
        if taken is None:
            return -1
        if taken.last_owner not in (None, owner):
            try:
                self._clear(taken)
            except KVStoreError:
                with self._lock:
                    self._spare.append(taken)
                raise
        with self._lock:
            offset = taken.allocator.alloc(nbytes)
            taken.owner = taken.last_owner = owner
            self._owned.setdefault(owner, []).append(taken)
            return taken.number << EXTENT_SHIFT | offset

    def free(self, location: int, nbytes: int) -> None:
        """Give back what `alloc` gave; after `close` there is nothing to do."""
        with self._lock:
            found = self.at(location)
            if found is None:
                return
            slab, offset = found
            slab.allocator.free(offset, nbytes)
            if slab.allocator.used == 0 and slab.owner is not None and not slab.exported:
                self._owned[slab.owner].remove(slab)
                slab.owner = None
                self._spare.append(slab)

    def at(self, location: int) -> tuple[Slab, int] | None:
        """The slab that a location is in, and where in it; None if there is none."""
        number = location >> EXTENT_SHIFT
        if not 0 <= number < len(self._all):
            return None
        return self._all[number], location & _OFFSET

    def owned(self, number: int, owner: bytes) -> Slab | None:
        """The slab of a number, if it is an owner's."""
        found = self.at(number << EXTENT_SHIFT)
        return None if found is None or found[0].owner != owner else found[0]

    def export(self, slab: Slab, describe: Callable[[Slab], str]) -> str:
        """What another process opens a slab with; `describe` is asked once."""
        with self._lock:
            if not slab.exported:
                slab.exported = describe(slab)
            return slab.exported

    def close(self) -> None:
        """Give the memory back, as soon as those who use it now are done."""
        with self._lock:
            for slab in self._all:
                slab.close()
            self._all, self._spare, self._owned = [], [], {}

    def _take(self, owner: bytes) -> Slab | None:
        """A spare slab: one that the owner had before, else one that nobody had, else any.

        None where those that are left are for owners who have none yet.
        """
        having = {each for each, slabs in self._owned.items() if slabs}
        left_for_others = max(0, self._owners - len(having)) if owner in having else 0
        if len(self._spare) <= left_for_others:
            return None
        taken = min(self._spare, key=lambda slab: (slab.last_owner != owner, slab.last_owner is not None))
        self._spare.remove(taken)
        return taken
