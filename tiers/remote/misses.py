"""Names that were asked for a moment ago and were not there, so that they are not asked for again at once."""

from __future__ import annotations

import time

import numpy as np

from kvstore import _native

SLOTS = 1 << 15


class RecentMisses:
    """A table of fixed size (512 KiB): a name displaces another one of the same slot.

    What it says of a name is right for `seconds` at most: another host may write it meanwhile, this one tells.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._tags = np.zeros(SLOTS, np.uint64)
        self._until = np.zeros(SLOTS, np.float64)

    def add(self, name: bytes) -> None:
        """A packed name is not there."""
        tag = _native.xxh3_64(name)
        slot = tag % SLOTS
        self._until[slot] = 0.0  # another thread sees one name's time with the other's tag never
        self._tags[slot] = tag
        self._until[slot] = time.monotonic() + self._seconds

    def discard(self, name: bytes) -> None:
        """A packed name is there now."""
        tag = _native.xxh3_64(name)
        slot = tag % SLOTS
        if self._tags[slot] == tag:
            self._until[slot] = 0.0

    def __contains__(self, name: bytes) -> bool:
        tag = _native.xxh3_64(name)
        slot = tag % SLOTS
        return bool(self._tags[slot] == tag and time.monotonic() < self._until[slot])
