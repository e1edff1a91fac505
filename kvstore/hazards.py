"""Leases that clients take without a call: what they read in the arena stands in memory that they share with us.

A client of the local channel finds a chunk in the shared index, notes in its hazard table that it reads it, and looks
again whether the index still has it there. The store in turn takes a chunk out of the index and, before it gives the
memory back, looks into every hazard table of the namespace: what stands there waits (`kvstore.tiers.dram`). The
layout and the order of all this are described in codecs/native/hazard_table.hpp.

A client writes what it likes into its table. It can thereby hold memory of its own namespace, as it can with leases,
and nothing else.
"""

from __future__ import annotations

import os

from kvstore import _native
from kvstore.errors import InvalidArgument, StorageError

TABLE_BYTES = _native.HAZARD_TABLE_BYTES
_NOTHING: frozenset[int] = frozenset()


class Hazards:
    """The hazard tables of a store's clients, by namespace (its digest). Any thread may ask.

    Lists are replaced and never changed, so that `holds` needs no lock while others come and go.
    """

    def __init__(self) -> None:
        self._boards: dict[bytes, tuple[_native.HazardBoard, ...]] = {}

    def boards(self, namespace: bytes) -> tuple[_native.HazardBoard, ...]:
        """The tables of a namespace."""
        return self._boards.get(namespace, ())

    def add(self, namespace: bytes, board: _native.HazardBoard) -> None:
        """Honour a table from now on. Needs the store's lock."""
        self._boards[namespace] = (*self.boards(namespace), board)
        board.honour()  # once it is looked into, and not before

    def remove(self, namespace: bytes, board: _native.HazardBoard) -> None:
        """Honour a table no longer. Needs the store's lock."""
        board.end()  # as long as it is looked into
        self._boards[namespace] = tuple(each for each in self.boards(namespace) if each is not board)

    def holds(self, namespace: bytes, location: int) -> bool:
        """Whether somebody reads the record at a location, which is in no shared index any more."""
        return any(board.holds(location) for board in self.boards(namespace))

    def held(self, namespace: bytes) -> frozenset[int]:
        """The locations of all records that are being read now, in any shared index or in none."""
        boards = self.boards(namespace)
        return frozenset().union(*(board.locations() for board in boards)) if boards else _NOTHING


def open_board(descriptor: int, nbytes: int) -> _native.HazardBoard:
    """Map a client's table, which is known to be sealed; the descriptor stays the caller's."""
    if nbytes != TABLE_BYTES or os.fstat(descriptor).st_size != nbytes:
        raise InvalidArgument(f"a hazard table has {TABLE_BYTES} bytes, not {nbytes}: use one version")
    try:
        return _native.HazardBoard(descriptor)
    except PermissionError:
        raise InvalidArgument(
            "this hazard table cannot be written to; it must not have the seal F_SEAL_WRITE"
        ) from None
    except OSError as error:
        raise StorageError(f"a hazard table cannot be mapped: {error.strerror}") from None
