"""lz4 and zstd: general compressors, for any bytes.

Elements of 2 and 4 bytes are turned left by one bit and split into byte planes first (`_native.split_bytes`): the
highest byte is then a bfloat16's exponent, all of it and nothing else, and the rest is noise. Opaque bytes and elements
of one byte are one plane, as they are.

A body is a piece for each plane, highest first: u8 0 for bytes stored as they are or 1 for compressed ones, their
length as u64, and then these. Planes are compressed apart, since statistics of one spoil those of the other.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from typing import ClassVar

import numpy as np

from kvstore import _native
from kvstore.codecs.artefact import Artefact
from kvstore.codecs.base import Codec
from kvstore.codecs.block import Block
from kvstore.codecs.frame import Buffer, Frame
from kvstore.errors import Corrupt, InvalidArgument

_HEAD = struct.Struct("<BQ")  # kind, length


class Compressed(Codec):
    """A general compressor over byte planes."""

    exact: ClassVar[bool] = True
    longest: ClassVar[int]  # bytes that the compressor takes at once

    def check(self, block: Block) -> None:
        """Any dtype and layout; `InvalidArgument` for a layer longer than the compressor takes."""
        length = block.nbytes if block.opaque else block.layer_bytes // block.itemsize
        if length > self.longest:
            raise InvalidArgument(f"{self.name} takes {self.longest} bytes at once; a frame would have {length}")

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """Each plane compressed, or as it is where that is no longer."""
        del level, artefact
        count, planes = _planes(block), raw
        if count > 1:
            planes = np.empty(raw.nbytes, np.uint8).data
            _native.split_bytes(planes, raw, count)
        length, pieces = raw.nbytes // count, []
        for at in range(0, raw.nbytes, length):
            plane = planes[at : at + length]
            packed = self.compress(plane)
            smaller = len(packed) < length
            pieces += [_HEAD.pack(smaller, len(packed) if smaller else length), packed if smaller else plane]
        return b"".join(pieces)

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """The inverse, exact. `Corrupt` for what does not give the block's length."""
        del frame, artefact
        count = _planes(block)
        planes = out if count == 1 else np.empty(out.nbytes, np.uint8).data
        length = out.nbytes // count
        for at in range(0, out.nbytes, length):
            body = self._decode_plane(body, planes[at : at + length])
        if len(body):
            raise Corrupt(f"{len(body)} bytes are left of a {self.name} body")
        if count > 1:
            _native.join_bytes(out, planes, count)

    def _decode_plane(self, body: memoryview, plane: memoryview) -> memoryview:
        """Decode the first piece of a body; what is left of the body."""
        if len(body) < _HEAD.size:
            raise Corrupt(f"a {self.name} body is cut off")
        packed, length = _HEAD.unpack_from(body)
        inside, rest = body[_HEAD.size : _HEAD.size + length], body[_HEAD.size + length :]
        if packed not in (0, 1) or len(inside) != length:
            raise Corrupt(f"a {self.name} body has a piece of kind {packed} and {length} bytes; {len(inside)} are here")
        found = self.decompress(inside, plane.nbytes) if packed else inside
        if len(found) != plane.nbytes:
            raise Corrupt(f"a piece of a {self.name} body gives {len(found)} bytes instead of {plane.nbytes}")
        plane[:] = found
        return rest

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
            return memoryview(pyarrow.Codec("zstd").decompress(data, length)).cast("B")
        except OSError as error:
            raise Corrupt(f"a damaged zstd body: {error}") from None


def _planes(block: Block) -> int:
    return 1 if block.opaque else block.itemsize
