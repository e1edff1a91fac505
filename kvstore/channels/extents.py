"""The arena's extents as a client on the server's host maps them: read-only, each once."""

from __future__ import annotations

import os
import threading
from typing import Any

from kvstore import _native
from kvstore.channels.mappings import MAPPINGS
from kvstore.channels.stream import Stream
from kvstore.errors import SpecMismatch, StorageError
from kvstore.places import EXTENT_SHIFT

_OFFSET = (1 << EXTENT_SHIFT) - 1


class Extent:
    """One mapped extent. It is unmapped when this object and everything that stands on its memory are gone."""

    def __init__(self, descriptor: int, nbytes: int) -> None:
        self.view = MAPPINGS.add(_native.map_file(descriptor, nbytes))
        self.ready = False
        self._lock = threading.Lock()

    def make_ready(self) -> None:
        """Enter all of its pages into the page table, before the first read: that is cheaper than fault by fault."""
        with self._lock:
            if not self.ready:
                _native.populate_read(self.view)
                self.ready = True


class Extents:
    """The extents that the server has given to one client, by number. Any thread may read."""

    def __init__(self) -> None:
        self._mapped: dict[int, Extent] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._mapped)

    def take(self, stream: Stream, told: Any) -> None:
        """Map what an `Extents` message gives, with the descriptors that came along, and drop what is gone.

        Another connection may have been given the same.
        """
        for each in told.given:
            descriptor = stream.take_descriptor()
            try:
                with self._lock:
                    if each.number not in self._mapped:
                        self._mapped[each.number] = _open(descriptor, each.bytes)
            finally:
                os.close(descriptor)
        for number in told.gone:
            with self._lock:
                self._mapped.pop(number, None)

    def memory(self, location: int, before: int, nbytes: int) -> memoryview | None:
        """`nbytes` bytes at a location and the `before` bytes ahead of them; None in an extent that is not here."""
        extent = self._mapped.get(location >> EXTENT_SHIFT)
        if extent is None:
            return None
        if not extent.ready:
            extent.make_ready()
        at = location & _OFFSET
        if at < before or at + nbytes > len(extent.view):
            raise SpecMismatch(f"the server named {nbytes} bytes at {at} of an extent of {len(extent.view)}")
        return extent.view[at - before : at + nbytes]


def _open(descriptor: int, nbytes: int) -> Extent:
    if os.fstat(descriptor).st_size < nbytes:
        raise SpecMismatch(f"the server gave a descriptor that is shorter than the {nbytes} bytes it announced")
    try:
        return Extent(descriptor, nbytes)
    except OSError as error:
        raise StorageError(f"an extent of {nbytes} bytes cannot be mapped: {error.strerror}") from None
