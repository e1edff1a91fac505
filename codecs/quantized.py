"""Quantizers: every plane of a layer becomes a section of small integers and their scales.

A body is the sections of all layers and planes in order, each of a length that the shape alone says. A section has
its parameters first, then for every token and head a row of packed integers. `encode_plane` and `decode_plane` are the
definition, in NumPy; the native code does the same bit for bit, on any layout and in one pass.

All of them take finite values below 2^100 and nothing else, so that no sum or scale overflows.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.codecs.artefact import Artefact
from kvstore.codecs.base import Codec, NotEncodable
from kvstore.codecs.block import Block
from kvstore.codecs.floats import Floats, from_bfloat16, from_float32, require_floats, to_bfloat16, to_float32
from kvstore.codecs.frame import Buffer, Frame
from kvstore.errors import Corrupt

LIMIT = np.float32(2.0**100)
LEAST_SCALE = np.float32(2.0**-120)


class Quantizer(Codec):
    """Cuts a frame into the sections of its planes."""

    @abstractmethod
    def section_bytes(self, level: int, plane: int, shape: tuple[int, int, int]) -> int:
        """Length of a plane's section; `shape` is tokens, heads, dim."""

    @abstractmethod
    def encode_plane(self, values: Floats, level: int, plane: int) -> list[npt.NDArray[np.uint8]]:
        """The pieces of the section for values [token, head, dim]."""

    @abstractmethod
    def decode_plane(
        self, section: npt.NDArray[np.uint8], level: int, plane: int, shape: tuple[int, int, int]
    ) -> Floats:
        """Values [token, head, dim]; `Corrupt` for parameters that no encoder writes."""

    def check(self, block: Block) -> None:
        """`InvalidArgument` for opaque bytes, and for integers or fp8 as a dtype."""
        require_floats(self.name, block)

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """The sections. `NotEncodable` for NaN, infinity or 2^100 and more, saying where."""
        del artefact
        body = np.empty(self.body_bytes(block, level), np.uint8)
        if not _native.quantize(self._method(level), block.dtype, _shape(block), block.strides(), raw, body):
            refuse_unfit(self.name, to_float32(block.canonical(raw), block.dtype), block)
        return body.data

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """Decode into `out`. `Corrupt` for a body of another length or with parameters that no encoder writes."""
        del artefact
        self.check_length(body, block, frame.level)
        if not _native.dequantize(self._method(frame.level), block.dtype, _shape(block), block.strides(), body, out):
            raise Corrupt(f"a {self.name} body has parameters that no encoder writes")

    def encode_reference(self, raw: memoryview, block: Block, level: int) -> Buffer:
        """`encode_frame`, by the definition."""
        values = to_float32(block.canonical(raw), block.dtype)
        refuse_unfit(self.name, values, block)
        pieces = [
            piece
            for layer in values
            for plane, each in enumerate(layer)
            for piece in self.encode_plane(np.ascontiguousarray(each), level, plane)
        ]
        return np.concatenate([piece.reshape(-1) for piece in pieces]).data

    def decode_reference(self, body: memoryview, block: Block, out: memoryview, level: int) -> None:
        """`decode_frame`, by the definition."""
        self.check_length(body, block, level)
        bits = block.canonical(out)
        shape = (block.tokens, block.heads, block.dim)
        data = np.frombuffer(body, np.uint8)
        at = 0
        for layer in range(len(block.layers)):
            for plane in range(block.planes):
                length = self.section_bytes(level, plane, shape)
                values = self.decode_plane(data[at : at + length], level, plane, shape)
                bits[layer, plane] = from_float32(values, block.dtype)
                at += length

    def check_length(self, body: memoryview, block: Block, level: int) -> None:
        """Raise `Corrupt` unless a body has the length that its shape says."""
        due = self.body_bytes(block, level)
        if len(body) != due:
            raise Corrupt(f"a {self.name} body has {len(body)} bytes instead of {due}")

    def body_bytes(self, block: Block, level: int) -> int:
        """Length of the body of a block."""
        shape = (block.tokens, block.heads, block.dim)
        return len(block.layers) * sum(self.section_bytes(level, plane, shape) for plane in range(block.planes))

    def _method(self, level: int) -> str:
        return f"{self.name}:{self.levels[level]}" if self.levels[level] else self.name


