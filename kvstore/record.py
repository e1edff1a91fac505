"""The record: how a part of a chunk lies in memory and on disk, the same bytes in both.

A record is a header of whole 4 KiB blocks, then the payload, padded with zeros to 4 KiB. All numbers are
little-endian. The fixed header (256 bytes):

    offset  bytes
       0      4   magic "KVR1"
       4      2   version, 1
       6      2   header length in 4 KiB blocks
       8      8   checksum: xxh3-64 of the whole header with `checksum`, `generation` and `seal` as zeros
      16      8   generation of the place it was written to (0 in memory)
      24      8   seal: xxh3-64 of checksum ‖ generation ‖ location, written by a log (0 in memory)
      32     32   key
      64     32   parent key
      96     16   spec digest
     112     16   namespace digest
     128     16   artefact digest (zeros: none)
     144      8   part: group, rank, first layer, end layer
     152      4   position of the first token
     156      4   tokens
     160      4   first valid token inside the chunk (a sliding-window group may lack the ones before)
     164      4   layer groups
     168      8   logical length (raw bytes)
     176      8   stored length (payload without padding)
     184      2   form: number of the codec (0: raw)
     186      2   level of the codec
     188      1   1 if the form is exact
     189      3   zeros
     192      8   time of creation, Unix milliseconds
     200     56   zeros

then one entry of 32 bytes per layer group: offset u64 and length u64 inside the payload, xxh3-128 of those bytes
(big-endian, as `xxhash` prints it). The layer groups lie in order and cover the payload without a gap, so any
range of layers is read, verified and decoded alone.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import Corrupt, SpecMismatch
from kvstore.spec import Part

BLOCK = 4096
MAGIC = b"KVR1"
VERSION = 1
MAX_LAYER_GROUPS = 65535
RAW = 0
NO_ARTEFACT = bytes(16)
GROUP_DTYPE = np.dtype([("offset", "<u8"), ("length", "<u8"), ("xxh3", "u1", (16,))])
_FIXED = struct.Struct("<4sHHQQQ32s32s16s16s16s8sIIIIQQHHB3xQ56x")
_SEAL = struct.Struct("<QQQ")
_CHECKSUM_AT, _SEALED_END = 8, 32
assert _FIXED.size == 256


@dataclass(frozen=True, slots=True)
class Record:
    """A record's header. `groups` has `GROUP_DTYPE`, one row per layer group."""

    key: bytes
    parent: bytes
    spec: bytes
    namespace: bytes
    part: Part
    position: int
    tokens: int
    logical: int
    stored: int
    groups: npt.NDArray[Any]
    first_valid: int = 0
    form: int = RAW
    level: int = 0
    exact: bool = True
    artefact: bytes = NO_ARTEFACT
    created_ms: int = 0
    generation: int = 0
    header_least: int = 0

    @property
    def header_bytes(self) -> int:
        """Length of the header, a multiple of 4096.

        That of a part is the same in every form (`header_least` is the raw one's), however few layer groups a codec
        makes of its layers: so whoever knows the part knows where the payload begins.
        """
        return max(self.header_least, header_bytes(len(self.groups)))

    @property
    def total_bytes(self) -> int:
        """Length of the whole record with its padding, a multiple of 4096."""
        return self.header_bytes + padded(self.stored)

    def pack(self) -> bytes:
        """The header as it lies in memory: whole blocks, `generation` and `seal` zero."""
        block, groups = bytearray(self.header_bytes), self.groups
        write_header(
            memoryview(block), self, self.spec, self.namespace, groups["offset"].copy(), groups["length"].copy(),
            groups["xxh3"].copy(), artefact=self.artefact, created_ms=self.created_ms,
        )  # fmt: skip
        return bytes(block)

    def check(self, *, key: bytes, spec: bytes, namespace: bytes, part: Part) -> None:
        """Raise `SpecMismatch` unless this is the record that it was found as."""
        asked = (key, spec, namespace, part)
        if (self.key, self.spec, self.namespace, self.part) != asked:
            raise SpecMismatch(
                f"the record of key {self.key.hex()}, spec {self.spec.hex()}, {self.part} in namespace "
                f"{self.namespace.hex()} was found under key {key.hex()}, spec {spec.hex()}, {part} in "
                f"namespace {namespace.hex()}"
            )


class Entry(NamedTuple):
    """What the index is told of a record; a `Record` has all of it too."""

    key: bytes
    parent: bytes
    part: Part
    position: int
    tokens: int
    logical: int
    stored: int
    total_bytes: int
    first_valid: int = 0
    form: int = RAW
    level: int = 0
    exact: bool = True


def write_header(
    header: memoryview,
    entry: Entry | Record,
    spec: bytes,
    namespace: bytes,
    offsets: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    digests: npt.NDArray[np.uint8],
    *,
    artefact: bytes = NO_ARTEFACT,
    created_ms: int = 0,
) -> None:
    """Write a header where it stays, whole blocks of memory: `generation` and `seal` zero, created now unless told.

    Of each layer group its offset and length inside the payload and its xxh3-128, `[n, 16]`.
    """
    fixed = _fixed(len(header), len(offsets), entry, spec, namespace, artefact, created_ms)
    _native.write_header(header, fixed, offsets, lengths, digests)


