"""Records in memory, checked: what a reader is given of one, and what is wrong with it."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.api import Want
from kvstore.catalog import Scope
from kvstore.coder import Coder
from kvstore.core import Copy
from kvstore.decoding import covering
from kvstore.errors import Corrupt, InvalidArgument, NotFound
from kvstore.keys import ChunkRef
from kvstore.places import pack_items
from kvstore.record import RAW, Record, header_length, unpack
from kvstore.spec import Part


def miss(ref: ChunkRef, part: Part) -> NotFound:
    """What a reader is told of a part that is not there."""
    return NotFound(f"no chunk {ref.key.hex()} of {ref.tokens} tokens at {ref.position} with {part} is stored")


def verify_record(memory: memoryview, scope: Scope, key: bytes, part: Part, where: str) -> Record:
    """Check a whole record in memory: header, identity, every layer group."""
    record = unpack(memory[: header_length(memory)])
    _same(record, scope, key, part)
    if record.total_bytes > len(memory):
        raise Corrupt(f"the record of chunk {key.hex()} says {record.total_bytes} bytes but takes {len(memory)}")
    payload = memory[record.header_bytes : record.header_bytes + record.stored]
    digests = _native.xxh3_128_many(payload, record.groups["offset"].copy(), record.groups["length"].copy())
    check_digests(digests, record.groups, key, where)
    return record


def _same(record: Record, scope: Scope, key: bytes, part: Part) -> None:
    record.check(key=key, spec=scope.spec.digest, namespace=scope.namespace.digest, part=part)


def span(scope: Scope, want: Want) -> tuple[tuple[int, int], int]:
    """The layer groups that are wanted and where they begin in the payload. `InvalidArgument` if `out` does not fit."""
    geometry = scope.geometry(want.part, want.ref.tokens)
    count = len(geometry.offsets)
    first, end = want.layers or (0, count)
    if not 0 <= first < end <= count:
        raise InvalidArgument(f"layers {want.layers} are outside the part's {count} layer groups")
    start, nbytes = 0, geometry.nbytes
    if want.layers is not None:
        start = int(geometry.offsets[first])
        nbytes = int(geometry.offsets[end - 1] + geometry.lengths[end - 1]) - start
    if want.out.readonly:
        raise InvalidArgument("the destination is read-only")
    if want.out.nbytes != nbytes:
        raise InvalidArgument(f"the destination has {want.out.nbytes} bytes; what was asked for has {nbytes}")
    return (first, end), start


def fill_from(memory: memoryview, scope: Scope, want: Want, copy: Copy, verify: bool, coder: Coder) -> None:
    """Copy or decode the layers that are wanted out of a record in memory, checking them on the way if asked."""
    layers, start = span(scope, want)
    if copy.form != RAW:
        _decode_from(memory, scope, want, copy, verify, coder)
        return
    source = memory[copy.header + start : copy.header + start + want.out.nbytes]
    if not verify:
        _native.copy(want.out, source)
        return
    if want.layers is None:
        item, record = pack_items(((want.ref, want.part),)), memory[: copy.header + copy.stored]
        namespace = scope.namespace.digest
        if _native.read_record(want.out, record, copy.header, scope.spec.digest, namespace, item):
            return  # what is wrong otherwise turns out below
    groups = groups_of(memory[: copy.header], scope, want, layers)
    offsets = groups["offset"] - groups["offset"][0]
    digests = _native.copy_hash_many(want.out, source, offsets, groups["length"].copy())
    check_digests(digests, groups, want.ref.key, "dram")


def _decode_from(memory: memoryview, scope: Scope, want: Want, copy: Copy, verify: bool, coder: Coder) -> None:
    record = unpack(memory[: copy.header])
    _same(record, scope, want.ref.key, want.part)
    payload = memory[copy.header : copy.header + record.stored]
    first, end = covering(payload, record.groups, want.layers, scope.layer_groups(want.part))
    groups = record.groups[first:end]
    start = int(groups["offset"][0])
    frames = payload[start : int(groups["offset"][-1] + groups["length"][-1])]
    if verify:
        digests = _native.xxh3_128_many(frames, groups["offset"] - groups["offset"][0], groups["length"].copy())
        check_digests(digests, groups, want.ref.key, "dram")
    coder.decode(scope.spec, want.ref, want.part, record.form, frames, want.out, want.layers)


def groups_of(header: memoryview, scope: Scope, want: Want, layers: tuple[int, int]) -> npt.NDArray[Any]:
    """The entries of some layer groups in a header that is checked first."""
    record = unpack(header)
    _same(record, scope, want.ref.key, want.part)
    return record.groups[layers[0] : layers[1]]


def check_digests(digests: npt.NDArray[np.uint8], groups: npt.NDArray[Any], key: bytes, where: str) -> None:
    """Raise `Corrupt` unless these are the checksums of some layer groups."""
    if not np.array_equal(digests, groups["xxh3"]):
        raise Corrupt(f"the payload of chunk {key.hex()} in {where} does not match its checksums")