def _shape(block: Block) -> tuple[int, int, int, int, int]:
    return len(block.layers), block.planes, block.tokens, block.heads, block.dim


def refuse_unfit(name: str, values: Floats, block: Block) -> None:
    """Raise `NotEncodable` for the first value [layer, plane, token, head, dim] that a lossy codec does not take."""
    unfit = ~(np.abs(values) < LIMIT)
    if unfit.any():
        layer, plane, token, head, dim = np.argwhere(unfit)[0]
        raise NotEncodable(
            f"{name} takes finite values below 2^100; layer {block.layers[layer]}, plane {plane}, token {token}, "
            f"head {head}, dim {dim} is {values[layer, plane, token, head, dim]}; lossless takes any"
        )


def scale_bits(spans: Floats, steps: int) -> npt.NDArray[np.uint16]:
    """The scale (bfloat16) that cuts each span into `steps` steps; 2^-120 at least, so that 1/scale is a number."""
    return to_bfloat16(np.maximum(spans * (np.float32(1) / np.float32(steps)), LEAST_SCALE))


def read_scales(bits: npt.NDArray[np.uint16]) -> Floats:
    """The scales; `Corrupt` for one that `scale_bits` does not give."""
    scales = from_bfloat16(bits)
    if not ((scales >= LEAST_SCALE) & (scales < 2.0**112)).all():
        raise Corrupt("a scale is outside what encoders write")
    return scales


def read_zeros(bits: npt.NDArray[np.uint16]) -> Floats:
    """The zero points; `Corrupt` for one that is not finite or far too large."""
    zeros = from_bfloat16(bits)
    if not (np.abs(zeros) < 2.0**112).all():
        raise Corrupt("a zero point is outside what encoders write")
    return zeros


