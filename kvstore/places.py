"""Where chunks lie in the extents of the arena, for readers that have mapped them, and which parts are asked for.

Both travel as packed records: places of 24 bytes (`PLACE_DTYPE`), items of 48: a look-up record and a packed part.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidArgument
from kvstore.keys import NO_PARENT, ChunkRef, check_key
from kvstore.spec import Part

# `location` is extent number << 40 | offset of the payload's first byte: the record's header lies directly before
# it. `stored` is the payload's length, `tokens_from` the first valid token of the part.
PLACE_DTYPE = np.dtype([("location", "<u8"), ("stored", "<u8"), ("form", "<u4"), ("tokens_from", "<u4")])
PLACE_BYTES = 24
NOWHERE = 0xFFFF_FFFF_FFFF_FFFF
EXTENT_SHIFT = 40
ITEM_BYTES = 48
Place: TypeAlias = tuple[int, int, int, int]  # (location, stored, form, first valid token)
_PLACE = struct.Struct("<QQII")
_ITEM = struct.Struct("<32sIIHHHH")
_NOWHERE = NOWHERE.to_bytes(8, "little")
_NO_PLACE = _PLACE.pack(NOWHERE, 0, 0, 0)


def pack_items(items: Iterable[tuple[ChunkRef, Part]]) -> bytes:
    """Packed records of what is asked for, 48 bytes each."""
    try:
        return b"".join(
            [
                _ITEM.pack(check_key(ref.key), ref.position, ref.tokens, part.group, part.rank, *part.layers)
                for ref, part in items
            ]
        )
    except struct.error as error:
        raise InvalidArgument(f"a chunk or a part has a number that does not fit its field: {error}") from None


def check_items(items: bytes) -> bytes:
    """Return what may be packed items, or raise `InvalidArgument`."""
    if len(items) % ITEM_BYTES:
        raise InvalidArgument(f"items have {ITEM_BYTES} bytes each; {len(items)} is no multiple")
    return items


def unpack_item(items: bytes, index: int) -> tuple[ChunkRef, Part]:
    """One packed item; its reference has no parent."""
    key, position, tokens, group, rank, start, end = _ITEM.unpack_from(items, index * ITEM_BYTES)
    return ChunkRef(key, NO_PARENT, position, tokens), Part(group, rank, (start, end))


def unpack_places(places: bytes) -> Iterator[Place]:
    """Each packed place."""
    return _PLACE.iter_unpack(places)


def elsewhere(places: bytes, present: npt.NDArray[np.uint8]) -> list[int]:
    """The chunks, counted from 0, of which a part that is present `[part, chunk]` has no place."""
    if _NOWHERE not in places:  # the usual case, which costs less than an array
        return []
    locations = np.frombuffer(places, PLACE_DTYPE)["location"].reshape(-1, len(present))
    cold: list[int] = np.flatnonzero(((locations == NOWHERE) & (present.T != 0)).any(axis=1)).tolist()
    return cold


def places_of(count: int, known: Mapping[int, Place]) -> bytes:
    """So many packed places: those that are known, as `unpack_places` gives them, and nowhere for the rest."""
    return b"".join([_PLACE.pack(*known[i]) if i in known else _NO_PLACE for i in range(count)])
