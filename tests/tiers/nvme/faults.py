"""Faults of a disk, brought about where the tier calls the system."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from kvstore.testing import Fault, replaced
from kvstore.testing.kills import die
from kvstore.tiers.nvme import io

Call = Callable[[int, Sequence[memoryview], int], int]
BLOCK = 4096


@contextmanager
def disk_fault(fault: Fault) -> Iterator[None]:
    """While it lasts, every segment of this process has this fault."""
    read, write = _faulty(fault, io.preadv, io.pwritev)
    with ExitStack() as stack:
        stack.enter_context(replaced(io, "preadv", read))
        stack.enter_context(replaced(io, "pwritev", write))
        yield


def _faulty(fault: Fault, read: Call, write: Call) -> tuple[Call, Call]:
    if fault is Fault.READ_ERROR:
        return _failing(errno.EIO), write
    if fault is Fault.WRITE_ERROR:
        return read, _failing(errno.EIO)
    if fault is Fault.NO_SPACE:
        return read, _failing(errno.ENOSPC)
    if fault is Fault.SLOW:
        return _slow(read), _slow(write)
    if fault is Fault.SHORT_READ:
        return _short(read), write
    if fault is Fault.BIT_FLIP:
        return _flipping(read), write
    assert fault is Fault.TORN_WRITE
    return read, _torn(write)


def _failing(number: int) -> Call:
    def fail(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def _slow(call: Call) -> Call:
    def wait(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        time.sleep(0.02)
        return call(fd, pieces, offset)

    return wait


def _first_half(pieces: Sequence[memoryview]) -> list[memoryview]:
    left, half = sum(map(len, pieces)) // 2 // BLOCK * BLOCK, []
    for piece in pieces:
        if left:
            half.append(piece[:left])
            left -= len(half[-1])
    return half


def _short(call: Call) -> Call:
    ends: set[tuple[int, int]] = set()

    def cut(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        half = _first_half(pieces)
        if (fd, offset) in ends or not half:
            return 0
        done = call(fd, half, offset)
        ends.add((fd, offset + done))
        return done

    return cut


def _flipping(call: Call) -> Call:
    dice = random.Random(5)

    def flip(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        done = call(fd, pieces, offset)
        piece = pieces[dice.randrange(len(pieces))]
        piece[dice.randrange(len(piece))] ^= 1 << dice.randrange(8)
        return done

    return flip


def _torn(call: Call) -> Call:
    def tear(fd: int, pieces: Sequence[memoryview], offset: int) -> int:
        call(fd, _first_half(pieces), offset)
        die()

    return tear
