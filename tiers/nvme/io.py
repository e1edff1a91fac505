"""Transfers between memory and descriptors: O_DIRECT without a copy where alignment allows it, bounced where not.

A transfer is one system call on a list of pieces. Memory takes part itself as far as its address agrees with the
offset in the file modulo 4 KiB; the ragged ends go through a block of scratch memory, and memory that does not
agree at all is copied by way of scratch, a few MiB at a time. One call per record is enough: the kernel cuts it
into many requests and has them in flight together, and cutting it in Python was no faster at 256 KiB to 16 MiB.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections import deque
from os import preadv, pwritev

import numpy as np

from kvstore import _native
from kvstore._native import append_record
from kvstore.record import BLOCK, padded

SCRATCH_BYTES = 4 << 20
_ZEROS = memoryview(bytes(BLOCK))


def address(view: memoryview) -> int:
    """Where a contiguous buffer begins in memory."""
    if view.nbytes and not view.readonly:
        return ctypes.addressof(ctypes.c_char.from_buffer(view))
    return int(np.frombuffer(view, np.uint8).__array_interface__["data"][0])


class ScratchPool:
    """Aligned buffers of 4 MiB, used again last in first out. Untouched pages cost nothing."""

    def __init__(self) -> None:
        self._free: deque[memoryview] = deque()

    def take(self) -> memoryview:
        """A buffer that is the caller's until it is given back."""
        try:
            return self._free.pop()
        except IndexError:
            return memoryview(mmap.mmap(-1, SCRATCH_BYTES))

    def give(self, buffer: memoryview) -> None:
        """Return a buffer from `take`."""
        self._free.append(buffer)


