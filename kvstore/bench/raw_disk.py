"""The baseline of the NVMe tier: plain Python threads that read and write one file with O_DIRECT."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path

from kvstore.bench.contest import in_threads

PIECE = 8 << 20


class RawFile:
    """A preallocated file of `nbytes`, every block of it written once, open with O_DIRECT where that works."""

    def __init__(self, path: Path, nbytes: int) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self._fd = os.open(path, flags | os.O_DIRECT)
        except OSError:
            self._fd = os.open(path, flags)
        os.posix_fallocate(self._fd, 0, nbytes)
        with mmap.mmap(-1, PIECE) as piece:
            for offset in range(0, nbytes, PIECE):
                os.pwrite(self._fd, piece, offset)
        os.fdatasync(self._fd)

    def write(self, threads: int, offset: int, pieces: Sequence[memoryview]) -> float:
        """Seconds to write pieces of one length from `offset` on, and to flush them."""
        fd, size = self._fd, len(pieces[0])
        seconds = in_threads(threads, len(pieces), lambda i: os.pwrite(fd, pieces[i], offset + i * size))
        start = time.perf_counter()
        os.fdatasync(fd)
        return seconds + time.perf_counter() - start

    def read(self, threads: int, offset: int, pieces: Sequence[memoryview]) -> float:
        """Seconds to fill pieces of one length from `offset` on."""
        fd, size = self._fd, len(pieces[0])
        lists = [[piece] for piece in pieces]
        return in_threads(threads, len(pieces), lambda i: os.preadv(fd, lists[i], offset + i * size))

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)