def fixed_header(header: int, layer_groups: int, entry: Entry, spec: bytes, namespace: bytes) -> bytes:
    """The fixed part of a header, for native code that puts in what differs between records of one shape."""
    return _fixed(header, layer_groups, entry, spec, namespace)


def write_record(
    record: memoryview,
    header: int,
    entry: Entry,
    spec: bytes,
    namespace: bytes,
    offsets: npt.NDArray[np.uint64],
    lengths: npt.NDArray[np.uint64],
    data: memoryview,
) -> None:
    """Write a whole record, created now, in one pass over `data`: its payload, padding, and the header as above."""
    fixed = _fixed(header, len(offsets), entry, spec, namespace)
    _native.write_record(record, header, fixed, data, offsets, lengths)


def _fixed(
    header: int,
    layer_groups: int,
    entry: Entry | Record,
    spec: bytes,
    namespace: bytes,
    artefact: bytes = NO_ARTEFACT,
    created_ms: int = 0,
) -> bytes:
    return _FIXED.pack(
        MAGIC, VERSION, header // BLOCK, 0, 0, 0,
        entry.key, entry.parent, spec, namespace, artefact, entry.part.pack(),
        entry.position, entry.tokens, entry.first_valid, layer_groups, entry.logical, entry.stored,
        entry.form, entry.level, entry.exact, created_ms or time.time_ns() // 1_000_000,
    )  # fmt: skip


def padded(nbytes: int) -> int:
    """`nbytes` rounded up to whole blocks."""
    return -(-nbytes // BLOCK) * BLOCK


def header_bytes(layer_groups: int) -> int:
    """Length of a header that describes so many layer groups."""
    return padded(_FIXED.size + layer_groups * GROUP_DTYPE.itemsize)


def group_table(ranges: Sequence[tuple[int, int]], digests: npt.NDArray[np.uint8]) -> npt.NDArray[Any]:
    """Rows of `GROUP_DTYPE` from (offset, length) pairs and their `[n, 16]` xxh3-128 digests."""
    table = np.zeros(len(ranges), GROUP_DTYPE)
    table["offset"] = [offset for offset, _ in ranges]
    table["length"] = [length for _, length in ranges]
    table["xxh3"] = digests
    return table


def header_length(block: memoryview | bytes) -> int:
    """How many bytes the header has whose first block this is; `Corrupt` if it is none."""
    if len(block) < _FIXED.size or bytes(block[:4]) != MAGIC:
        raise Corrupt("no record starts here: the magic number is missing")
    version, blocks = struct.unpack_from("<HH", block, 4)
    if version != VERSION:
        raise Corrupt(f"record version {version} is not known here; this build reads version {VERSION}")
    if not 1 <= blocks <= header_bytes(MAX_LAYER_GROUPS) // BLOCK:
        raise Corrupt(f"a record's header cannot have {blocks} blocks")
    return int(blocks) * BLOCK


def unpack(header: memoryview | bytes) -> Record:
    """Read and verify a whole header; `Corrupt` if a single bit is off."""
    length = header_length(header)
    if len(header) < length:
        raise Corrupt(f"the header is cut off: {len(header)} of {length} bytes")
    block = bytearray(header[:length])
    (magic, _, _, checksum, generation, _, key, parent, spec, namespace, artefact, part, position, tokens,
     first_valid, count, logical, stored, form, level, exact, created) = _FIXED.unpack_from(block)  # fmt: skip
    block[_CHECKSUM_AT:_SEALED_END] = bytes(_SEALED_END - _CHECKSUM_AT)
    if magic != MAGIC or _native.xxh3_64(block) != checksum:
        raise Corrupt("the record's header does not match its checksum")
    if _FIXED.size + count * GROUP_DTYPE.itemsize > length:
        raise Corrupt(f"{count} layer groups do not fit a header of {length} bytes")
    groups = np.frombuffer(bytes(block), GROUP_DTYPE, count, _FIXED.size)
    ends = np.cumsum(groups["length"], dtype=np.uint64)
    if not count or int(ends[-1]) != stored or not np.array_equal(groups["offset"], ends - groups["length"]):
        raise Corrupt("the record's layer groups do not cover its payload")
    return Record(
        key, parent, spec, namespace, Part.unpack(part), position, tokens, logical, stored, groups,
        first_valid, form, level, bool(exact), artefact, created, generation, length,
    )  # fmt: skip


def seal(header: bytes, generation: int, location: int) -> bytes:
    """The header as a log writes it: bound to one life of one place, so that a stale record is not taken for new."""
    block = bytearray(header)
    (checksum,) = struct.unpack_from("<Q", block, _CHECKSUM_AT)
    struct.pack_into("<QQ", block, 16, generation, _native.xxh3_64(_SEAL.pack(checksum, generation, location)))
    return bytes(block)


def sealed_at(header: memoryview | bytes, generation: int, location: int) -> bool:
    """Whether `header` was sealed for this generation of this location."""
    checksum, found, mark = struct.unpack_from("<QQQ", header, _CHECKSUM_AT)
    return bool(found == generation) and mark == _native.xxh3_64(_SEAL.pack(checksum, generation, location))
