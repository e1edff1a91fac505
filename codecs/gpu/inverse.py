"""The kernels of the transform codec: from levels int16 `[token, column]` to KV (`kvstore.codecs.transform`).

A product of int16 and int8 is not in the hardware, two of int8 are: q = 256 · high + low + 128, both in −128 … 127, so
the sum is 256 (high · M) + (low · M) + 128 Σ M, exact in int32 modulo 2^32 as the definition wants it, on tensor cores.
Theirs saturate instead of wrapping; neither part reaches 2^31, with 8,192 columns at most.

Rotation mixes two channels of a head, so a program makes a tile of tokens and of **pairs** of channels, each with its
own rows of the matrix: the pairs of the rotary embedding, and for channels that do not turn any two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from kvstore.codecs.gpu.floats import in_runs, step_of, store_floats


@triton.jit
def inverse(
    q: tl.tensor,
    staged: tl.tensor,
    slices: tl.tensor,
    PLANES: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DTYPE: tl.constexpr,
    TOKENS: tl.constexpr,
    PAIRS: tl.constexpr,
    DEPTH: tl.constexpr,
    RUN: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
) -> None:
    """KV of a slice: channels of one layer that share a matrix. `staged` holds the rotary tables, as float32.

    Pairs come in runs of RUN, of which channels and columns of the rotary tables count from a multiple of RUN.
    """
    job = slices + tl.program_id(0) * 21
    tokens = tl.load(job + 2).to(tl.int32)
    count = tl.multiple_of(tl.load(job + 3).to(tl.int32), RUN)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    pair = tl.program_id(2) * PAIRS + tl.arange(0, PAIRS)
    here, there = pair < count, token < tokens
    first = tl.load(tl.load(job + 4).to(tl.pointer_type(tl.int32)) + pair, mask=here, other=0)
    second = tl.load(tl.load(job + 5).to(tl.pointer_type(tl.int32)) + pair, mask=here, other=-1)
    turn = tl.load(tl.load(job + 6).to(tl.pointer_type(tl.int32)) + pair, mask=here, other=-1)
    turning, paired = tl.max_constancy(turn >= 0, RUN), tl.max_constancy(second >= 0, RUN)
    first = tl.max_contiguous(tl.multiple_of(first, RUN), RUN)
    partner = tl.max_contiguous(tl.multiple_of(tl.maximum(second, 0), RUN), RUN)
    turn = tl.max_contiguous(tl.multiple_of(turn, RUN), RUN)

    # Sections begin at multiples of 8 columns; what a row of the matrix lacks up to its pitch is zeros, so that what
    # stands there in q does not matter. These facts are for the compiler: it loads several elements at once.
    pitch = tl.multiple_of(tl.load(job + 7).to(tl.int32), 32)
    matrix = tl.multiple_of(tl.load(job + 8).to(tl.pointer_type(tl.int8)), 16)
    columns = tl.multiple_of(tl.load(job + 1), 32)
    rows = q + tl.multiple_of(tl.load(job), 8) + token[:, None].to(tl.int64) * columns
    high_1 = tl.zeros((TOKENS, PAIRS), tl.int32)
    low_1 = tl.zeros((TOKENS, PAIRS), tl.int32)
    high_2 = tl.zeros((TOKENS, PAIRS), tl.int32)
    low_2 = tl.zeros((TOKENS, PAIRS), tl.int32)
    for start in range(0, pitch, DEPTH):  # a row's pitch is a multiple of DEPTH
        column = tl.multiple_of(start, DEPTH) + tl.arange(0, DEPTH)
        level = tl.load(rows + column[None, :], mask=there[:, None], other=0).to(tl.int32)
        high = (level >> 8).to(tl.int8)
        low = ((level & 255) - 128).to(tl.int8)
        rows_1 = tl.load(matrix + (first * pitch)[None, :] + column[:, None], mask=here[None, :], other=0)
        rows_2 = tl.load(matrix + (partner * pitch)[None, :] + column[:, None], mask=here[None, :], other=0)
        high_1 = tl.dot(high, rows_1, acc=high_1, out_dtype=tl.int32)
        low_1 = tl.dot(low, rows_1, acc=low_1, out_dtype=tl.int32)
        high_2 = tl.dot(high, rows_2, acc=high_2, out_dtype=tl.int32)
        low_2 = tl.dot(low, rows_2, acc=low_2, out_dtype=tl.int32)
    x_1 = _scaled(high_1, low_1, job, first, here)
    x_2 = _scaled(high_2, low_2, job, partner, here)

    at = token[:, None] * tl.load(job + 12).to(tl.int32) + turn[None, :]
    turns = there[:, None] & turning[None, :]
    cos = tl.load(staged + tl.load(job + 13) + at, mask=turns, other=1.0)
    sin = tl.load(staged + tl.load(job + 14) + at, mask=turns, other=0.0)
    out_1 = tl.where(turns, x_1 * cos - x_2 * sin, x_1)
    out_2 = tl.where(turns, x_2 * cos + x_1 * sin, x_2)

    address = tl.load(job + 15)
    to = token[:, None].to(tl.int64) * step_of(job + 16, ALIGN, DTYPE)
    inside = there[:, None] & here[None, :]
    to_1 = to + _place(first, job, PLANES, HEADS, DIM, RUN, UNIT, ALIGN, DTYPE)[None, :]
    to_2 = to + _place(partner, job, PLANES, HEADS, DIM, RUN, UNIT, ALIGN, DTYPE)[None, :]
    store_floats(address, to_1, out_1, inside, DTYPE, ALIGN)
    store_floats(address, to_2, out_2, inside & paired[None, :], DTYPE, ALIGN)


@triton.jit
def _scaled(high: tl.tensor, low: tl.tensor, job: tl.tensor, channel: tl.tensor, here: tl.tensor) -> tl.tensor:
    scale = tl.load(tl.load(job + 9).to(tl.pointer_type(tl.float32)) + channel, mask=here, other=0.0)
    mean = tl.load(tl.load(job + 10).to(tl.pointer_type(tl.float32)) + channel, mask=here, other=0.0)
    offset = tl.load(tl.load(job + 11).to(tl.pointer_type(tl.int32)) + channel, mask=here, other=0)
    whole = high * 256 + low + offset[None, :]
    return whole.to(tl.float32) * scale[None, :] + mean[None, :]


@triton.jit
def _place(
    channel: tl.tensor,
    job: tl.tensor,
    PLANES: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    RUN: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    DTYPE: tl.constexpr,
) -> tl.tensor:
    head, plane = channel // DIM, channel // (DIM * HEADS)
    layer = (plane // PLANES).to(tl.int64)
    outer = layer * step_of(job + 17, ALIGN, DTYPE) + (plane % PLANES).to(tl.int64) * step_of(job + 18, ALIGN, DTYPE)
    outer += (head % HEADS).to(tl.int64) * step_of(job + 19, ALIGN, DTYPE)
    dim = (channel % DIM).to(tl.int64)
    return in_runs(outer, dim, RUN, ALIGN, DTYPE) if UNIT else outer + dim * tl.load(job + 20)


@triton.jit
def add_low_bits(
    q: tl.tensor, staged: tl.tensor, frames: tl.tensor, TOKENS: tl.constexpr, COLUMNS: tl.constexpr
) -> None:
    """Fill in the low bits of a frame, which the streams leave at zero: bit planes, column by column."""
    job = frames + tl.program_id(0) * 6
    columns, tokens = tl.load(job + 1), tl.load(job + 2).to(tl.int32)
    bits = staged + tl.load(job + 3)
    column = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    shifts, planes = tl.load(job + 4).to(tl.pointer_type(tl.uint8)), tl.load(job + 5).to(tl.pointer_type(tl.int32))
    shift = tl.load(shifts + column, mask=column < columns, other=0).to(tl.int32)
    top = tl.max(shift, 0)
    if top > 0:
        token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
        inside = (token < tokens)[:, None] & (shift > 0)[None, :]
        pitch = (tokens + 7) // 8
        plane = tl.load(planes + column, mask=column < columns, other=0) * pitch
        to = q + tl.load(job) + token[:, None].to(tl.int64) * columns + column[None, :]
        value = tl.load(to, mask=inside, other=0).to(tl.int32)
        for bit in range(top):
            at = (plane + bit * pitch)[None, :] + (token // 8)[:, None]
            byte = tl.load(bits + at, mask=inside & (bit < shift)[None, :], other=0).to(tl.int32)
            value = value | ((byte >> (token % 8)[:, None]) & 1) << bit
        tl.store(to, value.to(tl.int16), mask=inside)


@triton.jit
def patch(q: tl.tensor, places: tl.tensor, values: tl.tensor, count: tl.tensor, BLOCK: tl.constexpr) -> None:
    """Put escaped values in their places."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place = tl.load(places + at, mask=at < count, other=0)
    tl.store(q + place, tl.load(values + at, mask=at < count, other=0), mask=at < count)


