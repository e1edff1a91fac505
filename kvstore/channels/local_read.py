"""From the arena's memory, mapped read-only, into the caller's."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.api import Want
from kvstore.channels.extents import Extents
from kvstore.decoding import FindArtefact, covering, decode_layers, layer_count, threads_for
from kvstore.errors import Corrupt, InvalidArgument, KVStoreError, SpecMismatch
from kvstore.keys import ChunkRef
from kvstore.places import Place, pack_items
from kvstore.record import RAW, Record, header_bytes, unpack
from kvstore.spec import KVSpec, Part

_NAMES = struct.Struct("<32s32x16s40xII")  # of a record's header, from its byte 32 on: key, spec, position, tokens
_NAMES_AT = 32


@lru_cache(4096)
def header_length(spec: KVSpec, part: Part) -> int:
    """Length of the header that lies before a part's payload, in bytes."""
    return header_bytes(len(spec.layer_ranges(part, 1)))


@lru_cache(4096)
def _ranges(spec: KVSpec, part: Part, tokens: int) -> tuple[tuple[int, int], ...]:
    return tuple(spec.layer_ranges(part, tokens))


def fill(
    extents: Extents, spec: KVSpec, want: Want, place: Place, verify: bool, find: FindArtefact
) -> KVStoreError | None:
    """Copy or decode what lies at a place into a destination; what went wrong, or None.

    It counts only if the lease on the place turns out to be valid *afterwards*: the memory may be another chunk's
    as soon as it is not. `Corrupt` and `SpecMismatch` say that the bytes are not what they should be.
    """
    location, stored, form, _ = place
    header = header_length(spec, want.part)
    memory = extents.memory(location, header, stored)
    if memory is None:
        return SpecMismatch(f"the server named a place in an extent that it has not given: {location:#x}")
    try:
        if form == RAW and not verify:
            problem = _copy_raw(memory[header:], spec, want)
        elif form == RAW and want.layers is None and _read_whole(memory, header, spec, want):
            problem = None
        else:
            problem = _read_record(memory, header, spec, want, form, find)
    except KVStoreError as error:
        return error
    if problem is None and not is_of(memory, spec, want.ref):
        return SpecMismatch(f"another record lies where {want.ref.key.hex()} should")
    return problem


def is_of(memory: memoryview, spec: KVSpec, ref: ChunkRef) -> bool:
    """Whether a record says that it is a chunk's: what is found by a tag may be another's that shares it."""
    return _NAMES.unpack_from(memory, _NAMES_AT) == (ref.key, spec.digest, ref.position, ref.tokens)


def _copy_raw(payload: memoryview, spec: KVSpec, want: Want) -> KVStoreError | None:
    if want.layers is not None:
        ranges = _ranges(spec, want.part, want.ref.tokens)
        first, last = _checked_layers(want, len(ranges))
        payload = payload[ranges[first][0] : ranges[last][0] + ranges[last][1]]
    if len(payload) != want.out.nbytes:
        return _wrong_length(want, len(payload))
    _native.copy(want.out, payload)
    return None


def _read_whole(memory: memoryview, header: int, spec: KVSpec, want: Want) -> bool:
    """Copy and verify in one go; False where something is wrong, which `_read_record` tells."""
    return _native.read_record(want.out, memory, header, spec.digest, b"", pack_items(((want.ref, want.part),)))


def _read_record(
    memory: memoryview, header: int, spec: KVSpec, want: Want, form: int, find: FindArtefact
) -> KVStoreError | None:
    """By what the header says: verified, and decoded if it is encoded.

    Frames are copied first. Memory whose lease is over may become another chunk's while it is looked at, which a copy
    survives and a decoder need not.
    """
    record = unpack(memory[:header])
    if (record.key, record.spec, record.part, record.form) != (want.ref.key, spec.digest, want.part, form):
        return SpecMismatch(f"another record lies where {want.ref.key.hex()} should")
    if record.stored != len(memory) - header:
        return SpecMismatch(f"a record of {record.stored} bytes lies where one of {len(memory) - header} should")
    groups = _groups(record, memory[header:], spec, want)
    start, end = int(groups["offset"][0]), int(groups["offset"][-1] + groups["length"][-1])
    payload = memory[header + start : header + end]
    offsets = (groups["offset"] - groups["offset"][0]).astype(np.uint64)
    lengths = groups["length"].astype(np.uint64)
    out = want.out if form == RAW else np.empty(len(payload), np.uint8).data
    if len(payload) != out.nbytes:
        return _wrong_length(want, len(payload))
    digests = _native.copy_hash_many(out, payload, offsets, lengths)
    if not np.array_equal(digests, groups["xxh3"]):
        return Corrupt(f"layer groups of {want.ref.key.hex()} do not match their checksums")
    if form != RAW:
        threads = threads_for(want.out.nbytes)
        decode_layers(out, want.out, spec, want.ref, want.part, want.layers, find, threads=threads)
    return None


def _groups(record: Record, payload: memoryview, spec: KVSpec, want: Want) -> npt.NDArray[Any]:
    """The layer groups, or the frames, that hold what is wanted."""
    if want.layers is None:
        return record.groups
    first, last = _checked_layers(want, layer_count(spec, want.part))
    if record.form == RAW:
        return record.groups[first : last + 1]
    return record.groups[slice(*covering(payload, record.groups, want.layers, layer_count(spec, want.part)))]


def _checked_layers(want: Want, count: int) -> tuple[int, int]:
    """The first and the last of the layer groups asked for."""
    first, end = want.layers or (0, count)
    if not 0 <= first < end <= count:
        raise InvalidArgument(f"layers {want.layers} are outside the part's {count} layer groups")
    return first, end - 1


def _wrong_length(want: Want, nbytes: int) -> InvalidArgument:
    return InvalidArgument(f"the destination has {want.out.nbytes} bytes; what is asked for has {nbytes}")
