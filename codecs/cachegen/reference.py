"""A frame's body, in NumPy: the definition that the native code follows bit for bit.

All arithmetic is float32, every product, sum and difference rounded on its own, in this order:

    an anchor's code       q = rint((x − mean) · (1 / bin));  its value  a = q · bin + mean
    a difference's code    q = rint((x − a) · (1 / bin));     its value  v = q · bin + a

The symbol is q + 128. Where the column's table does not have q, the symbol is 0 and the element itself is written out:
nothing is clipped. A body, little-endian:

    offset  bytes
       0      4   length of the anchors' stream
       4      4   anchors that are written out
       8      4   differences that are written out
      12      2   tokens of the first group, 1 to `group`
      14      2   zeros
      16          the anchors' stream: symbols [groups, columns] (kvstore.codecs.rans)
                  the differences' stream: symbols [tokens that are no anchors, columns]; empty if there are none
                  the elements written out: anchors', then the others', by token, then column

Groups have `group` tokens from the second on; the last may be shorter.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs import rans
from kvstore.codecs.cachegen.tables import ZERO, LayerTables, Side
from kvstore.codecs.floats import Bits, Floats, from_float32, to_float32
from kvstore.errors import Corrupt

HEAD = struct.Struct("<IIIHH")
LIMIT = np.float32(2.0**100)  # magnitudes below it are coded, so that nothing overflows

Rows = npt.NDArray[np.intp]
Symbols = npt.NDArray[np.uint8]


def first_group(position: int, group: int) -> int:
    """Tokens of a chunk's first group: the prompt's first token stands alone.

    Models park attention on it (an attention sink): its keys and values are like no other token's, and no anchor for
    those after it.
    """
    return 1 if position == 0 else group


def anchor_rows(tokens: int, group: int, first: int) -> Rows:
    """Which tokens are anchors."""
    return np.concatenate([[0], np.arange(first, tokens, group)]).astype(np.intp)


def encode_body(bits: Bits, dtype: str, tables: LayerTables, first: int) -> bytes:
    """The body for elements `bits` [token, column], all of them finite and below 2^100."""
    values = to_float32(bits, dtype)
    anchors = anchor_rows(len(values), tables.group, first)
    others = np.delete(np.arange(len(values)), anchors)
    symbols, decoded = _quantize(values[anchors], tables.mean, tables.anchors)
    decoded = np.where(symbols == 0, values[anchors], decoded)
    base = decoded[np.searchsorted(anchors, others, side="right") - 1]
    rest, _ = _quantize(values[others], base, tables.deltas)
    streams = [rans.encode(symbols, tables.anchors.tables, tables.freqs)]
    streams += [rans.encode(rest, tables.deltas.tables, tables.freqs)] if len(rest) else []
    written = np.concatenate([bits[anchors][symbols == 0], bits[others][rest == 0]])
    head = HEAD.pack(len(streams[0]), int((symbols == 0).sum()), int((rest == 0).sum()), first, 0)
    return head + b"".join(streams) + written.tobytes()


def decode_body(body: memoryview, dtype: str, tables: LayerTables, out: Bits) -> None:
    """Decode into `out` [token, column]. `Corrupt` for a body that no encoder makes."""
    first, streams, written = open_body(body, dtype, out.dtype, tables.group)
    anchors = anchor_rows(len(out), tables.group, first)
    others = np.delete(np.arange(len(out)), anchors)
    columns = out.shape[1]
    symbols = rans.decode(streams[0], tables.anchors.tables, tables.freqs, (len(anchors), columns))
    decoded = _values(symbols, tables.mean, tables.anchors)
    decoded[symbols == 0] = to_float32(_due(written[0], symbols), dtype)
    out[anchors] = from_float32(decoded, dtype)
    if not len(others):
        if len(streams[1]) or len(written[1]):
            raise Corrupt("the body has differences and every token is an anchor")
        return
    rest = rans.decode(streams[1], tables.deltas.tables, tables.freqs, (len(others), columns))
    base = decoded[np.searchsorted(anchors, others, side="right") - 1]
    elements = from_float32(_values(rest, base, tables.deltas), dtype)
    elements[rest == 0] = _due(written[1], rest)
    out[others] = elements


def _quantize(values: Floats, base: Floats, side: Side) -> tuple[Symbols, Floats]:
    """Symbols, and the values that they decode to."""
    code = np.rint((values - base) * side.inverse)
    code = np.where((code >= side.low) & (code <= side.high), code, np.float32(-ZERO))
    return (code + np.float32(ZERO)).astype(np.uint8), code * side.step + base


def _values(symbols: Symbols, base: Floats, side: Side) -> Floats:
    return (symbols.astype(np.float32) - np.float32(ZERO)) * side.step + base


def _due(written: Bits, symbols: Symbols) -> Bits:
    if len(written) != int((symbols == 0).sum()):
        raise Corrupt(f"{len(written)} elements are written out for {int((symbols == 0).sum())} symbols 0")
    return written


def open_body(
    body: memoryview, dtype: str, element: np.dtype[Any], group: int
) -> tuple[int, tuple[memoryview, memoryview], tuple[Bits, Bits]]:
    """The tokens of the first group, both streams, and the elements written out for either."""
    if len(body) < HEAD.size:
        raise Corrupt(f"a body of {len(body)} bytes is too short")
    length, anchors, others, first, zeros = HEAD.unpack_from(body)
    end = len(body) - (anchors + others) * element.itemsize
    if zeros or not 1 <= first <= group or HEAD.size + length > end:
        raise Corrupt(f"the body's head does not fit: {length} + {anchors} + {others} in {len(body)} bytes, {first}")
    written = np.frombuffer(body[end:], element)
    if not (np.abs(to_float32(written, dtype)) < LIMIT).all():
        raise Corrupt("an element that is written out is no finite number below 2^100")
    at = HEAD.size + length
    return first, (body[HEAD.size : at], body[at:end]), (written[:anchors], written[anchors:])
