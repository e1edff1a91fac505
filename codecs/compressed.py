"""lz4 and zstd: general compressors, for any bytes.

Elements of 2 and 4 bytes are turned left by one bit and split into byte planes first (`_native.split_bytes`): the
highest byte is then the exponent of a float, all of it and nothing else, and the rest is noise that a compressor
passes by. Opaque bytes and elements of one byte are taken as they are.

A body is one byte, 0 for bytes stored as they are or 1 for compressed ones, and then these.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import numpy as np

from kvstore import _native
from kvstore.codecs.artefact import Artefact
from kvstore.codecs.base import Codec
from kvstore.codecs.block import Block
from kvstore.codecs.frame import Buffer, Frame
from kvstore.errors import Corrupt, InvalidArgument

_STORED, _COMPRESSED = 0, 1


class Compressed(Codec):
    """A general compressor over byte planes."""

    exact: ClassVar[bool] = True
    longest: ClassVar[int]  # bytes that the compressor takes at once

    def check(self, block: Block) -> None:
        """Any dtype and layout; `InvalidArgument` for a layer longer than the compressor takes."""
        longest = block.nbytes if block.opaque else block.layer_bytes
        if longest > self.longest:
            raise InvalidArgument(f"{self.name} takes {self.longest} bytes at once; a frame would have {longest}")

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """The bytes compressed, or as they are where that is no longer."""
        del level, artefact
        planes = raw if _plain(block) else memoryview(np.empty(raw.nbytes, np.uint8))
        if planes is not raw:
            _native.split_bytes(planes, raw, block.itemsize)
        packed = self.compress(planes)
        return b"\1" + packed if len(packed) < raw.nbytes else b"\0" + raw

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """The inverse, exact. `Corrupt` for what does not give the block's length."""
        del frame, artefact
        kind, inside = body[0] if body else -1, body[1:]
        if kind == _STORED and len(inside) == out.nbytes:
            out[:] = inside
            return
        if kind != _COMPRESSED:
            raise Corrupt(f"a {self.name} body of kind {kind} with {len(body)} bytes, for {out.nbytes} bytes")
        planes = self.decompress(inside, out.nbytes)
        if len(planes) != out.nbytes:
            raise Corrupt(f"a {self.name} body gave {len(planes)} bytes instead of {out.nbytes}")
        if _plain(block):
            out[:] = planes
        else:
            _native.join_bytes(out, planes, block.itemsize)

    @abstractmethod
    def compress(self, data: memoryview) -> bytes:
        """Compress bytes; the GIL is released."""

    @abstractmethod
    def decompress(self, data: memoryview, length: int) -> memoryview:
        """Decompress to at most `length` bytes, `Corrupt` for damage; the GIL is released."""


class Lz4(Compressed):
    """LZ4 block format."""

    number, name, longest = 1, "lz4", 0x7E000000

    def compress(self, data: memoryview) -> bytes:
        """One LZ4 block, without its length."""
        import lz4.block

        packed: bytes = lz4.block.compress(data, store_size=False)
        return packed

    def decompress(self, data: memoryview, length: int) -> memoryview:
        """LZ4 writes into memory of `length` bytes and no further."""
        import lz4.block

        try:
            return memoryview(lz4.block.decompress(data, uncompressed_size=length, return_bytearray=True))
        except lz4.block.LZ4BlockError as error:
            raise Corrupt(f"a damaged lz4 body: {error}") from None


class Zstd(Compressed):
    """Zstandard, one frame, level 1: higher ones find nothing more in noise."""

    number, name, longest = 2, "zstd", 1 << 40

    def compress(self, data: memoryview) -> bytes:
        """One Zstandard frame."""
        import pyarrow

        packed: bytes = pyarrow.Codec("zstd", 1).compress(data, asbytes=True)
        return packed

    def decompress(self, data: memoryview, length: int) -> memoryview:
        """pyarrow gives the decoder `length` bytes, and takes it for an error if they are too many or too few."""
        import pyarrow

        try:
            return memoryview(pyarrow.Codec("zstd").decompress(data, length))
        except OSError as error:
            raise Corrupt(f"a damaged zstd body: {error}") from None


def _plain(block: Block) -> bool:
    return block.opaque or block.itemsize == 1
