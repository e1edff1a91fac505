"""Host memory that devices reach by themselves.

A copy between a device and ordinary host memory goes through the driver's own small buffers, at a fifth of the bus;
memory that is registered with CUDA is read and written by the device. Registering costs time by the page, so it is done
once for a long-lived mapping: an extent of the arena, or what a client has mapped of one.
"""

from __future__ import annotations

import threading
from bisect import bisect_left, bisect_right
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from kvstore import _native
from kvstore.errors import InvalidArgument, StorageError

if TYPE_CHECKING:
    import torch


class Registrar(Protocol):
    """What registers memory: a device's `Context`, or `NoDevice`."""

    @property
    def takes_read_only(self) -> bool: ...
    def register(self, address: int, nbytes: int, *, read_only: bool) -> None: ...
    def unregister(self, address: int) -> None: ...


class NoDevice:
    """Where all memory is host memory, there is nothing to do."""

    takes_read_only = True

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        """Nothing."""

    def unregister(self, address: int) -> None:
        """Nothing."""


class Pin:
    """A use of registered memory, which stays mapped and registered until `close`."""

    def __init__(self, pins: Pins, memory: memoryview, start: int) -> None:
        self._pins, self._memory, self._start = pins, memory, start
        self._open = True

    def close(self) -> None:
        """Unregister it, if this is its last use. No copy may be under way. A second call does nothing."""
        if self._open:
            self._open = False
            self._pins._release(self._start)
            self._memory.release()


class _Range:
    """Registered memory."""

    def __init__(self, start: int, nbytes: int, read_only: bool) -> None:
        self.start, self.end, self.read_only = start, start + nbytes, read_only
        self.uses = 1


class Pins:
    """What is registered in this process. Any thread may ask."""

    def __init__(self, registrar: Registrar) -> None:
        self._registrar = registrar
        self._lock = threading.Lock()
        self._ranges: dict[int, _Range] = {}
        self._table: tuple[list[int], list[_Range]] = ([], [])  # replaced as a whole: readers take no lock

    def register(self, memory: memoryview) -> Pin:
        """Register a mapping; one that is registered already is counted as used once more.

        Memory that this process may only read is registered for reading. Raises `StorageError` where the device does
        not take it (it can be copied to and from all the same, more slowly).
        """
        memory = memory[:]  # holds the mapping, whatever its owner does
        start, nbytes = _native.address_of(memory), memory.nbytes
        if not nbytes:
            raise InvalidArgument("an empty piece of memory cannot be registered")
        with self._lock:
            known = self._ranges.get(start)
            if known is not None and known.end - start >= nbytes and known.read_only <= memory.readonly:
                known.uses += 1
                return Pin(self, memory, start)
            if memory.readonly and not self._registrar.takes_read_only:
                raise StorageError("this device does not take host memory that may only be read")
            self._registrar.register(start, nbytes, read_only=memory.readonly)
            self._ranges[start] = _Range(start, nbytes, memory.readonly)
            self._publish()
        return Pin(self, memory, start)

    def covers(self, address: int, nbytes: int, *, writing: bool) -> bool:
        """Whether devices read (or, `writing`, write) so many bytes of host memory by themselves."""
        starts, ranges = self._table
        found = bisect_right(starts, address) - 1
        if found < 0:
            return False
        known = ranges[found]
        return address + nbytes <= known.end and not (writing and known.read_only)

    def pieces(self, address: int, nbytes: int, *, writing: bool) -> list[tuple[int, int]]:
        """Host memory as (start in it, bytes), cut where registered memory begins or ends.

        Raises `InvalidArgument` where devices are to write (`writing`) to what is registered for reading.
        """
        starts, ranges = self._table
        end, edges = address + nbytes, {address, address + nbytes}
        for known in ranges[max(0, bisect_right(starts, address) - 1) : bisect_left(starts, end)]:
            if known.end > address and nbytes and writing and known.read_only:
                raise InvalidArgument("what is read into is registered for reading only")
            edges.update(edge for edge in (known.start, known.end) if address < edge < end)
        ordered = sorted(edges)
        return [(first - address, last - first) for first, last in pairwise(ordered)]

    @property
    def nbytes(self) -> int:
        """How many bytes are registered."""
        return sum(each.end - each.start for each in self._table[1])

    def _release(self, start: int) -> None:
        with self._lock:
            known = self._ranges[start]
            known.uses -= 1
            if known.uses == 0:
                del self._ranges[start]
                self._publish()
                self._registrar.unregister(start)

    def _publish(self) -> None:
        ranges = [self._ranges[start] for start in sorted(self._ranges)]
        self._table = [each.start for each in ranges], ranges


def pins_of(device: torch.device) -> Pins:
    """What this process has registered for devices of a kind; the first device to ask is the one that registers."""
    with _lock:
        if device.type not in _pins:
            from kvstore.tiers.hbm.driver import Context

            _pins[device.type] = Pins(Context(device.index) if device.type == "cuda" else NoDevice())
        return _pins[device.type]


_pins: dict[str, Pins] = {}
_lock = threading.Lock()
