"""Leases: a promise that placements stay readable, made to one session for a limited time.

The id comes from the client, so that asking again renews and does not add. A lease ends when it is released, when
its session ends or when its time is over, whichever comes first.

A chunk that is leased keeps its row, and every good copy of it in DRAM stays where it is: whoever asked under the
lease may be reading that memory without telling.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore._native import Index
from kvstore.errors import InvalidArgument

LEASE_BYTES = 16
UNTIL_RELEASED = sys.maxsize  # as the time at which a lease ends
Rows: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.int64]


@dataclass(slots=True)
class _Lease:
    rows: Rows
    until_ms: int


def check_lease(lease: bytes) -> None:
    """Raise `InvalidArgument` unless this is an id of 16 bytes."""
    if len(lease) != LEASE_BYTES:
        raise InvalidArgument(f"a lease id is {LEASE_BYTES} bytes, not {len(lease)}")


class Leases:
    """All leases of a store. The store calls it under its lock."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._held: dict[tuple[int, bytes], _Lease] = {}

    def __len__(self) -> int:
        return len(self._held)

    def take(self, session: int, lease: bytes, rows: Rows, until_ms: int) -> None:
        """Hold chunks; a lease of the same id is replaced. `InvalidArgument` for an id that is not 16 bytes."""
        check_lease(lease)
        self._index.lease(rows)
        self.release(session, lease)
        self._held[session, lease] = _Lease(rows, until_ms)

    def release(self, session: int, lease: bytes) -> bool:
        """End a lease; False if it was not held (any more)."""
        held = self._held.pop((session, lease), None)
        if held is not None:
            self._index.unlease(held.rows)
        return held is not None

    def end_session(self, session: int) -> None:
        """End every lease of a session."""
        for key in [each for each in self._held if each[0] == session]:
            self.release(*key)

    def end_all(self) -> None:
        """End every lease."""
        for key in list(self._held):
            self.release(*key)

    def expire(self, now_ms: int) -> int:
        """End leases that are past their time; how many. One `UNTIL_RELEASED` never is."""
        late = [key for key, held in self._held.items() if held.until_ms <= now_ms]
        for key in late:
            self.release(*key)
        return len(late)