class Transfer:
    """Reads and writes at block offsets of segment files. `direct` tells whether they were opened O_DIRECT."""

    def __init__(self, direct: bool) -> None:
        self.direct = direct
        self.scratch = ScratchPool()

    def read(self, fd: int, offset: int, out: memoryview) -> None:
        """Fill `out` from `offset`, any alignment. `OSError` from the system, `EOFError` when the file ends."""
        nbytes = len(out)
        if not self.direct:
            _read_fully(fd, [out], offset)
        elif not (offset | nbytes | address(out)) % BLOCK:
            if preadv(fd, [out], offset) != nbytes:
                _read_fully(fd, [out], offset)
        elif (address(out) - offset) % BLOCK == 0:
            self._read_matching(fd, offset, out)
        else:
            self._read_bounced(fd, offset, out)

    def append(
        self, fd: int, offset: int, generation: int, location: int, header: bytes, payload: memoryview, stored: int,
        slot: tuple[int, int, int], op: int,
    ) -> int:  # fmt: skip
        """Write a record and its journal entry in one call; see `kvstore._native.append_record`."""
        return append_record(fd, offset, generation, location, header, payload, stored, *slot, op, self.direct)

    def write(self, fd: int, offset: int, header: bytes, payload: memoryview, stored: int) -> None:
        """Write a record at `offset` (a multiple of 4096): header, `stored` bytes of payload, zeros to 4 KiB.

        A payload that is as long as its padded length is written with the padding it brings.
        """
        length = padded(stored)
        if not self.direct:
            tail = _ZEROS[: length - stored]
            _write_fully(fd, [memoryview(header), payload[:stored], tail], offset)
            return
        scratch = self.scratch.take()
        try:
            head = scratch[: len(header)]
            head[:] = header
            if stored == 0:
                _write_fully(fd, [head], offset)
            elif address(payload) % BLOCK == 0:
                _write_fully(fd, [head, *self._whole_blocks(payload, stored, scratch)], offset)
            else:
                self._write_bounced(fd, offset, len(header), payload, stored, scratch)
        finally:
            self.scratch.give(scratch)

    def _whole_blocks(self, payload: memoryview, stored: int, scratch: memoryview) -> list[memoryview]:
        if len(payload) >= padded(stored):
            return [payload[: padded(stored)]]
        whole = stored // BLOCK * BLOCK
        tail = scratch[SCRATCH_BYTES - BLOCK :]
        tail[:] = _ZEROS
        tail[: stored - whole] = payload[whole:stored]
        return [payload[:whole], tail] if whole else [tail]

    def _write_bounced(
        self, fd: int, offset: int, start: int, payload: memoryview, stored: int, scratch: memoryview
    ) -> None:
        """`scratch` begins with `start` bytes of header; the payload follows through what is left of it."""
        done = 0
        while done < stored:
            n = min(stored - done, SCRATCH_BYTES - start)
            _native.copy(scratch[start : start + n], payload[done : done + n])
            end = start + padded(n)
            scratch[start + n : end] = _ZEROS[: end - start - n]
            _write_fully(fd, [scratch[:end]], offset)
            done, offset, start = done + n, offset + end, 0

    def _read_matching(self, fd: int, offset: int, out: memoryview) -> None:
        head, end = -offset % BLOCK, offset + len(out)
        tail = end % BLOCK
        if head + tail >= len(out):
            self._read_bounced(fd, offset, out)
            return
        scratch = self.scratch.take()
        try:
            pieces = [out[head : len(out) - tail]] if tail else [out[head:]]
            first, last = scratch[:BLOCK], scratch[BLOCK : 2 * BLOCK]
            if head:
                pieces.insert(0, first)
            if tail:
                pieces.append(last)
            _read_fully(fd, pieces, offset // BLOCK * BLOCK)
            out[:head] = first[BLOCK - head :]
            out[len(out) - tail :] = last[:tail]
        finally:
            self.scratch.give(scratch)

    def _read_bounced(self, fd: int, offset: int, out: memoryview) -> None:
        scratch = self.scratch.take()
        try:
            done = 0
            while done < len(out):
                skip = (offset + done) % BLOCK
                n = min(len(out) - done, SCRATCH_BYTES - skip)
                _read_fully(fd, [scratch[: padded(skip + n)]], offset + done - skip)
                _native.copy(out[done : done + n], scratch[skip : skip + n])
                done += n
        finally:
            self.scratch.give(scratch)


def probe_direct(folder: str) -> bool:
    """Whether files in `folder` can be written with O_DIRECT. `OSError` if nothing can be written there at all."""
    path = os.path.join(folder, f".probe-{os.getpid()}")
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    try:
        with mmap.mmap(-1, BLOCK) as block:
            try:
                fd = os.open(path, os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
            except OSError:
                return False
            try:
                return os.pwrite(fd, block, 0) == BLOCK and os.preadv(fd, [block], 0) == BLOCK
            except OSError:
                return False
            finally:
                os.close(fd)
    finally:
        os.unlink(path)


def _read_fully(fd: int, pieces: list[memoryview], offset: int) -> None:
    wanted = sum(map(len, pieces))
    done = preadv(fd, pieces, offset)
    while done < wanted:
        pieces, wanted, offset = _rest(pieces, done), wanted - done, offset + done
        done = preadv(fd, pieces, offset)
        if done == 0:
            raise EOFError(f"the file ends {wanted} bytes early")


def _write_fully(fd: int, pieces: list[memoryview], offset: int) -> None:
    wanted = sum(map(len, pieces))
    done = pwritev(fd, pieces, offset)
    while done < wanted:
        if done == 0:
            raise OSError(errno.EIO, "nothing more can be written, and no reason is given")
        pieces, wanted, offset = _rest(pieces, done), wanted - done, offset + done
        done = pwritev(fd, pieces, offset)


def _rest(pieces: list[memoryview], done: int) -> list[memoryview]:
    """What is left of `pieces` after `done` bytes."""
    left: list[memoryview] = []
    for piece in pieces:
        if done < len(piece):
            left.append(piece[done:])
        done = max(0, done - len(piece))
    return left
