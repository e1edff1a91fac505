"""Leases of a client on the server's host that cost no call: hazards in memory that both of them map."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from typing import NamedTuple

from kvstore import _native
from kvstore.api import Fidelity, Found, Query
from kvstore.channels.local_read import header_length
from kvstore.errors import StorageError
from kvstore.keys import ChunkRef, pack_refs
from kvstore.shared_index import SharedIndex
from kvstore.spec import KVSpec, Part

UNTIL_RELEASED = 0xFFFF_FFFF_FFFF_FFFF
_MARGIN_S = 0.002  # by how much a reader stops earlier than the server


class Taken(NamedTuple):
    """Hazards that are held: packed places of what was asked for, the numbers to release them by.

    `deadline`, on the clock of `time.monotonic`, is when reading has to be over.
    """

    places: bytes
    numbers: bytes
    deadline: float


class _Shape(NamedTuple):
    """What says where in a record its payload lies, for specs whose chunks are one part."""

    part: Part
    header: int
    token_bytes: int


class HazardLeases:
    """The hazard table of one session, with the index that says where chunks lie. Any thread may call.

    Whoever reads under a hazard looks at the clock and at `honoured` afterwards: bytes that were read later than
    either allows may be another chunk's.
    """

    def __init__(self, index: SharedIndex, anchor: int) -> None:
        """`anchor` is the descriptor of a connection that lasts as long as the session; `end` comes before its close.

        `StorageError` where there is no memory for it.
        """
        self._index = index.reader
        try:
            self._table = _native.HazardTable(anchor)
        except OSError as error:
            raise StorageError(f"no memory for a hazard table: {error.strerror}") from None
        self._extents = self._index.extents
        self._shapes: dict[bytes, _Shape | None] = {}
        self._limit_s = 0.0
        self._asks_misses = False

    def fileno(self) -> int:
        """The descriptor for the server, until `begin`."""
        return self._table.fileno()

    def begin(self, limit_s: float, *, asks_misses: bool) -> None:
        """The server honours the table, and leases of up to `limit_s` seconds.

        With `asks_misses` it wants to hear of what is asked for and missing.
        """
        self._limit_s, self._asks_misses = limit_s, asks_misses
        self._table.close_descriptor()

    def __len__(self) -> int:
        """How many hazards are held."""
        return self._table.held

    @property
    def honoured(self) -> bool:
        """Whether the server has honoured every hazard until now."""
        return self._table.is_honoured

    def lookup(self, query: Query) -> tuple[Found, Taken] | None:
        """The answer that the server would give to a look-up with a lease; None where it must be asked.

        That is where `SharedIndex.lookup` cannot say, where a chunk of the hit is not raw and exact in DRAM, for specs
        of several parts, and where something is missing of which the server's policy learns.
        """
        shape = self.shape(query.spec)
        if shape is None or query.fidelity is not Fidelity.EXACT or not 0 < query.lease_s <= self._limit_s:
            return None
        if self._extents_changed():
            return None
        if query.parts and tuple(query.parts) != (shape.part,):
            return None
        end = time.monotonic() + query.lease_s
        _, header, token_bytes = shape
        took = self._table.take(
            self._index, query.spec.digest, query.refs, _until(end), header, token_bytes, self._asks_misses
        )
        if took is None:
            return None
        tokens, used, present, numbers, places = took
        return Found(tokens, used, present, True), Taken(places, numbers, end - _MARGIN_S)

    def read(self, spec: KVSpec, refs: Sequence[ChunkRef], seconds: float | None) -> Taken | None:
        """Hold chunks that are about to be read, without a time limit if `seconds` is None; None if none can be.

        `kvstore.places.NOWHERE` stands for those that only the server can read. What is taken must be released.
        """
        shape = self.shape(spec)
        if shape is None:
            return None
        if self._extents_changed():
            return None
        end = float("inf") if seconds is None else time.monotonic() + seconds
        until = UNTIL_RELEASED if seconds is None else _until(end)
        _, header, token_bytes = shape
        try:
            packed = pack_refs(refs)
        except struct.error:  # no chunk that there could be: the server says so
            return None
        took = self._table.take_each(self._index, spec.digest, packed, until, header, token_bytes)
        return None if took is None else Taken(took[1], took[0], end - _MARGIN_S)

    def release(self, numbers: bytes) -> None:
        """Let hazards go, once."""
        self._table.release(numbers)

    def end(self) -> None:
        """Take and release nothing any more: the session is over, or another process's."""
        self._table.end()

    def _extents_changed(self) -> bool:
        """Whether the server has to be asked, once: its answer says which extents are new and which are gone."""
        before, self._extents = self._extents, self._index.extents
        return self._extents != before

    def shape(self, spec: KVSpec) -> _Shape | None:
        """Where the payload lies in every record of a spec; None for a spec of several parts or with windows."""
        try:
            return self._shapes[spec.digest]
        except KeyError:
            return self._shapes.setdefault(spec.digest, _shape_of(spec))


def _until(end: float) -> int:
    return int(end * 1000) + 1


def _shape_of(spec: KVSpec) -> _Shape | None:
    if len(spec.all_parts) != 1 or any(group.window for group in spec.groups):
        return None
    (part,) = spec.all_parts
    token_bytes = spec.part_bytes(part, 1)
    assert spec.part_bytes(part, spec.chunk_tokens) == token_bytes * spec.chunk_tokens
    return _Shape(part, header_length(spec, part), token_bytes)
