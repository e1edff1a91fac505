"""Memory of clients from which they put: sealed memfds that this process has mapped read-only."""

from __future__ import annotations

import fcntl
import mmap
import os
import threading

from kvstore import _native
from kvstore.channels.stream import encode
from kvstore.errors import InvalidArgument, Shed, StorageError
from kvstore.settings import size_text
from kvstore.v1 import kvstore_pb2 as pb
from kvstore.wire import STAGED_PUT_PREFIX

MAX_PIECES = 64
MAX_BYTES = 4 << 30
STORED, KNOWN = (pb.PutResponse(stored=stored).SerializeToString() for stored in (True, False))
_ANSWER = encode(pb.METHOD_PUT_STAGED, STORED)


class StagingArea:
    """The staging memory of one session, by the numbers that its client has given to the pieces.

    `puts` takes puts from it without Python, of what it has been taught (`kvstore.intake`).
    """

    def __init__(self) -> None:
        self.puts = _native.StagedPuts(pb.METHOD_PUT_STAGED, STAGED_PUT_PREFIX, _ANSWER)
        self._pieces: dict[int, memoryview] = {}
        self._bytes = 0
        self._closed = False
        self._lock = threading.Lock()

    def add(self, number: int, nbytes: int, descriptor: int) -> None:
        """Map a piece; the descriptor stays the caller's.

        `InvalidArgument` for what is no memfd sealed against shrinking, or not of `nbytes` bytes; `Shed` where the
        session has as much as it may have.
        """
        check_sealed(descriptor, nbytes, "staging")
        with self._lock:
            if self._closed or number in self._pieces:
                raise InvalidArgument(f"staging {number} is known already; every piece needs a number of its own")
            if len(self._pieces) >= MAX_PIECES or self._bytes + nbytes > MAX_BYTES:
                raise Shed(
                    f"a session stages up to {MAX_PIECES} pieces and {size_text(MAX_BYTES)} in all; it has "
                    f"{len(self._pieces)} pieces of {self._bytes} bytes, and {nbytes} more were offered",
                    "staging",
                )
            try:
                memory = _native.map_file(descriptor, nbytes)
            except OSError as error:
                raise StorageError(f"staging of {nbytes} bytes cannot be mapped: {error.strerror}") from None
            self._pieces[number] = memory.data
            self.puts.add_memory(number, memory)
            self._bytes += nbytes
        _native.populate_read(memory)

    def memory(self, number: int, offset: int, nbytes: int) -> memoryview:
        """Bytes of a piece; `InvalidArgument` unless this session has staged them."""
        piece = self._pieces.get(number)
        if piece is None:
            raise InvalidArgument(f"this session has no staging {number}; send Stage with its descriptor first")
        if offset + nbytes > len(piece):
            raise InvalidArgument(f"{nbytes} bytes at {offset} end outside staging {number} of {len(piece)} bytes")
        return piece[offset : offset + nbytes]

    def close(self) -> None:
        """Unmap everything."""
        with self._lock:
            self._closed = True
            self._pieces.clear()


def check_sealed(descriptor: int, nbytes: int, what: str) -> None:
    """Refuse memory that its owner could take away under a reader: that would kill this process."""
    try:
        seals = fcntl.fcntl(descriptor, fcntl.F_GET_SEALS)
        size = os.fstat(descriptor).st_size
        page = os.fstatvfs(descriptor).f_bsize
    except OSError:
        raise InvalidArgument(f"{what} is a memfd with the seal F_SEAL_SHRINK; this descriptor is none") from None
    if not seals & fcntl.F_SEAL_SHRINK:
        raise InvalidArgument(f"this {what} is not sealed against shrinking; add F_SEAL_SHRINK before it is sent")
    if page != mmap.PAGESIZE:  # a hole in it could not be filled once the host's huge pages are gone
        raise InvalidArgument(f"{what} in huge pages is not taken; make the memfd without MFD_HUGETLB")
    if size != nbytes or nbytes < 1:
        raise InvalidArgument(f"{what} of {nbytes} bytes was announced; the descriptor has {size}")
