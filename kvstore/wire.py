"""Between the project's values and protobuf messages, both ways, with every number checked on its way in."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from kvstore import _native, errors
from kvstore.api import Ack, Fidelity
from kvstore.errors import InvalidArgument, KVStoreError, Shed, SpecMismatch
from kvstore.keys import KEY_BYTES, NO_PARENT, REF_BYTES, ChunkRef, check_key, unpack_keys
from kvstore.places import ITEM_BYTES, pack_items
from kvstore.record import GROUP_DTYPE, Record
from kvstore.rows import REF_DTYPE
from kvstore.spec import CANONICAL_AXES, KVGroup, KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb

MAX_PARTS = 1 << 16
MAX_POSITION = 0xFFFFFFFF
MAX_ERROR_CHARACTERS = 2000
_PART_BYTES = 8
_COUNTED = 4096
_COUNT = struct.pack(f"<{_COUNTED}I", *range(_COUNTED))
_STAGED_PUT = struct.Struct(f"<16s{KEY_BYTES}s{KEY_BYTES}s{_PART_BYTES}sIIIIIIQQ")
# What stands before it in an encoded `StagedPutRequest`, which is always of this length.
STAGED_PUT_PREFIX: bytes = pb.StagedPutRequest(put=bytes(_STAGED_PUT.size)).SerializeToString()[: -_STAGED_PUT.size]
_ITEM = struct.Struct(f"<{KEY_BYTES}sII{_PART_BYTES}s")
_ACKS = (Ack.STORED, Ack.PERSISTED, Ack.SYNCED)


class StagedPut(NamedTuple):
    """A put of `offset` and what follows it in a piece of staging memory, as it travels: nothing of it is checked."""

    spec: bytes
    key: bytes
    parent: bytes
    part: bytes
    position: int
    tokens: int
    first_valid: int
    ack: int
    staging: int
    offset: int


class UnknownSpec(SpecMismatch):
    """The server has not seen this spec (or forgot it when it was started again): register it and ask again."""


@cache
def error_classes() -> dict[str, type[KVStoreError]]:
    """Every class of error that keeps its name on the wire."""
    public = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
    return {**public, UnknownSpec.__name__: UnknownSpec}


def parse(message: Any, data: bytes) -> Any:
    """The message of class `message` that `data` encodes, or `InvalidArgument`."""
    try:
        return message.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"not a {message.DESCRIPTOR.full_name}: {error}") from None


def spec_to_message(spec: KVSpec) -> Any:
    """A `Spec` message."""
    fields = spec.to_dict()
    return pb.Spec(
        model=spec.model,
        revision=spec.revision,
        dtype=spec.dtype,
        groups=[pb.KVGroup(**group) for group in fields["groups"]],
        rope_json=json.dumps(fields["rope"]),
        chunk_tokens=spec.chunk_tokens,
        tp_size=spec.tp_size,
        pipeline=[pb.LayerRange(start=start, end=end) for start, end in spec.pipeline],
        layout=spec.layout,
    )


def spec_from_message(message: Any) -> KVSpec:
    """The spec that a `Spec` message holds; its sizes are bounded before anything is counted out."""
    parts = max(1, len(message.groups)) * max(1, message.tp_size) * max(1, len(message.pipeline))
    layers = sum(len(group.layers) for group in message.groups)
    if parts > MAX_PARTS or layers > MAX_PARTS:
        raise InvalidArgument(f"a spec of {parts} parts and {layers} layers is more than this wire takes: {MAX_PARTS}")
    try:
        rope = json.loads(message.rope_json or "{}")
    except ValueError as error:
        raise InvalidArgument(f"Spec.rope_json is not JSON: {error}") from None
    if not isinstance(rope, dict):
        raise InvalidArgument("Spec.rope_json must be a JSON object")
    spec = KVSpec(
        message.model,
        message.revision,
        message.dtype,
        tuple(
            KVGroup(tuple(group.layers), group.kv_heads, group.head_dim, group.window, group.latent_dim)
            for group in message.groups
        ),
        rope,
        message.chunk_tokens,
        message.tp_size,
        tuple((each.start, each.end) for each in message.pipeline),
        tuple(message.layout) or CANONICAL_AXES,
    )
    for part in spec.parts():
        part.pack()
    return spec


def parts_from_bytes(data: bytes, spec: KVSpec) -> tuple[Part, ...]:
    """Packed parts, each checked against the spec."""
    if len(data) % _PART_BYTES:
        raise InvalidArgument(f"parts have {_PART_BYTES} bytes each; {len(data)} is no multiple")
    parts = tuple(Part.unpack(data[i : i + _PART_BYTES]) for i in range(0, len(data), _PART_BYTES))
    for part in parts:
        spec.check_part(part)
    return parts


def checked_refs(data: bytes, spec: KVSpec) -> bytes:
    """Packed look-up records as they are, every position and token count checked."""
    if len(data) % REF_BYTES:
        raise InvalidArgument(f"look-up records have {REF_BYTES} bytes each; {len(data)} is no multiple")
    wrong = _native.wrong_ref(data, spec.chunk_tokens, MAX_POSITION)
    if wrong >= 0:
        ref = np.frombuffer(data, REF_DTYPE)[wrong]
        raise InvalidArgument(
            f"a chunk of this spec has 1 to {spec.chunk_tokens} tokens that end by {MAX_POSITION}, not "
            f"{ref['tokens']} at {ref['position']}"
        )
    return data


def check_tokens(tokens: int, spec: KVSpec) -> None:
    """Raise `InvalidArgument` unless a chunk of this spec can have so many tokens."""
    if not 1 <= tokens <= spec.chunk_tokens:
        raise InvalidArgument(f"a chunk of this spec has 1 to {spec.chunk_tokens} tokens, not {tokens}")


def items_to_bytes(items: Iterable[tuple[ChunkRef, Part]]) -> bytes:
    """Packed (ref, part) pairs of 48 bytes each."""
    return pack_items(items)


def items_from_bytes(data: bytes, spec: KVSpec) -> list[tuple[ChunkRef, Part]]:
    """The inverse of `items_to_bytes`, checked against the spec."""
    if not data or len(data) % ITEM_BYTES:
        raise InvalidArgument(f"items have {ITEM_BYTES} bytes each; {len(data)} is no multiple or none at all")
    parts: dict[bytes, Part] = {}
    found = []
    for key, position, tokens, packed in _ITEM.iter_unpack(data):
        part = parts.get(packed)
        if part is None:
            (part,) = parts_from_bytes(packed, spec)
            parts[packed] = part
        check_tokens(tokens, spec)
        if position + tokens > MAX_POSITION:
            raise InvalidArgument(f"a chunk ends by {MAX_POSITION}, not with {tokens} tokens at {position}")
        found.append((ChunkRef(key, NO_PARENT, position, tokens), part))
    return found


def layers_from_message(ranges: Sequence[Any], items: int) -> list[tuple[int, int] | None]:
    """One range of layer groups per item from `GetRequest.layers`: none, one for all, or one each."""
    if not ranges:
        return [None] * items
    if len(ranges) not in (1, items):
        raise InvalidArgument(f"{len(ranges)} layer ranges for {items} items; give none, one, or one each")
    found: list[tuple[int, int] | None] = [(each.start, each.end) for each in ranges]
    return found * items if len(found) == 1 else found


def groups_from_bytes(data: bytes) -> npt.NDArray[Any]:
    """Packed layer groups as rows of `GROUP_DTYPE`."""
    if len(data) % GROUP_DTYPE.itemsize:
        raise InvalidArgument(f"layer groups have {GROUP_DTYPE.itemsize} bytes each; {len(data)} is no multiple")
    return np.frombuffer(data, GROUP_DTYPE)


def record_to_message(record: Record, groups: npt.NDArray[Any]) -> Any:
    """A `Record` message with the rows of `groups`, those that are sent."""
    return pb.Record(
        key=record.key,
        parent=record.parent,
        part=record.part.pack(),
        position=record.position,
        tokens=record.tokens,
        first_valid=record.first_valid,
        logical=record.logical,
        stored=record.stored,
        form=record.form,
        level=record.level,
        exact=record.exact,
        artefact=record.artefact,
        groups=groups.tobytes(),
        spec=record.spec,
    )


def ref_from_record(message: Any) -> ChunkRef:
    """The chunk that a put's `Record` message names; its tokens are for `sized_part` to check."""
    check_key(message.key)
    check_key(message.parent)
    return ChunkRef(message.key, message.parent, message.position, message.tokens)


