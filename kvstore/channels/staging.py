"""Staging memory: memfds of the client's that the server reads, so that a put moves no payload through a socket."""

from __future__ import annotations

import fcntl
import itertools
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from kvstore import _native
from kvstore.channels.mappings import MAPPINGS
from kvstore.errors import StorageError

SEGMENT_BYTES = 64 << 20
MAX_SEGMENTS = 64  # what a server maps for one client
MAX_BYTES = 4 << 30
_GRAIN = 4096
# A memfd that its owner could cut off would kill the server at its next read.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Segment:
    """One memfd, mapped, populated and sealed. `number` is its name to the server."""

    def __init__(self, number: int, nbytes: int) -> None:
        self.number = number
        self.nbytes = nbytes
        self.descriptor = -1
        try:
            self.descriptor = os.memfd_create("kvstore-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.descriptor, nbytes)
            memory = _native.map_file(self.descriptor, nbytes, writable=True)
            _native.populate(memory)
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, _SEALS)
        except OSError as error:
            raise StorageError(f"no memory for staging of {nbytes} bytes: {error.strerror}") from None
        self.start = _native.address_of(memory)
        self.view = MAPPINGS.add(memory)
        self.allocator = _native.Allocator(nbytes, _GRAIN)

    def __del__(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class Piece:
    """A range of a segment; `data` is its memory."""

    segment: Segment
    offset: int
    data: memoryview


class Staging:
    """The staging memory of one client. It grows as needed and is used again, never given back before the end."""

    def __init__(self) -> None:
        self._segments: list[Segment] = []
        self._numbers = itertools.count(1)
        self._loans = itertools.count()
        self._lock = threading.Lock()
        # Filled by the garbage collector, which may run in a thread that holds the lock.
        self._returned: deque[tuple[Segment, int, int]] = deque()
        self._lent: dict[int, weakref.ref[Any]] = {}

    def array(self, shape: int | Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """An array in staging memory until nothing stands on it any more; in ordinary memory if none is left."""
        sizes = (shape,) if isinstance(shape, int) else tuple(shape)
        data = self.lend(prod(sizes) * dtype.itemsize)
        if data is None:
            return np.empty(sizes, dtype)
        return np.frombuffer(data, np.uint8).view(dtype).reshape(sizes)

    def lend(self, nbytes: int) -> memoryview | None:
        """Memory that is free again when nothing stands on it any more; None if there is no room for it."""
        piece = self.take(nbytes)
        if piece is None:
            return None
        exporter = np.frombuffer(piece.data, np.uint8)
        number, range_ = next(self._loans), (piece.segment, piece.offset, nbytes)

        def ended(dead: weakref.ref[Any]) -> None:
            del dead
            self._returned.append(range_)
            self._lent.pop(number, None)

        self._lent[number] = weakref.ref(exporter, ended)
        return exporter.data

    def take(self, nbytes: int) -> Piece | None:
        """Memory until `give_back`; None if there is no room for it."""
        if not 0 < nbytes <= MAX_BYTES:
            return None
        with self._lock:
            while self._returned:
                segment, offset, length = self._returned.popleft()
                segment.allocator.free(offset, length)
            for segment in self._segments:
                offset = segment.allocator.alloc(nbytes)
                if offset >= 0:
                    return Piece(segment, offset, segment.view[offset : offset + nbytes])
            grown = self._grow(nbytes)
            if grown is None:
                return None
            return Piece(grown, grown.allocator.alloc(nbytes), grown.view[:nbytes])

    def give_back(self, piece: Piece) -> None:
        """End a piece; nobody may use its memory any more."""
        self._returned.append((piece.segment, piece.offset, piece.data.nbytes))

    def find(self, data: memoryview) -> tuple[Segment, int] | None:
        """The segment that memory lies in, and its offset there; None for memory of another kind."""
        address, nbytes = _native.address_of(data), data.nbytes
        for segment in self._segments:
            offset = address - segment.start
            if 0 <= offset <= segment.nbytes - nbytes:
                return segment, offset
        return None

    def _grow(self, nbytes: int) -> Segment | None:
        """Needs the lock."""
        size = max(SEGMENT_BYTES, -(-nbytes // _GRAIN) * _GRAIN)
        if len(self._segments) >= MAX_SEGMENTS or sum(each.nbytes for each in self._segments) + size > MAX_BYTES:
            return None
        segment = Segment(next(self._numbers), size)
        self._segments.append(segment)
        return segment