@triton.jit
def copy_sinks(
    staged: tl.tensor,
    frames: tl.tensor,
    PLANES: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Put the elements of sinks `[layer, plane, token, head, dim]` in their places, as they are."""
    job = frames + tl.program_id(0) * 9
    count, sinks = tl.load(job + 1).to(tl.int32), tl.load(job + 2).to(tl.int32)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    token = at // (HEADS * DIM)
    plane = token // sinks
    to = (plane // PLANES).to(tl.int64) * tl.load(job + 4) + (plane % PLANES).to(tl.int64) * tl.load(job + 5)
    to += (token % sinks).to(tl.int64) * tl.load(job + 6) + (at // DIM % HEADS).to(tl.int64) * tl.load(job + 7)
    to += (at % DIM).to(tl.int64) * tl.load(job + 8)
    raw, address = staged + tl.load(job), tl.load(job + 3)
    if WIDE:
        found = tl.load(raw.to(tl.pointer_type(tl.uint32)) + at, mask=inside, other=0)
        tl.store(address.to(tl.pointer_type(tl.uint32)) + to, found, mask=inside)
    else:
        half = tl.load(raw.to(tl.pointer_type(tl.uint16)) + at, mask=inside, other=0)
        tl.store(address.to(tl.pointer_type(tl.uint16)) + to, half, mask=inside)
