"""lossless: exponents by rANS with built-in tables, sign and mantissa bits as they are. Gives back every bit.

In KV, sign and mantissa are noise, and the exponents of a channel follow one of a few distributions, moved up or down.
16 of these ship with the codec (`kvstore.codecs.lossless_priors` made them), so that a chunk of 256 tokens has no
statistics to carry: the encoder names a table and an offset for each channel, a byte in all.

A body is stored, if that is no longer: u8 0, then the raw bytes. Else:

    u8        kind: 1, plus 2 where the channels of a head share their parameters, plus 4 where those are wide
    u32       number of escaped exponents
    u8 ...    parameters of each channel [layer, plane, head, dim] (or of each head [layer, plane, head]). Narrow: the
              least offset of each [layer, plane], then for each channel (offset - least) << 4 | table. Wide: all
              offsets, then all tables
    ...       sign and mantissa bits of all elements [layer, plane, token, head, dim]: see `split`
    u8 ...    the escaped exponents, in the order of [token, channel]
    ...       the rANS stream (`kvstore.codecs.rans`) of symbols [token, channel]

A symbol is (exponent - offset) mod 256 where that is below 31, else 31: an escaped exponent. For float16 an exponent is
5 bits, else 8. The functions here are the definition; the native code makes the same bytes.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.codecs import rans
from kvstore.codecs.artefact import Artefact
from kvstore.codecs.base import Codec
from kvstore.codecs.block import Block
from kvstore.codecs.floats import Bits, require_floats
from kvstore.codecs.frame import Buffer, Frame
from kvstore.errors import Corrupt

Bytes: TypeAlias = npt.NDArray[np.uint8]

STORED, CODED, PER_HEAD, WIDE = 0, 1, 2, 4
SYMBOLS, ESCAPE = 32, 31
SHIFTS, DEPTH = 8, 40
PER_HEAD_TOKENS = 64  # in longer chunks each channel has parameters of its own
_HEAD = struct.Struct("<BI")


class Lossless(Codec):
    """Every bit back, NaN payloads and denormal numbers included. Needs no artefact."""

    number, name, exact, lanes = 3, "lossless", True, rans.LANES

    def check(self, block: Block) -> None:
        """`InvalidArgument` for opaque bytes, and for integers or fp8 as a dtype."""
        require_floats(self.name, block)

    def encode_frame(self, raw: memoryview, block: Block, level: int, artefact: Artefact | None) -> Buffer:
        """Never more than a byte longer than the raw bytes."""
        del level, artefact
        return _native.lossless_encode(block.dtype, _shape(block), block.strides(), raw)

    def decode_frame(
        self, body: memoryview, frame: Frame, block: Block, out: memoryview, artefact: Artefact | None
    ) -> None:
        """Decode into `out`. `Corrupt` for what no encoder makes."""
        del frame, artefact
        if not _native.lossless_decode(block.dtype, _shape(block), block.strides(), body, out):
            raise Corrupt(f"a lossless body of {len(body)} bytes is damaged")


def encode_reference(raw: memoryview, block: Block) -> bytes:
    """`Lossless.encode_frame`, by the definition."""
    exponents, rest = split(block.canonical(raw), block.dtype)
    columns = exponents.transpose(2, 0, 1, 3, 4).reshape(block.tokens, -1)
    sections, kind = len(block.layers) * block.planes, CODED
    offsets, tables, cost = choose(columns, 1)
    if block.tokens <= PER_HEAD_TOKENS and block.dim > 1:
        shared = choose(columns, block.dim)
        if shared[2] + 2048 * len(shared[0]) < cost + 2048 * len(offsets):
            (offsets, tables, _), kind = shared, CODED | PER_HEAD
    least = offsets.reshape(sections, -1).min(axis=1)
    above = offsets.reshape(sections, -1) - least[:, None]
    if above.max() < 16:
        parameters = least.astype(np.uint8).tobytes() + (above.ravel() << 4 | tables).astype(np.uint8).tobytes()
    else:
        kind |= WIDE
        parameters = offsets.astype(np.uint8).tobytes() + tables.astype(np.uint8).tobytes()
    span = block.dim if kind & PER_HEAD else 1
    symbols = np.minimum(columns - np.repeat(offsets, span).astype(np.uint8), ESCAPE).astype(np.uint8)
    escapes = columns[symbols == ESCAPE].tobytes()
    stream = rans.encode(symbols, np.repeat(tables, span).astype(np.uint8), freqs())
    body = _HEAD.pack(kind, len(escapes)) + parameters + rest.tobytes() + escapes + stream
    return body if len(body) <= block.nbytes else bytes([STORED]) + bytes(raw)


def decode_reference(body: memoryview, block: Block, out: memoryview) -> None:
    """`Lossless.decode_frame`, by the definition, for a body that an encoder made."""
    if body[0] == STORED:
        out[:] = body[1:]
        return
    kind, escaped = _HEAD.unpack_from(body)
    sections, channels = len(block.layers) * block.planes, block.heads * block.dim
    span = block.dim if kind & PER_HEAD else 1
    count = sections * channels // span
    data = np.frombuffer(body, np.uint8)[_HEAD.size :]
    lengths = (count if kind & WIDE else sections, count, rest_bytes(block), escaped)
    first, second, rest, escapes, stream = np.split(data, np.cumsum(lengths))
    offsets, tables = first, second
    if not kind & WIDE:
        offsets = np.repeat(first, count // sections) + (second >> np.uint8(4))
        tables = second & np.uint8(15)
    shape = (block.tokens, sections * channels)
    symbols = rans.decode(stream.tobytes(), np.repeat(tables, span), freqs(), shape)
    columns = symbols + np.repeat(offsets, span)
    columns[symbols == ESCAPE] = escapes
    parts = columns.reshape(block.tokens, len(block.layers), block.planes, block.heads, block.dim)
    block.canonical(out)[...] = join(parts.transpose(1, 2, 0, 3, 4), rest, block.dtype)


def split(bits: Bits, dtype: str) -> tuple[Bytes, Bytes]:
    """Exponents, as an array of the same shape, and the rest of the bits of all elements in C order.

    The rest: bfloat16 a byte each (7 bits of mantissa, sign on top). float16 the low byte of each, then 3 bits each
    (2 of mantissa, sign on top), 8 of these in 3 bytes. float32 three byte planes: the mantissa's low byte of all, its
    next byte of all, and 7 bits with the sign on top.
    """
    if dtype == "bfloat16":
        return (bits >> 7).astype(np.uint8), (bits & 0x7F | bits >> 8 & 0x80).astype(np.uint8).ravel()
    if dtype == "float16":
        top = (bits >> 8 & 3 | bits >> 13 & 4).astype(np.uint8).ravel()
        pieces = np.unpackbits(top[:, None], axis=1, count=3, bitorder="little")
        packed = np.packbits(pieces.ravel(), bitorder="little")
        return (bits >> 10 & 0x1F).astype(np.uint8), np.concatenate([bits.astype(np.uint8).ravel(), packed])
    planes = [bits, bits >> 8, bits >> 16 & 0x7F | bits >> 24 & 0x80]
    return (bits >> 23).astype(np.uint8), np.concatenate([plane.astype(np.uint8).ravel() for plane in planes])


def join(exponents: Bytes, rest: Bytes, dtype: str) -> Bits:
    """The inverse of `split`."""
    shape, count = exponents.shape, exponents.size
    if dtype == "float32":
        low, middle, top = rest.reshape(3, *shape).astype(np.uint32)
        joined: Bits = (top & 0x80) << 24 | exponents.astype(np.uint32) << 23 | (top & 0x7F) << 16 | middle << 8 | low
        return joined
    if dtype == "bfloat16":
        kept = rest.reshape(shape).astype(np.uint16)
        return (kept & 0x80) << 8 | exponents.astype(np.uint16) << 7 | kept & 0x7F
    pieces = np.unpackbits(rest[count:], count=3 * count, bitorder="little").reshape(count, 3)
    top = np.packbits(pieces, axis=1, bitorder="little").reshape(shape).astype(np.uint16)
    return (top & 4) << 13 | exponents.astype(np.uint16) << 10 | (top & 3) << 8 | rest[:count].reshape(shape)


def rest_bytes(block: Block) -> int:
    """Bytes of what `split` leaves of a block's elements."""
    count = block.nbytes // block.itemsize
    return {"bfloat16": count, "float16": count + -(-3 * count // 8), "float32": 3 * count}[block.dtype]


def choose(columns: Bytes, span: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Offset and table for each `span` columns of exponents [token, column], and their cost in 1/256 bit.

    The largest exponent becomes symbol 30 - shift, shifts being 0 to 7; of all tables and shifts the cheapest, the
    first of equals, by counts of exponents at each depth below the largest.
    """
    groups = columns.reshape(len(columns), -1, span).transpose(1, 0, 2).reshape(columns.shape[1] // span, -1)
    largest = groups.max(axis=1).astype(np.int64)
    depths = np.minimum(largest[:, None] - groups, DEPTH)
    places = depths + np.arange(len(groups))[:, None] * (DEPTH + 1)
    counts = np.bincount(places.ravel(), minlength=len(groups) * (DEPTH + 1)).reshape(len(groups), -1)
    each = counts @ _way_costs().T
    best = each.argmin(axis=1)
    return largest - (ESCAPE - 1) + best % SHIFTS, best // SHIFTS, int(each.min(axis=1).sum())


def freqs() -> npt.NDArray[np.uint16]:
    """The built-in tables, [16, 256]."""
    tables = np.frombuffer(_native.lossless_freqs(), np.uint16).reshape(-1, SYMBOLS)
    return np.pad(tables, ((0, 0), (0, rans.SYMBOLS - SYMBOLS)))


def _way_costs() -> npt.NDArray[np.int64]:
    """Cost [table and shift, depth] of an exponent."""
    costs = np.frombuffer(_native.lossless_costs(), np.uint16).reshape(-1, SYMBOLS).astype(np.int64)
    symbol = ESCAPE - 1 - np.arange(SHIFTS)[:, None] - np.arange(DEPTH + 1)
    symbol = np.where(symbol < 0, ESCAPE, symbol)
    return costs[:, symbol].reshape(-1, DEPTH + 1)


def _shape(block: Block) -> tuple[int, int, int, int, int]:
    return len(block.layers), block.planes, block.tokens, block.heads, block.dim