def digests_from_bytes(data: bytes, ranges: Sequence[tuple[int, int]]) -> bytes:
    """The sender's xxh3-128 of every layer group, after checking that its groups are the spec's."""
    groups = groups_from_bytes(data)
    if list(zip(groups["offset"].tolist(), groups["length"].tolist(), strict=True)) != list(ranges):
        raise InvalidArgument(
            f"the record's {len(groups)} layer groups are not the {len(ranges)} that its spec gives; "
            "offsets and lengths follow from the part's shape, or leave `groups` empty"
        )
    return groups["xxh3"].tobytes()


def staged_put_to_bytes(put: StagedPut) -> bytes:
    """A `StagedPutRequest.put`."""
    try:
        return _STAGED_PUT.pack(*put[:-1], 0, put.offset, 0)
    except struct.error as error:
        raise InvalidArgument(f"this put does not fit its message: {error}") from None


def staged_put_from_bytes(data: bytes) -> StagedPut:
    """The inverse of `staged_put_to_bytes`."""
    if len(data) != _STAGED_PUT.size:
        raise InvalidArgument(f"a staged put has {_STAGED_PUT.size} bytes, not {len(data)}")
    fields = _STAGED_PUT.unpack(data)
    if fields[9] or fields[11]:
        raise InvalidArgument("a staged put has zeros where nothing is said")
    return StagedPut._make((*fields[:9], fields[10]))


