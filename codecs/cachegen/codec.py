"""The codec: blocks of one layer to bodies and back."""

from __future__ import annotations

import numpy as np

from kvstore.codecs.artefact import Artefact
from kvstore.codecs.base import Codec, NotEncodable
from kvstore.codecs.block import Block
from kvstore.codecs.cachegen.reference import LIMIT, decode_body, encode_body, first_group
from kvstore.codecs.cachegen.tables import LEVELS, LayerTables, layer_tables
from kvstore.codecs.floats import require_floats, to_float32
from kvstore.codecs.frame import Buffer, Frame
from kvstore.codecs.rans import LANES
from kvstore.errors import Corrupt, InvalidArgument

_REFUSED = "cachegen takes finite values below 2^100; lossless takes any"


class CacheGen(Codec):
    """Anchors, differences and static tables; levels from fine bins to coarse. Needs an artefact (`profile`)."""

    number = 8
    name = "cachegen"
    levels = LEVELS
    artefact_kind = "cachegen"
    lanes = LANES

    def check(self, block: Block) -> None:
        """`InvalidArgument` for opaque bytes, and for integers or fp8 as a dtype."""
        require_floats(self.name, block)

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """The body of one layer. `NotEncodable` for NaN, infinity or magnitudes of 2^100 and more."""
        tables = self._tables(block, level, artefact)
        first, view = first_group(block.position, tables.group), _view(block)
        body = tables.bank.encode(raw, block.dtype, *view, tables.group, first, tables.floats, tables.tables)
        if body is None:
            raise NotEncodable(_REFUSED)
        return body

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """Decode one layer. `Corrupt` for a body that no encoder makes, or an artefact that `profile` does not."""
        tables = self._tables_named(block, frame.level, artefact)
        view = _view(block)
        if not tables.bank.decode(body, out, block.dtype, *view, tables.group, tables.floats, tables.tables):
            raise Corrupt(f"layer {block.layers[0]}: no encoder makes this cachegen body of {len(body)} bytes")

    def encode_reference(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """`encode_frame` in NumPy: the definition."""
        tables = self._tables(block, level, artefact)
        bits = block.canonical(raw)[0].transpose(1, 0, 2, 3).reshape(block.tokens, -1)
        if not (np.abs(to_float32(bits, block.dtype)) < LIMIT).all():
            raise NotEncodable(_REFUSED)
        return encode_body(bits, block.dtype, tables, first_group(block.position, tables.group))

    def decode_reference(
        self, body: memoryview, block: Block, out: memoryview, level: int, artefact: Artefact | None
    ) -> None:
        """`decode_frame` in NumPy: the definition."""
        tables = self._tables_named(block, level, artefact)
        canonical = block.canonical(out)
        planes, tokens, heads, dim = canonical.shape[1:]
        elements = np.empty((tokens, planes * heads * dim), canonical.dtype)
        decode_body(body, block.dtype, tables, elements)
        canonical[0] = elements.reshape(tokens, planes, heads, dim).transpose(1, 0, 2, 3)

    def _tables(self, block: Block, level: int, artefact: Artefact | None) -> LayerTables:
        if artefact is None:
            raise InvalidArgument("cachegen needs the artefact of its model: kvstore calibrate makes one")
        return layer_tables(artefact, block, level)

    def _tables_named(self, block: Block, level: int, artefact: Artefact | None) -> LayerTables:
        if artefact is None:
            raise Corrupt("the frame names no artefact, and cachegen cannot do without")
        return layer_tables(artefact, block, level)


def _view(block: Block) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """Shape and strides [plane, token, head, dim] of a block of one layer, in elements."""
    return (block.planes, block.tokens, block.heads, block.dim), block.strides()[1:]
