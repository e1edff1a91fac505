"""Faults of a disk, brought about where the tier calls the system."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

from kvstore.testing import Fault, aligned_memory, replaced
from kvstore.testing.kills import die
from kvstore.tiers.nvme import io

Call = Callable[[int, Sequence[memoryview], int], int]
BLOCK = 4096


@contextmanager
def disk_fault(fault: Fault) -> Iterator[None]:
    """While it lasts, every segment of this process has this fault."""
    read, write = _faulty(fault, io.preadv, io.pwritev)
    append = _appending(fault, io.append_record)
    with ExitStack() as stack:
        for name, call in (("preadv", read), ("pwritev", write), ("append_record", append)):
            stack.enter_context(replaced(io, name, call))
        yield


def _appending(fault: Fault, append: Callable[..., int]) -> Callable[..., int]:
    """What writes a record and its journal entry in one call."""
    if fault in {Fault.WRITE_ERROR, Fault.NO_SPACE}:
        return _failing(errno.EIO if fault is Fault.WRITE_ERROR else errno.ENOSPC)
    if fault is Fault.SLOW:
        return _slow(append)
    return _torn_append if fault is Fault.TORN_WRITE else append


def _torn_append(fd: int, offset: int, _: int, __: int, header: bytes, payload: memoryview, *___: object) -> int:
    record = aligned_memory(len(header) + len(payload))
    record[: len(header)] = header
    record[len(header) :] = payload
    os.pwrite(fd, record[: len(record) // 2 // BLOCK * BLOCK], offset)
    die()


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


def _failing(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


def _slow(call: Callable[..., int]) -> Callable[..., int]:
    def wait(*arguments: object) -> int:
        time.sleep(0.02)
        return call(*arguments)

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
