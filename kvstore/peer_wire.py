"""What servers tell each other of records: names in, rows out; the layout is docs/channels.md's."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kvstore.errors import InvalidArgument
from kvstore.record import BLOCK, Entry
from kvstore.spec import Part

MOST_NAMES = 2048  # in one call
MOST_HEAD_BYTES = 16 << 20
_ROW = struct.Struct("<32sIIIHHBxH4xQQ")  # parent, position, tokens, first valid, form, level, exact, header, lengths
ROW_BYTES = _ROW.size
NO_ROW = bytes(ROW_BYTES)
NAME_BYTES = 72


def pack_row(entry: Entry) -> bytes:
    """What a record is like; its name is left out."""
    header = entry.total_bytes - -(-entry.stored // BLOCK) * BLOCK
    return _ROW.pack(
        entry.parent, entry.position, entry.tokens, entry.first_valid, entry.form, entry.level, entry.exact,
        header // BLOCK, entry.logical, entry.stored,
    )  # fmt: skip


def unpack_row(row: bytes, key: bytes, part: Part) -> Entry | None:
    """The inverse of `pack_row` for the record of a key and part; None for zeros, `InvalidArgument` for nonsense."""
    parent, position, tokens, first_valid, form, level, exact, blocks, logical, stored = _ROW.unpack(row)
    if not tokens:
        return None
    if exact > 1 or not blocks or not stored or not logical:
        raise InvalidArgument(f"a peer describes the record of key {key.hex()} in a way that is none")
    total = blocks * BLOCK + -(-stored // BLOCK) * BLOCK
    return Entry(key, parent, part, position, tokens, logical, stored, total, first_valid, form, level, bool(exact))


def split_names(names: bytes) -> Sequence[bytes]:
    """Packed names, at most `MOST_NAMES`. `InvalidArgument`."""
    count, rest = divmod(len(names), NAME_BYTES)
    if rest or not 0 < count <= MOST_NAMES:
        raise InvalidArgument(
            f"names have {NAME_BYTES} bytes each, 1 to {MOST_NAMES} in a call; {len(names)} bytes are none such"
        )
    return [names[at : at + NAME_BYTES] for at in range(0, len(names), NAME_BYTES)]
