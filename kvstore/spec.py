"""What a chunk's bytes mean: `KVSpec`, its KV groups and its parts.

The spec's digest is part of every stored key, so bytes are only ever found by a reader that means the same by
them. A tensor-parallel size, a dtype, a layout or a rotary base that differs makes another spec, and a look-up
across two specs is a miss.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any, NamedTuple

from kvstore.errors import InvalidArgument

DTYPE_BYTES: Mapping[str, int] = {
    "float32": 4,
    "bfloat16": 2,
    "float16": 2,
    "float8_e4m3fn": 1,
    "float8_e5m2": 1,
    "int8": 1,
    "uint8": 1,
}
CANONICAL_AXES = ("layer", "kv", "token", "head", "dim")
OPAQUE = ("opaque",)
_DOMAIN = b"kvstore/spec/1\0"
_PART = struct.Struct("<4H")


@dataclass(frozen=True, slots=True)
class KVGroup:
    """Layers that share one shape and one attention pattern.

    `layers` are the model's layer numbers, rising. `window` is the number of tokens a query attends to, itself
    included (0: all of them). For multi-head latent attention `latent_dim` is kv_lora_rank + rope_dim per token,
    there is neither a K/V axis nor a head axis, and `kv_heads` and `head_dim` are 0.
    """

    layers: tuple[int, ...]
    kv_heads: int = 0
    head_dim: int = 0
    window: int = 0
    latent_dim: int = 0

    def __post_init__(self) -> None:
        if not self.layers or list(self.layers) != sorted(set(self.layers)) or self.layers[0] < 0:
            raise InvalidArgument(f"KVGroup.layers must be rising layer numbers, not {self.layers!r}")
        if self.latent_dim < 0 or self.window < 0:
            raise InvalidArgument("KVGroup.latent_dim and KVGroup.window must not be negative")
        if self.latent_dim and (self.kv_heads or self.head_dim):
            raise InvalidArgument("an MLA group has a latent_dim and neither kv_heads nor head_dim")
        if not self.latent_dim and (self.kv_heads < 1 or self.head_dim < 1):
            raise InvalidArgument(
                f"KVGroup needs kv_heads and head_dim of at least 1, not {self.kv_heads} and {self.head_dim}"
            )

    def first_needed(self, tokens: int) -> int:
        """The first of `tokens` prefix tokens that the next token still attends to."""
        return max(0, tokens - self.window + 1) if self.window else 0


class Part(NamedTuple):
    """The piece of a chunk that one tensor-parallel rank holds of one KV group and one range of layers.

    `layers` is half-open in the model's layer numbers; a part holds the group's layers inside it.
    """

    group: int = 0
    rank: int = 0
    layers: tuple[int, int] = (0, 0xFFFF)

    def pack(self) -> bytes:
        """8 bytes, little-endian: group, rank, first layer, end layer."""
        try:
            return _PART.pack(self.group, self.rank, *self.layers)
        except struct.error as error:
            raise InvalidArgument(f"{self!r} does not fit four 16-bit numbers: {error}") from None

    @classmethod
    def unpack(cls, data: bytes) -> Part:
        """The inverse of `pack`."""
        if len(data) != _PART.size:
            raise InvalidArgument(f"a packed part has {_PART.size} bytes, not {len(data)}")
        group, rank, start, end = _PART.unpack(data)
        return cls(group, rank, (start, end))


@dataclass(frozen=True)
class KVSpec:
    """The meaning of the bytes, complete: two stores of KV are interchangeable only where their specs are equal.

    `chunk_tokens` is the most a chunk holds. `tp_size` is the tensor-parallel size and `pipeline` the half-open
    layer range of each pipeline stage. `rope` holds the rotary parameters as the model's configuration names
    them. `layout` names the axes of the stored array from slowest to fastest, the layer first; `("opaque",)`
    declares bytes whose order cannot be said, for which only byte codecs work.
    """

    model: str
    revision: str
    dtype: str
    groups: tuple[KVGroup, ...]
    rope: Mapping[str, Any] = field(default_factory=dict)
    chunk_tokens: int = 256
    tp_size: int = 1
    pipeline: tuple[tuple[int, int], ...] = ()
    layout: tuple[str, ...] = CANONICAL_AXES

    def __post_init__(self) -> None:
        if self.dtype not in DTYPE_BYTES:
            raise InvalidArgument(f"unknown dtype {self.dtype!r}; one of {', '.join(DTYPE_BYTES)}")
        if not 1 <= self.chunk_tokens <= 65536:
            raise InvalidArgument(f"chunk_tokens must be 1 to 65536, not {self.chunk_tokens}")
        if self.tp_size < 1:
            raise InvalidArgument(f"tp_size must be at least 1, not {self.tp_size}")
        if not self.groups:
            raise InvalidArgument("a spec needs at least one KV group")
        layers = [layer for group in self.groups for layer in group.layers]
        if len(layers) != len(set(layers)):
            raise InvalidArgument("a layer belongs to one KV group only")
        if not self.pipeline:
            object.__setattr__(self, "pipeline", ((0, max(layers) + 1),))
        for layer in layers:
            if sum(start <= layer < end for start, end in self.pipeline) != 1:
                raise InvalidArgument(f"layer {layer} is not in exactly one stage of the pipeline {self.pipeline}")
        if self.layout != OPAQUE and (self.layout[0] != "layer" or set(self.layout) != set(CANONICAL_AXES)):
            raise InvalidArgument(
                f"layout must name {', '.join(CANONICAL_AXES)} once each with the layer first, or be "
                f"('opaque',); not {self.layout!r}"
            )
        for group in self.groups:
            heads = group.kv_heads
            if heads and heads % self.tp_size and self.tp_size % heads:
                raise InvalidArgument(f"{heads} KV heads cannot be split over tp_size {self.tp_size}")

    def __hash__(self) -> int:
        return hash(self.digest)

    @classmethod
    def dense(
        cls, model: str, *, layers: int, kv_heads: int, head_dim: int, dtype: str = "bfloat16", **rest: Any
    ) -> KVSpec:
        """A model whose layers all have the same shape and full attention."""
        group = KVGroup(tuple(range(layers)), kv_heads, head_dim)
        return cls(model, rest.pop("revision", ""), dtype, (group,), **rest)

    @cached_property
    def canonical(self) -> bytes:
        """The JSON that is hashed: sorted keys, no white space, floats as the bits of an IEEE double."""
        return json.dumps(_plain(self.to_dict()), sort_keys=True, separators=(",", ":")).encode()

    @cached_property
    def digest(self) -> bytes:
        """16 bytes that stand for this spec on the wire and in every record."""
        return hashlib.sha256(_DOMAIN + self.canonical).digest()[:16]

    @cached_property
    def itemsize(self) -> int:
        """Bytes per element."""
        return DTYPE_BYTES[self.dtype]

    def to_dict(self) -> dict[str, Any]:
        """Plain data that `from_dict` takes back."""
        return {
            "model": self.model,
            "revision": self.revision,
            "dtype": self.dtype,
            "groups": [
                {
                    "layers": list(g.layers),
                    "kv_heads": g.kv_heads,
                    "head_dim": g.head_dim,
                    "window": g.window,
                    "latent_dim": g.latent_dim,
                }
                for g in self.groups
            ],
            "rope": dict(self.rope),
            "chunk_tokens": self.chunk_tokens,
            "tp_size": self.tp_size,
            "pipeline": [list(stage) for stage in self.pipeline],
            "layout": list(self.layout),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> KVSpec:
        """A spec from `to_dict`'s data; an unknown or missing field is an `InvalidArgument`."""
        try:
            fields = dict(data)
            fields["groups"] = tuple(
                KVGroup(**{**group, "layers": tuple(group["layers"])}) for group in fields["groups"]
            )
            fields["pipeline"] = tuple((int(a), int(b)) for a, b in fields.get("pipeline", ()))
            fields["layout"] = tuple(fields.get("layout", CANONICAL_AXES))
            return cls(**fields)
        except InvalidArgument:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidArgument(f"not a spec: {error}") from None

    def parts(self, group: int | None = None) -> Iterator[Part]:
        """All parts of a chunk (of one group), in the order group, rank, stage."""
        for number, each in enumerate(self.groups):
            if group is not None and number != group:
                continue
            ranks = 1 if each.latent_dim else self.tp_size
            for rank in range(ranks):
                for stage in self.pipeline:
                    if any(stage[0] <= layer < stage[1] for layer in each.layers):
                        yield Part(number, rank, stage)

    def part(self, group: int = 0, rank: int = 0, stage: int = 0) -> Part:
        """One part by its group, tensor-parallel rank and pipeline stage."""
        return Part(group, rank, self.pipeline[stage])

    def check_part(self, part: Part) -> None:
        """Raise `InvalidArgument` unless `part` is one of this spec's."""
        if part not in self._known_parts:
            raise InvalidArgument(
                f"{part} is no part of this spec: it has {len(self.groups)} KV groups, tp_size {self.tp_size} "
                f"and the layer ranges {self.pipeline}"
            )

    def part_layers(self, part: Part) -> tuple[int, ...]:
        """The model's layer numbers that a part holds, rising."""
        start, end = part.layers
        return tuple(layer for layer in self.groups[part.group].layers if start <= layer < end)

    def part_shape(self, part: Part, tokens: int) -> tuple[int, ...]:
        """The shape of a part's array in the stored layout, for a chunk of `tokens` tokens.

        Canonical: `[layer, 2, token, kv_head, dim]`; for MLA `[layer, token, latent]`; for an opaque layout one
        axis of elements.
        """
        known = self._shapes.get((part, tokens))
        if known is None:
            known = self._shapes[part, tokens] = self._part_shape(part, tokens)
        return known

    def _part_shape(self, part: Part, tokens: int) -> tuple[int, ...]:
        group, layers = self.groups[part.group], len(self.part_layers(part))
        if group.latent_dim:
            shape: tuple[int, ...] = (layers, tokens, group.latent_dim)
        else:
            heads = max(1, group.kv_heads // self.tp_size)
            sizes = {"layer": layers, "kv": 2, "token": tokens, "head": heads, "dim": group.head_dim}
            shape = tuple(sizes[axis] for axis in (CANONICAL_AXES if self.layout == OPAQUE else self.layout))
        return (prod(shape),) if self.layout == OPAQUE else shape

    def part_bytes(self, part: Part, tokens: int) -> int:
        """The logical length of a part in bytes."""
        known = self._lengths.get((part, tokens))
        if known is None:
            known = self._lengths[part, tokens] = prod(self.part_shape(part, tokens)) * self.itemsize
        return known

    def layer_ranges(self, part: Part, tokens: int) -> Sequence[tuple[int, int]]:
        """Offset and length in bytes of every layer group of a raw part (one layer each; opaque: one in all)."""
        total = self.part_bytes(part, tokens)
        count = 1 if self.layout == OPAQUE else len(self.part_layers(part))
        each = total // count
        return [(i * each, each) for i in range(count)]

    @cached_property
    def all_parts(self) -> tuple[Part, ...]:
        """All parts of a chunk, in the order of `parts`."""
        return tuple(self.parts())

    @cached_property
    def _shapes(self) -> dict[tuple[Part, int], tuple[int, ...]]:
        return {}

    @cached_property
    def _lengths(self) -> dict[tuple[Part, int], int]:
        return {}

    @cached_property
    def packed_parts(self) -> dict[tuple[bytes, int], tuple[Part, int]]:
        """By a packed part and a number of tokens: what `kvstore.wire.sized_part` has found them to be."""
        return {}

    @cached_property
    def _known_parts(self) -> frozenset[Part]:
        return frozenset(self.all_parts)


def _plain(value: Any) -> Any:
    """JSON data in which equal values have one spelling in every language."""
    if isinstance(value, bool) or value is None or isinstance(value, int | str):
        return value
    if isinstance(value, float):
        return "f64:" + struct.pack(">d", value).hex()
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    raise InvalidArgument(f"a spec holds plain data only, not {type(value).__name__}: {value!r}")
