"""Faults of device memory, for a tier whose copies are made to fail."""

from __future__ import annotations

import ctypes
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from kvstore.errors import StorageError
from kvstore.tiers.hbm import HbmTier
from kvstore.tiers.hbm.lanes import Lane, Move


def injected(tier: HbmTier, fault: Any) -> AbstractContextManager[None] | None:
    """What device memory can do (`kvstore.testing.Fault`): fail to copy, be slow, or have a bit flip.

    A copy over the bus is whole or fails, all room is allocated at the start, and there is no way to give up on a
    device that hangs; so the other faults are not this tier's.
    """
    if fault.name == "BIT_FLIP":
        return lanes_with(tier, after_read=flip)
    if fault.name == "SLOW":
        return lanes_with(tier, before_read=lambda: time.sleep(0.02), before_write=lambda: time.sleep(0.02))
    if fault.name == "READ_ERROR":
        return lanes_with(tier, before_read=fail)
    if fault.name == "WRITE_ERROR":
        return lanes_with(tier, before_write=fail)
    return None


def fail() -> None:
    """What the driver's errors become."""
    raise StorageError("the device does not copy (injected)")


def flip(moves: Sequence[Move]) -> None:
    """Flip one bit in what was read."""
    _, address, nbytes = random.choice([move for move in moves if move[2]])
    byte = ctypes.c_ubyte.from_address(address + random.randrange(nbytes))
    byte.value ^= 1 << random.randrange(8)


@contextmanager
def lanes_with(
    tier: HbmTier,
    before_read: Callable[[], None] = lambda: None,
    before_write: Callable[[], None] = lambda: None,
    after_read: Callable[[Sequence[Move]], None] = lambda moves: None,
) -> Iterator[None]:
    """While this lasts, the tier's lanes do something more when they copy."""
    take, changed = tier._lanes.take, list[Lane]()

    def taken() -> Lane:
        lane = take()
        read, write = type(lane).read, type(lane).write

        def reading(moves: Sequence[Move]) -> None:
            before_read()
            read(lane, moves)
            after_read(moves)

        def writing(moves: Sequence[Move]) -> None:
            before_write()
            write(lane, moves)

        lane.read, lane.write = reading, writing  # type: ignore[method-assign]
        changed.append(lane)
        return lane

    tier._lanes.take = taken  # type: ignore[method-assign]
    try:
        yield
    finally:
        del tier._lanes.take
        for lane in changed:
            vars(lane).pop("read", None)
            vars(lane).pop("write", None)