def pack_rows(levels: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Pack integers [token, head, dim] of 4 or 2 bits into rows.

    A row has n = ceil(dim · bits / 8) bytes; byte i holds, from its lowest bits on, elements i, i + n, i + 2n, ...
    """
    tokens, heads, dim = levels.shape
    length = -(-dim * bits // 8)
    padded = np.zeros((tokens, heads, 8 // bits, length), np.uint8)
    padded.reshape(tokens, heads, -1)[..., :dim] = levels
    packed: npt.NDArray[np.uint8] = np.bitwise_or.reduce(
        padded << np.arange(0, 8, bits, dtype=np.uint8)[:, None], axis=2
    )
    return packed


def unpack_rows(rows: npt.NDArray[np.uint8], bits: int, shape: tuple[int, int, int]) -> npt.NDArray[np.uint8]:
    """The inverse of `pack_rows`; bits that stand for no element are ignored."""
    tokens, heads, dim = shape
    packed = rows.reshape(tokens, heads, 1, -1) >> np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed & np.uint8((1 << bits) - 1)).reshape(tokens, heads, -1)[..., :dim]


def pieces(section: npt.NDArray[np.uint8], *lengths: int) -> Iterator[npt.NDArray[np.uint8]]:
    """A section cut into pieces of these lengths, and what is left."""
    at = 0
    for length in lengths:
        yield section[at : at + length]
        at += length
    yield section[at:]


class Int8(Quantizer):
    """Symmetric int8 with one scale per token and head: 8 + 16/dim bits per element.

    A section: scales u16 (bfloat16) [token, head], then rows i8 [token, head, dim].
    """

    number, name = 5, "int8"

    def section_bytes(self, level: int, plane: int, shape: tuple[int, int, int]) -> int:
        """Two bytes for the scale of a row, one per element."""
        tokens, heads, dim = shape
        return tokens * heads * (2 + dim)

    def encode_plane(self, values: Floats, level: int, plane: int) -> list[npt.NDArray[np.uint8]]:
        """q = rint(x · (1 / scale)), clamped to ±127; scale = amax / 127."""
        scales = scale_bits(np.abs(values).max(axis=2), 127)
        inverse = np.float32(1) / from_bfloat16(scales)
        rows = np.clip(np.rint(values * inverse[..., None]), -127, 127).astype(np.int8)
        return [scales.view(np.uint8), rows.view(np.uint8)]

    def decode_plane(
        self, section: npt.NDArray[np.uint8], level: int, plane: int, shape: tuple[int, int, int]
    ) -> Floats:
        """x = q · scale, exact in float32."""
        tokens, heads, _ = shape
        scales, rows = pieces(section, 2 * tokens * heads)
        found = read_scales(scales.view(np.uint16)).reshape(tokens, heads, 1)
        return rows.view(np.int8).reshape(shape).astype(np.float32) * found


class Fp8(Quantizer):
    """float8_e4m3fn with one power of two per channel (head and dim) of the chunk: 8 + 8/tokens bits per element.

    A section: exponents u8 [head, dim], then rows u8 [token, head, dim]. An element is
    e4m3fn(row) · 2^(exponent - 135). The exponent is the least with which the channel's largest
    magnitude stays within 448, and 32 at least.
    """

    number, name = 4, "fp8"

    def section_bytes(self, level: int, plane: int, shape: tuple[int, int, int]) -> int:
        """One byte for the exponent of a channel, one per element."""
        tokens, heads, dim = shape
        return heads * dim * (1 + tokens)

    def encode_plane(self, values: Floats, level: int, plane: int) -> list[npt.NDArray[np.uint8]]:
        """Scale by a power of two, then take the nearest even e4m3fn."""
        amax = np.abs(values).max(axis=0).view(np.uint32)
        # 448 is 1.75 · 2^8: a quarter less a bit carries into the exponent for every mantissa above 1.75.
        exponents = np.maximum((amax + np.uint32(0x1FFFFF)) >> np.uint32(23), np.uint32(32))
        inverse = ((np.uint32(262) - exponents) << np.uint32(23)).view(np.float32)
        return [exponents.astype(np.uint8), to_e4m3(values * inverse)]

    def decode_plane(
        self, section: npt.NDArray[np.uint8], level: int, plane: int, shape: tuple[int, int, int]
    ) -> Floats:
        """Exact in float32."""
        _, heads, dim = shape
        exponents, rows = pieces(section, heads * dim)
        if ((exponents < 32) | (exponents > 228)).any() or ((rows & 0x7F) == 0x7F).any():
            raise Corrupt("an exponent or an e4m3fn number is outside what encoders write")
        scale = ((exponents.astype(np.uint32) - np.uint32(8)) << np.uint32(23)).view(np.float32)
        return from_e4m3(rows.reshape(shape)) * scale.reshape(heads, dim)


def to_e4m3(values: Floats) -> npt.NDArray[np.uint8]:
    """The nearest float8_e4m3fn to finite values, at most 448."""
    bits = values.view(np.uint32)
    large = bits & np.uint32(0x7FFFFFFF)
    rounded = large + np.uint32(0x7FFFF) + ((large >> np.uint32(20)) & np.uint32(1))
    normal = (rounded >> np.uint32(20)) - np.uint32(120 << 3)  # from float32's bias of exponents to e4m3's
    small = np.abs(values) < np.float32(2.0**-6)
    tiny = np.rint(np.where(small, np.abs(values), np.float32(0)) * np.float32(512)).astype(np.uint32)
    code = np.minimum(np.where(small, tiny, normal), np.uint32(0x7E))
    sign = (bits >> np.uint32(24)) & np.uint32(0x80)
    found: npt.NDArray[np.uint8] = (code | sign).astype(np.uint8)
    return found


def from_e4m3(codes: npt.NDArray[np.uint8]) -> Floats:
    """The values of float8_e4m3fn numbers that are not NaN."""
    wide = codes.astype(np.uint32)
    code = wide & np.uint32(0x7F)
    normal = ((code << np.uint32(20)) + np.uint32(120 << 23)).view(np.float32)
    value = np.where(code < 8, code.astype(np.float32) * np.float32(2.0**-9), normal)
    return (value.view(np.uint32) | ((wide & np.uint32(0x80)) << np.uint32(24))).view(np.float32)
