"""The transform codec in NumPy: what the native code must give, bit for bit when it decodes.

Encoding is float32 and need not agree between implementations; decoding is integers up to the scale, and float32
without fused operations from there on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs import rans
from kvstore.codecs.base import NotEncodable
from kvstore.codecs.block import Block
from kvstore.codecs.floats import Floats, from_float32, to_float32
from kvstore.codecs.transform import body as bodies
from kvstore.codecs.transform.plan import Plan

Quantized = npt.NDArray[np.int32]


def encode(raw: memoryview, block: Block, plan: Plan) -> bytes:
    """The body of a frame. `NotEncodable` for NaN, infinity, and values that are out of proportion."""
    bits = block.canonical(raw)
    sinks = bodies.sinks_of(block.position, block.tokens, plan.sinks)
    shape = _shape(block, plan, sinks)
    q = np.zeros((0, plan.columns), np.int32)
    if shape.tokens:
        q = quantize(forward(channels(bits[:, :, sinks:], block, plan, sinks), plan), plan)
    symbols, low, escapes = _symbols(q, plan)
    streams = [
        rans.encode(symbols[tokens, columns], plan.tables[columns], plan.bank)
        for tokens, columns in shape.tiles(bodies.STREAM_TOKENS, bodies.STREAM_COLUMNS)
    ]
    raw_sinks = np.ascontiguousarray(bits[:, :, :sinks]).tobytes()
    return bodies.pack(sinks, raw_sinks, bodies.pack_bits(low, plan.shift), escapes, streams)


def decode(body: memoryview, block: Block, plan: Plan, out: memoryview) -> None:
    """Decode a body into the block's raw bytes. `Corrupt` for a body that no encoder makes."""
    bits = block.canonical(out)
    sinks = bodies.sinks_of(block.position, block.tokens, plan.sinks)
    shape = _shape(block, plan, sinks)
    pieces = bodies.unpack(body, shape, sinks)
    q = np.zeros((shape.tokens, shape.columns), np.int16)
    for (tokens, columns), stream in zip(pieces.tiles, pieces.streams, strict=True):
        size = (tokens.stop - tokens.start, columns.stop - columns.start)
        q[tokens, columns] = rans.decode(stream, plan.tables[columns], plan.bank, size)
    q = (q - 128 << plan.shift) | bodies.unpack_bits(pieces.bits, plan.shift, shape.tokens)
    q[pieces.escapes["token"], pieces.escapes["column"]] = pieces.escapes["value"]
    head = np.frombuffer(pieces.raw, bits.dtype).reshape(bits[:, :, :sinks].shape)
    bits[:, :, :sinks] = head
    if shape.tokens:
        bits[:, :, sinks:] = from_float32(turned(inverse(q, plan), block, plan, sinks), block.dtype)


def channels(bits: npt.NDArray[Any], block: Block, plan: Plan, sinks: int) -> Floats:
    """Values `[token, channel]` of bits `[layer, plane, token, head, dim]`, keys before rotation."""
    values = np.array(to_float32(np.ascontiguousarray(bits), block.dtype))
    if not np.isfinite(values).all():
        raise NotEncodable("NaN or infinity in KV: the transform codec takes finite values; lossless takes these")
    for layer, rotary in enumerate(plan.rotary):
        if rotary.pairs:
            rotary.turn_back(values[layer, 0], block.position + sinks)
    tokens = values.shape[2]
    return values.transpose(2, 0, 1, 3, 4).reshape(tokens, values.size // tokens if tokens else 0)


def forward(values: Floats, plan: Plan) -> Floats:
    """Components in units of their step, `[token, column]`."""
    made = np.zeros((len(values), plan.columns), np.float32)
    if not len(values):
        return made
    for section in plan.sections:
        made[:, section.columns] = (values[:, section.channels] - section.mean) @ section.forward.T
    return made


def quantize(components: Floats, plan: Plan) -> Quantized:
    """Whole numbers of components: what is left of their sizes, plus the rounding, without the fraction."""
    size = np.abs(components) + plan.rounding
    if size.max() >= 32768:
        raise NotEncodable(f"a component is {size.max():.3g} steps from the mean; the transform codec holds 32,767")
    q = np.copysign(np.trunc(size), components).astype(np.int32)
    for section in plan.sections:
        if np.abs(q[:, section.columns]).sum(1).max() * 127 >= 1 << 31:
            raise NotEncodable("the components of a token are too large together for 32-bit sums")
    return q


def inverse(q: npt.NDArray[Any], plan: Plan) -> Floats:
    """Values `[token, channel]` of whole numbers. float64 holds the sums of integers exactly; they wrap at 32 bits."""
    made = []
    for section in plan.sections:
        total = q[:, section.columns].astype(np.float64) @ section.matrix.T.astype(np.float64)
        whole = total.astype(np.int64).astype(np.int32)
        made.append(whole.astype(np.float32) * section.scale + section.mean)
    return np.concatenate(made, axis=1)


def turned(values: Floats, block: Block, plan: Plan, sinks: int) -> Floats:
    """Values `[layer, plane, token, head, dim]` as the cache holds them, keys rotated."""
    shape = (len(values), len(block.layers), block.planes, block.heads, block.dim)
    made = np.ascontiguousarray(values.reshape(shape).transpose(1, 2, 0, 3, 4))
    for layer, rotary in enumerate(plan.rotary):
        if rotary.pairs:
            rotary.turn(made[layer, 0], block.position + sinks)
    return made


def _shape(block: Block, plan: Plan, sinks: int) -> bodies.Shape:
    per_token = len(block.layers) * block.planes * block.heads * block.dim * block.itemsize
    return bodies.Shape(block.tokens - sinks, plan.columns, plan.bit_planes, sinks * per_token)


def _symbols(q: Quantized, plan: Plan) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8], npt.NDArray[np.void]]:
    """Symbols and low bits, uint8 `[token, column]`, and the escapes: what the tables have no symbol for."""
    symbols = (q >> plan.shift) + 128
    low = (q & (1 << plan.shift) - 1).astype(np.uint8)
    inside = (symbols > 0) & (symbols < 256)
    coded = np.where(inside, symbols, 0).astype(np.uint8)
    known = plan.bank[plan.tables[None, :], coded] > 0
    escaped = ~(inside & known)
    coded[escaped] = 0
    token, column = np.nonzero(escaped)
    escapes = np.zeros(len(token), bodies.ESCAPE)
    escapes["token"], escapes["column"], escapes["value"] = token, column, q[token, column]
    return coded, low, escapes
