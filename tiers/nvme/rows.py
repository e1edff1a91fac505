"""Rows of `RECOVERED_DTYPE`: packed one at a time for the journal, handled as tables when a folder is opened."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.record import BLOCK, Record
from kvstore.tiers.base import RECOVERED_DTYPE

Table = npt.NDArray[Any]
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


def pick(table: Table, keep: npt.NDArray[np.bool_]) -> Table:
    """The rows of a structured array that are to be kept. NumPy copies plain bytes ten times as fast as fields."""
    if keep.all():
        return table
    return np.ascontiguousarray(table).view(f"V{table.itemsize}")[keep].view(table.dtype)


def join(tables: Sequence[Table]) -> Table:
    """Structured arrays of one type, one after the other."""
    filled = [table for table in tables if len(table)]
    if len(filled) <= 1:
        return filled[0] if filled else tables[0]
    plain = [np.ascontiguousarray(table).view(f"V{table.itemsize}") for table in filled]
    return np.concatenate(plain).view(filled[0].dtype)


def column(table: Table, name: str) -> Table:
    """A field that is a structure itself, as an array of its own."""
    assert table.dtype.fields is not None
    dtype, offset = table.dtype.fields[name][:2]
    plain = np.ascontiguousarray(table).view(np.uint8).reshape(len(table), table.itemsize)
    return np.ascontiguousarray(plain[:, offset : offset + dtype.itemsize]).reshape(-1).view(dtype)
