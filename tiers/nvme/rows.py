"""`Record` to `RECOVERED_DTYPE`, one at a time (the journal) and whole columns (lengths)."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.record import BLOCK, Record
from kvstore.tiers.base import RECOVERED_DTYPE

_ROW = struct.Struct("<32s32s16s16s8sIIIHHBxHQQQq")
assert _ROW.size == RECOVERED_DTYPE.itemsize
_CREATED = struct.Struct("<Q")
_CREATED_AT = 192
NO_ROW = _ROW.pack(*[b""] * 5, *[0] * 11)


def pack_row(record: Record, location: int, created_ms: int) -> bytes:
    """One row of `RECOVERED_DTYPE`."""
    return _ROW.pack(
        record.key, record.parent, record.namespace, record.spec, record.part.pack(), record.position,
        record.tokens, record.first_valid, record.form, record.level, record.exact,
        record.header_bytes // BLOCK, record.logical, record.stored, location, created_ms,
    )  # fmt: skip


def created_at(header: bytes | memoryview) -> int:
    """The time in a packed header, which fills it in where the record left it open."""
    return int(_CREATED.unpack_from(header, _CREATED_AT)[0])


def place_row(location: int, nbytes: int) -> bytes:
    """A row that says nothing but where `nbytes` bytes lie."""
    return _ROW.pack(*[b""] * 5, *[0] * 8, nbytes, location, 0)


def row_bytes(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    """Length of each row's record in its segment: header, payload and padding."""
    block = np.uint64(BLOCK)
    payload = (rows["stored"] + np.uint64(BLOCK - 1)) // block * block
    lengths: npt.NDArray[np.uint64] = rows["header_blocks"].astype(np.uint64) * block + payload
    return lengths
