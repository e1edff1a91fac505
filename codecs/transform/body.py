"""The body of a transform frame: how it is laid out, written and read (docs/codecs.md, "transform").

    offset  bytes
       0      1   version, 1
       1      1   sinks S: leading tokens that are stored as they are
       2      2   tokens of a stream
       4      2   columns of a stream, a multiple of 32
       6      2   zeros
       8      4   escapes E
      12    4 N   length of each stream in bytes

Then, each padded with zeros to a multiple of 4 bytes: the sinks' elements `[layer, plane, token, head, dim]`; the low
bits; the escapes, 6 bytes each; the streams one by one.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kvstore.errors import Corrupt

_HEAD = struct.Struct("<BBHHHI")
VERSION = 1
ESCAPE = np.dtype([("token", "<u2"), ("column", "<u2"), ("value", "<i2")])
STREAM_TOKENS, STREAM_COLUMNS = 256, 512  # what the encoder writes
LEAST_STREAM = 128  # bytes: the states of 32 lanes


@dataclass(frozen=True, slots=True)
class Shape:
    """What the lengths in a body follow from: coded tokens, columns, planes of low bits, bytes of the sinks."""

    tokens: int
    columns: int
    bit_planes: int
    sink_bytes: int

    def tiles(self, stream_tokens: int, stream_columns: int) -> list[tuple[slice, slice]]:
        """The tokens and columns of each stream: by tokens first, then by columns."""
        return [
            (slice(t, min(t + stream_tokens, self.tokens)), slice(c, min(c + stream_columns, self.columns)))
            for t in range(0, self.tokens, stream_tokens)
            for c in range(0, self.columns, stream_columns)
        ]


@dataclass(frozen=True, slots=True)
class Pieces:
    """A body taken apart. `escapes` has the dtype `ESCAPE` and rises by token and column."""

    sinks: int
    tiles: Sequence[tuple[slice, slice]]
    raw: memoryview
    bits: memoryview
    escapes: npt.NDArray[np.void]
    streams: Sequence[memoryview]


def sinks_of(position: int, tokens: int, sinks: int) -> int:
    """How many leading tokens of a chunk are among a prompt's first `sinks`."""
    return max(0, min(tokens, sinks - position))


def pack(sinks: int, raw: bytes, bits: bytes, escapes: npt.NDArray[np.void], streams: Sequence[bytes]) -> bytes:
    """A body of its pieces."""
    head = _HEAD.pack(VERSION, sinks, STREAM_TOKENS, STREAM_COLUMNS, 0, len(escapes))
    lengths = np.array([len(stream) for stream in streams], "<u4").tobytes()
    return b"".join([head, lengths, *map(_padded, (raw, bits, escapes.tobytes(), *streams))])


def unpack(body: memoryview, shape: Shape, sinks: int) -> Pieces:
    """The pieces of a body that must be of this shape. `Corrupt` for any other."""
    if len(body) < _HEAD.size:
        raise Corrupt(f"a transform's body has at least {_HEAD.size} bytes; this one has {len(body)}")
    version, found, stream_tokens, stream_columns, zeros, count = _HEAD.unpack_from(body)
    if version != VERSION or zeros or found != sinks:
        raise Corrupt(f"version {version} with {found} sinks; this build reads version {VERSION} with {sinks} here")
    if not stream_tokens or not stream_columns or stream_columns % 32:
        raise Corrupt(f"streams of {stream_tokens} tokens and {stream_columns} columns")
    down, across = -(-shape.tokens // stream_tokens), -(-shape.columns // stream_columns)
    streams = down * across
    fixed = _HEAD.size + 4 * streams
    least = fixed + shape.sink_bytes + shape.bit_planes * -(-shape.tokens // 8) + ESCAPE.itemsize * count
    if least + LEAST_STREAM * streams > len(body):
        raise Corrupt(f"{streams} streams and {count} escapes do not fit a body of {len(body)} bytes")
    lengths = struct.unpack_from(f"<{streams}I", body, _HEAD.size)
    sizes = [shape.sink_bytes, shape.bit_planes * -(-shape.tokens // 8), ESCAPE.itemsize * count, *lengths]
    whole = fixed + sum(size + -size % 4 for size in sizes)
    if min(lengths, default=LEAST_STREAM) < LEAST_STREAM or whole != len(body):
        raise Corrupt(f"the pieces of a transform's body do not add up to its {len(body)} bytes")
    pieces, at = list[memoryview](), fixed
    for size in sizes:
        pieces.append(body[at : at + size])
        at += size + -size % 4
    escapes = np.frombuffer(pieces[2], ESCAPE)
    if count:
        _check(escapes, shape)
    tiles = shape.tiles(stream_tokens, stream_columns)
    return Pieces(found, tiles, pieces[0], pieces[1], escapes, pieces[3:])


def _check(escapes: npt.NDArray[np.void], shape: Shape) -> None:
    order = escapes["token"].astype(np.int64) << 16 | escapes["column"]
    inside = (escapes["token"] < shape.tokens) & (escapes["column"] < shape.columns)
    if not inside.all() or (order[1:] <= order[:-1]).any():
        raise Corrupt("escapes that are out of order or outside the frame")


def _padded(piece: bytes) -> bytes:
    return piece + bytes(-len(piece) % 4)


def pack_bits(low: npt.NDArray[np.uint8], shift: npt.NDArray[np.uint8]) -> bytes:
    """Low bits `[token, column]` as bit planes: for each column with a shift, lowest bit first, a bit per token."""
    tokens, planes = len(low), list[npt.NDArray[np.uint8]]()
    for column in np.flatnonzero(shift):
        for bit in range(int(shift[column])):
            planes.append(np.packbits(low[:, column] >> bit & 1, bitorder="little"))
    return np.concatenate(planes).tobytes() if planes and tokens else b""


def unpack_bits(data: memoryview, shift: npt.NDArray[np.uint8], tokens: int) -> npt.NDArray[np.int16]:
    """The inverse of `pack_bits`, int16 `[token, column]`."""
    low = np.zeros((tokens, len(shift)), np.int16)
    each = -(-tokens // 8)
    packed = np.frombuffer(data, np.uint8).reshape(-1, each) if each else np.zeros((int(shift.sum()), 0), np.uint8)
    bits = np.unpackbits(packed, axis=1, count=tokens, bitorder="little")
    at = 0
    for column in np.flatnonzero(shift):
        for bit in range(int(shift[column])):
            low[:, column] |= bits[at].astype(np.int16) << bit
            at += 1
    return low
