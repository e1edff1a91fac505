"""What callers of the client name, checked: parts, chunks, layers and keys."""

from __future__ import annotations

from collections.abc import Sequence

from kvstore.api import Ack
from kvstore.errors import InvalidArgument
from kvstore.keys import KEY_BYTES, Chain, ChunkRef, check_key
from kvstore.spec import KVSpec, Part


def keys_of(chain: Chain | Sequence[ChunkRef]) -> list[bytes]:
    """The keys of a prompt that a hint is about. Raises `InvalidArgument` for one without chunks."""
    keys = [check_key(ref.key) for ref in (chain.refs if isinstance(chain, Chain) else chain)]
    if not keys:
        raise InvalidArgument("a hint is about a prompt, and this one has no chunks")
    return keys


def part_of(spec: KVSpec, part: Part | None) -> Part:
    """The part that is meant: the spec's only one where none is named. Raises `InvalidArgument`."""
    if part is not None:
        spec.check_part(part)
        return part
    parts = spec.all_parts
    if len(parts) != 1:
        raise InvalidArgument(f"this spec has {len(parts)} parts; say which with part=spec.part(group, rank, stage)")
    return parts[0]


def ack_of(ack: Ack | str) -> Ack:
    """An acknowledgement by its name. Raises `InvalidArgument`."""
    if isinstance(ack, Ack):
        return ack
    try:
        return Ack(ack)
    except ValueError:
        raise InvalidArgument(f"ack must be one of {', '.join(Ack)}, not {ack!r}") from None


def check_ref(spec: KVSpec, ref: ChunkRef) -> None:
    """Raise `InvalidArgument` unless a chunk can be one of this spec."""
    key, parent = ref.key, ref.parent
    if not (type(key) is type(parent) is bytes and len(key) == len(parent) == KEY_BYTES):
        check_key(key)
        check_key(parent)
    if not 1 <= ref.tokens <= spec.chunk_tokens:
        raise InvalidArgument(f"a chunk of this spec has 1 to {spec.chunk_tokens} tokens, not {ref.tokens}")


def check_layers(spec: KVSpec, part: Part, ref: ChunkRef, layers: tuple[int, int]) -> Sequence[tuple[int, int]]:
    """(offset, bytes) of a part's layer groups, once `layers` is a range of them. Raises `InvalidArgument`."""
    check_ref(spec, ref)
    ranges = spec.layer_ranges(part, ref.tokens)
    if not 0 <= layers[0] < layers[1] <= len(ranges):
        raise InvalidArgument(f"layers {layers} are outside the part's {len(ranges)} layer groups")
    return ranges
