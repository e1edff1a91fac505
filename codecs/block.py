"""What an array of KV means to a codec: its axes, its dtype and where in the prompt it stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidArgument
from kvstore.spec import CANONICAL_AXES, DTYPE_BYTES, OPAQUE, KVSpec, Part

# The number of a dtype in a frame; the bits of an element as an unsigned integer.
DTYPE_CODES: Mapping[str, int] = {name: code for code, name in enumerate(DTYPE_BYTES, 1)}
_BITS = {1: np.uint8, 2: np.uint16, 4: np.uint32}


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a chunk, or some of its layers.

    `layers` are the model's layer numbers and `first` is the first one's place in the part. `planes` is 2 (K, V) or 1
    (the latent of multi-head latent attention, `heads` 1). `axes` names the axes of the array as stored, slowest
    first; `("opaque",)` where nothing is known but the bytes. `position` is the first token's place in the prompt.
    `first_head` is the first head's number in the model (a tensor-parallel rank has some of them).
    """

    dtype: str
    layers: tuple[int, ...]
    planes: int
    tokens: int
    heads: int
    dim: int
    axes: tuple[str, ...]
    position: int = 0
    first: int = 0
    first_head: int = 0

    @classmethod
    def of(cls, spec: KVSpec, part: Part, tokens: int, position: int = 0) -> Block:
        """The block that a part of a chunk of `tokens` tokens is."""
        group, layers = spec.groups[part.group], spec.part_layers(part)
        if group.latent_dim:
            axes = ("layer", "token", "dim") if spec.layout != OPAQUE else OPAQUE
            return cls(spec.dtype, layers, 1, tokens, 1, group.latent_dim, axes, position)
        heads = max(1, group.kv_heads // spec.tp_size)
        first_head = part.rank * group.kv_heads // spec.tp_size
        return cls(spec.dtype, layers, 2, tokens, heads, group.head_dim, spec.layout, position, first_head=first_head)

    @property
    def opaque(self) -> bool:
        """Whether the order of the elements is unknown: for byte codecs alone."""
        return self.axes == OPAQUE

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return DTYPE_BYTES[self.dtype]

    @property
    def layer_bytes(self) -> int:
        """Raw bytes of one layer."""
        return self.planes * self.tokens * self.heads * self.dim * self.itemsize

    @property
    def nbytes(self) -> int:
        """Raw bytes in all."""
        return len(self.layers) * self.layer_bytes

    def cut(self, first: int, end: int) -> Block:
        """The layers `first` up to `end` of this block, counted from its own first."""
        if not 0 <= first < end <= len(self.layers):
            raise InvalidArgument(f"layers {first} to {end} are outside a block of {len(self.layers)}")
        return Block(
            self.dtype, self.layers[first:end], self.planes, self.tokens, self.heads, self.dim, self.axes,
            self.position, self.first + first, self.first_head,
        )  # fmt: skip

    def canonical(self, raw: memoryview | bytes | bytearray | npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The elements' bits `[layer, plane, token, head, dim]`, an unsigned view of `raw` (writable where that is)."""
        axes, shape = self._stored()
        bits = np.frombuffer(raw, _BITS[self.itemsize]).reshape(shape)
        return bits.transpose([axes.index(axis) for axis in CANONICAL_AXES])

    def strides(self) -> tuple[int, int, int, int, int]:
        """Elements from one layer, plane, token, head, dim to the next, as stored."""
        return _steps(*self._stored())

    def _stored(self) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The axes as stored, a plane and a head axis of length 1 where the latent has none, and their lengths."""
        if self.opaque:
            raise InvalidArgument("an opaque layout has no axes: only byte codecs work on it")
        axes = self.axes if len(self.axes) == len(CANONICAL_AXES) else CANONICAL_AXES
        sizes = {
            "layer": len(self.layers), "kv": self.planes, "token": self.tokens, "head": self.heads, "dim": self.dim,
        }  # fmt: skip
        return axes, tuple(sizes[axis] for axis in axes)


@lru_cache(maxsize=1024)
def _steps(axes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, int, int, int, int]:
    steps = [prod(shape[i + 1 :]) for i in range(len(shape))]
    layer, plane, token, head, dim = (steps[axes.index(axis)] for axis in CANONICAL_AXES)
    return layer, plane, token, head, dim
