"""The snapshot: live rows as an Arrow IPC file, one column per field, with the segments' lives in its metadata.

A checksum in the metadata covers the rows as they are in memory and the rest of the metadata, so what is read
back is what was written. `sequence` is the last journal entry that the snapshot already contains.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import StorageError
from kvstore.tiers.base import RECOVERED_DTYPE
from kvstore.tiers.nvme.durable import replace_file
from kvstore.tiers.nvme.location import life_key

VERSION = 1
_AT_ONCE = 1024  # rows that are put together while they are in the processor's cache
_META = b"kvstore.snapshot"
_CHECKSUM = b"kvstore.checksum"
_FIELDS = tuple(name for name in RECOVERED_DTYPE.names or () if not name.startswith("_"))


@dataclass(frozen=True, slots=True)
class Life:
    """What is known of one life of a segment.

    All below `resolved` is accounted for: in a row, or dead. A `closed` life is resolved to its end.
    """

    segment: int
    generation: int
    resolved: int
    closed: bool = False
    freed: bool = False


@dataclass(frozen=True)
class Snapshot:
    """Live rows (`RECOVERED_DTYPE`), the lives of segments by key, the last journal entry contained."""

    sequence: int = 0
    rows: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, RECOVERED_DTYPE))
    lives: dict[int, Life] = field(default_factory=dict)


def save_snapshot(path: Path, snapshot: Snapshot) -> int:
    """Write a snapshot in place of the one there is; its length in bytes. `OSError` from the system."""
    import pyarrow as pa

    lives = [
        [life.segment, life.generation, life.resolved, life.closed, life.freed] for life in snapshot.lives.values()
    ]
    meta = json.dumps({"version": VERSION, "sequence": snapshot.sequence, "lives": lives}).encode()
    columns = [_to_arrow(snapshot.rows[name], RECOVERED_DTYPE[name]) for name in _FIELDS]
    table = pa.table(dict(zip(_FIELDS, columns, strict=True)))
    table = table.replace_schema_metadata({_META: meta, _CHECKSUM: _checksum(snapshot.rows, meta)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    content = sink.getvalue()
    replace_file(path, [memoryview(content)])
    return int(content.size)


def load_snapshot(path: Path) -> tuple[Snapshot | None, str]:
    """The snapshot and "", or None and what is wrong with it. `StorageError` for a version from the future."""
    import pyarrow as pa

    if not path.exists():
        return None, f"{path.name} is missing"
    try:
        with pa.memory_map(str(path)) as source, pa.ipc.open_file(source) as reader:
            metadata = reader.schema.metadata or {}
            meta = json.loads(metadata[_META])
            if meta["version"] > VERSION:
                raise StorageError(f"{path} is of version {meta['version']}; use a newer kvstore")
            rows = _from_arrow(reader.read_all())
    except (pa.ArrowException, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, StorageError):
            raise
        return None, f"{path.name} cannot be read ({error})"
    if metadata.get(_CHECKSUM) != _checksum(rows, metadata[_META]):
        return None, f"{path.name} does not match its checksum"
    lives = {life_key(*each[:2]): Life(*each) for each in meta["lives"]}
    return Snapshot(meta["sequence"], rows, lives), ""


def _checksum(rows: npt.NDArray[Any], meta: bytes) -> bytes:
    body = _native.xxh3_128(rows.view(np.uint8)) if len(rows) else b""
    return _native.xxh3_128(body + meta).hex().encode()


def _to_arrow(column: npt.NDArray[Any], dtype: np.dtype[Any]) -> Any:
    import pyarrow as pa

    flat = np.ascontiguousarray(column)
    if dtype.subdtype is None:
        return pa.array(flat)
    kind = pa.binary(dtype.itemsize)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])


def _from_arrow(table: Any) -> npt.NDArray[Any]:
    rows = np.zeros(table.num_rows, RECOVERED_DTYPE)
    columns = {name: _flat(table.column(name).combine_chunks(), RECOVERED_DTYPE[name], len(rows)) for name in _FIELDS}
    for start in range(0, len(rows), _AT_ONCE):
        some = slice(start, start + _AT_ONCE)
        for name, column in columns.items():
            rows[name][some] = column[some]
    return rows


def _flat(column: Any, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
    """One field of every row."""
    if dtype.subdtype is None:
        found: npt.NDArray[Any] = column.to_numpy(zero_copy_only=False)
        return found
    chunk = column.chunk(0) if hasattr(column, "chunk") else column
    flat = np.frombuffer(chunk.buffers()[1], np.uint8, count * dtype.itemsize, chunk.offset * dtype.itemsize)
    return flat.reshape(count, dtype.itemsize)
