"""The codec: blocks of one layer to bodies and back."""

from __future__ import annotations

import numpy as np

from kvstore.codecs.artefact import Artefact
from kvstore.codecs.base import Codec, NotEncodable
from kvstore.codecs.block import Block
from kvstore.codecs.cachegen.reference import LIMIT, decode_body, encode_body, first_group
from kvstore.codecs.cachegen.tables import LEVELS, layer_tables
from kvstore.codecs.floats import require_floats, to_float32
from kvstore.codecs.frame import Buffer, Frame
from kvstore.codecs.rans import LANES
from kvstore.errors import Corrupt, InvalidArgument


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
        return self.encode_reference(raw, block, level, artefact)

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """Decode one layer. `Corrupt` for a body that no encoder makes, or an artefact that `profile` does not."""
        self.decode_reference(body, block, out, frame.level, artefact)

    def encode_reference(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """`encode_frame` in NumPy: the definition."""
        if artefact is None:
            raise InvalidArgument("cachegen needs the artefact of its model: kvstore calibrate makes one")
        tables = layer_tables(artefact, block, level)
        bits = block.canonical(raw)[0].transpose(1, 0, 2, 3).reshape(block.tokens, -1)
        if not (np.abs(to_float32(bits, block.dtype)) < LIMIT).all():
            raise NotEncodable("cachegen takes finite values below 2^100; lossless takes any")
        return encode_body(bits, block.dtype, tables, first_group(block.position, tables.group))

    def decode_reference(
        self, body: memoryview, block: Block, out: memoryview, level: int, artefact: Artefact | None
    ) -> None:
        """`decode_frame` in NumPy: the definition."""
        if artefact is None:
            raise Corrupt("the frame names no artefact, and cachegen cannot do without")
        tables = layer_tables(artefact, block, level)
        canonical = block.canonical(out)
        planes, tokens, heads, dim = canonical.shape[1:]
        elements = np.empty((tokens, planes * heads * dim), canonical.dtype)
        decode_body(body, block.dtype, tables, elements)
        canonical[0] = elements.reshape(tokens, planes, heads, dim).transpose(1, 0, 2, 3)