def sized_part(spec: KVSpec, part: bytes, tokens: int) -> tuple[Part, int]:
    """One packed part of a chunk of `tokens` tokens, checked against the spec, and how many bytes it has."""
    known = spec.packed_parts.get((part, tokens))
    if known is None:
        known = spec.packed_parts[part, tokens] = _sized_part(spec, part, tokens)
    return known


def _sized_part(spec: KVSpec, part: bytes, tokens: int) -> tuple[Part, int]:
    check_tokens(tokens, spec)
    parts = parts_from_bytes(part, spec)
    if len(parts) != 1:
        raise InvalidArgument(f"a record names one part in {_PART_BYTES} bytes, not {len(parts)}")
    return parts[0], spec.part_bytes(parts[0], tokens)


def keys_from_bytes(data: bytes) -> list[bytes]:
    """Packed keys, at least one."""
    if not data:
        raise InvalidArgument("no keys were given")
    return unpack_keys(data)


def leases_from_bytes(data: bytes) -> list[bytes]:
    """Packed lease ids of 16 bytes each."""
    if len(data) % 16:
        raise InvalidArgument(f"leases have 16 bytes each; {len(data)} is no multiple")
    return [data[i : i + 16] for i in range(0, len(data), 16)]


def ack_from_number(number: int) -> Ack:
    """The acknowledgement that the wire's number means."""
    if not 0 <= number < len(_ACKS):
        raise InvalidArgument(f"unknown acknowledgement {number}; 0 stored, 1 persisted, 2 synced")
    return _ACKS[number]


def ack_to_number(ack: Ack) -> Any:
    """The inverse of `ack_from_number`."""
    return _ACKS.index(ack)


def fidelity_from_number(number: int) -> Fidelity:
    """The fidelity that the wire's number means."""
    if number not in Fidelity.__members__.values():
        raise InvalidArgument(f"unknown fidelity {number}; 0 exact, 1 lossy")
    return Fidelity(number)


def fidelity_to_number(fidelity: Fidelity) -> Any:
    """The inverse of `fidelity_from_number`."""
    return int(fidelity)


def numbers_to_bytes(numbers: Sequence[int]) -> bytes:
    """Packed u32."""
    if numbers == range(len(numbers)) and len(numbers) <= _COUNTED:
        return _COUNT[: 4 * len(numbers)]  # as of nearly every look-up
    return struct.pack(f"<{len(numbers)}I", *numbers)


def numbers_from_bytes(data: bytes) -> tuple[int, ...]:
    """The inverse of `numbers_to_bytes`."""
    if len(data) % 4:
        raise InvalidArgument(f"packed u32 have 4 bytes each; {len(data)} is no multiple")
    return struct.unpack(f"<{len(data) // 4}I", data)


def error_name(error: KVStoreError) -> str:
    """The public class of an error, as it travels: subclasses that only this process knows count as their parent."""
    public = error_classes()
    return next(kind.__name__ for kind in type(error).__mro__ if kind.__name__ in public)


def failure_to_message(error: KVStoreError) -> Any:
    """A `Failure` message."""
    reason = error.reason if isinstance(error, Shed) else ""
    text = str(error)[:MAX_ERROR_CHARACTERS]
    return pb.Failure(status=error.status, error=error_name(error), message=text, reason=reason)


def failure_from_message(message: Any) -> KVStoreError:
    """The exception that a `Failure` stands for."""
    kind = error_classes().get(message.error, KVStoreError)
    return Shed(message.message, message.reason or "pressure") if kind is Shed else kind(message.message)
