"""One segment: a preallocated file whose first 4 KiB block says whose life it is in.

"KVS1", u16 version, 2 zeros, u32 segment number, 4 zeros, u64 generation, u64 size in bytes, u64 xxh3-64 of these;
zeros up to 4096. Little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from enum import Enum

from kvstore import _native
from kvstore.errors import StorageError
from kvstore.record import BLOCK
from kvstore.tiers.nvme.location import life_key

MAGIC = b"KVS1"
VERSION = 1
_HEADER = struct.Struct("<4sHxxIIQQ")
_CHECKSUM = struct.Struct("<Q")


class State(Enum):
    """What a segment is good for."""

    FREE = "free"
    OPEN = "open"
    CLOSED = "closed"
    LOST = "lost"  # not ours, or unreadable: left alone


@dataclass(eq=False, slots=True)
class Segment:
    """One file. `head` is the end of what was handed out, `live` the bytes of records not deleted, `filled_ms` when
    the last was written (Unix milliseconds).
    """

    number: int
    size: int
    fd: int = -1
    generation: int = 0
    state: State = State.FREE
    head: int = BLOCK
    live: int = 0
    records: int = 0
    readers: int = 0
    writers: int = 0
    dirty: bool = False
    filled_ms: int = 0

    @property
    def key(self) -> int:
        """The segment's present life."""
        return life_key(self.number, self.generation)


@dataclass(slots=True)
class Limits:
    """How far the segments may grow: bytes of all files, and bytes left free on their file system."""

    segment_bytes: int
    total_bytes: int
    reserve_bytes: int
    spare: int = field(init=False)  # segments kept for what is moved
    ahead: int = field(init=False)  # segments freed before they are needed

    def __post_init__(self) -> None:
        count = self.total_bytes // self.segment_bytes
        self.spare = int(count >= 4)
        self.ahead = min(4, 1 + count // 128) if count >= 8 else 0


def pack_header(number: int, generation: int, size: int) -> bytes:
    """A segment's first block without the zeros that follow."""
    head = _HEADER.pack(MAGIC, VERSION, number, 0, generation, size)
    return head + _CHECKSUM.pack(_native.xxh3_64(head))


def unpack_header(block: memoryview) -> tuple[int, int, int] | None:
    """(segment number, generation, size), or None if this is no segment's header.

    `StorageError` for a version from the future.
    """
    magic, version, number, _, generation, size = _HEADER.unpack_from(block)
    if magic != MAGIC:
        return None
    if version > VERSION:
        raise StorageError(f"version {version} of a segment; this build knows {VERSION}: use a newer kvstore")
    (checksum,) = _CHECKSUM.unpack_from(block, _HEADER.size)
    return (number, generation, size) if checksum == _native.xxh3_64(block[: _HEADER.size]) else None
