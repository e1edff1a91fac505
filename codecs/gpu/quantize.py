"""int8, fp8, int4 and kivi on a device, encoded bit for bit as `kvstore.codecs.quantized` defines them.

A program makes rows of one head of one section: a tile of tokens, and for what is scaled per channel a tile of channels
over all tokens (fp8) or over groups of 32 (kivi's K). Reads are whole rows; bandwidth bounds it.

The definition multiplies and adds in float32 and rounds each time, and divides only 1 by a scale: `div_rn` is that
division, and the launches forbid fusion.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import triton
import triton.language as tl

from kvstore.codecs.base import Encoded, Form, NotEncodable, seal
from kvstore.codecs.block import Block
from kvstore.codecs.gpu.dequantize import FIELDS, places_of
from kvstore.codecs.gpu.floats import (
    CODES,
    bfloat16_below,
    from_bfloat16,
    hadamard,
    load_floats,
    nearest,
    step_of,
    store_pair,
    to_bfloat16,
)
from kvstore.codecs.gpu.staging import Staging, device_of
from kvstore.codecs.hadamard import hadamard_size
from kvstore.codecs.kivi import Kivi
from kvstore.codecs.quantized import Fp8, Quantizer
from kvstore.errors import InvalidArgument

TILE_ELEMENTS = 2048  # of a program: 16 per thread


@triton.jit
def encode_rows(
    bodies: tl.tensor,
    sections: tl.tensor,
    status: tl.tensor,
    CODEC: tl.constexpr,
    BITS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    SIZE: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    BODY: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """int8, int4 and kivi, whose groups are inside a tile: TILE (BY_CHANNEL) and WIDTH are multiples of 32."""
    section = sections + tl.program_id(0) * 8
    body = tl.multiple_of(bodies + tl.load(section), BODY)
    tokens = tl.multiple_of(tl.load(section + 5).to(tl.int32), ROWS)
    head = tl.program_id(1)
    token = tl.program_id(2) * TILE + tl.arange(0, TILE)[:, None]
    dim = tl.arange(0, WIDTH)[None, :]
    inside = (token < tokens) & (dim < DIM)
    at = token.to(tl.int64) * step_of(section + 2, ALIGN, DTYPE) + head * step_of(section + 3, ALIGN, DTYPE)
    at += dim if UNIT else dim * tl.load(section + 4)
    values = load_floats(tl.load(section + 1), at, inside, DTYPE, ALIGN)
    _refuse(values, status + tl.load(section + 7))
    row = token * HEADS + head
    rows = tokens * HEADS
    if CODEC == 5:
        scale = _scale(tl.max(tl.abs(values), 1)[:, None], 127)
        store_pair(body, 2 * row, scale, token < tokens, BODY)
        steps = nearest(values * tl.div_rn(1.0, from_bfloat16(scale)))
        code = tl.minimum(tl.maximum(steps, -127.0), 127.0).to(tl.int32)
        tl.store(body + 2 * rows + row * DIM + dim, (code & 0xFF).to(tl.uint8), mask=inside)
    elif CODEC == 6:
        rotated = hadamard(values, TILE, WIDTH, SIZE)
        zero, scale = _asymmetric(_least(rotated, inside, 1)[:, None], _most(rotated, inside, 1)[:, None], 15)
        store_pair(body, 2 * row, zero, token < tokens, BODY)
        store_pair(body, 2 * rows + 2 * row, scale, token < tokens, BODY)
        _pack(body + 4 * rows, _levels(rotated, zero, scale, 15), row, token < tokens, TILE, WIDTH, DIM, BITS)
    else:
        _groups_of_32(body, values, inside, head, tokens, BITS, HEADS, DIM, TILE, WIDTH, BY_CHANNEL, BODY)


@triton.jit
def _groups_of_32(
    body: tl.tensor,
    values: tl.tensor,
    inside: tl.tensor,
    head: tl.tensor,
    tokens: tl.tensor,
    BITS: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    BY_CHANNEL: tl.constexpr,
    BODY: tl.constexpr,
) -> None:
    TOP: tl.constexpr = (1 << BITS) - 1
    DOWN: tl.constexpr = TILE // 32 if BY_CHANNEL else TILE
    ACROSS: tl.constexpr = WIDTH if BY_CHANNEL else WIDTH // 32
    GROUPS: tl.constexpr = DIM if BY_CHANNEL else (DIM + 31) // 32  # across, those that there are
    AXIS: tl.constexpr = 1 if BY_CHANNEL else 2
    if BY_CHANNEL:
        grouped = tl.reshape(values, (DOWN, 32, ACROSS))
        known = tl.reshape(inside, (DOWN, 32, ACROSS))
    else:
        grouped = tl.reshape(values, (DOWN, ACROSS, 32))
        known = tl.reshape(inside, (DOWN, ACROSS, 32))
    zero, scale = _asymmetric(_least(grouped, known, AXIS), _most(grouped, known, AXIS), TOP)
    below = tl.program_id(2) * DOWN + tl.arange(0, DOWN)[:, None]
    beside = tl.arange(0, ACROSS)[None, :]
    rows = (tokens + 31) // 32 if BY_CHANNEL else tokens
    place = (below * HEADS + head) * GROUPS + beside
    stored = (below < rows) & (beside < GROUPS)
    store_pair(body, 2 * place, zero, stored, BODY)
    store_pair(body, 2 * rows * HEADS * GROUPS + 2 * place, scale, stored, BODY)
    if BY_CHANNEL:
        spread_zero = tl.broadcast_to(zero[:, None, :], (DOWN, 32, ACROSS))
        spread_scale = tl.broadcast_to(scale[:, None, :], (DOWN, 32, ACROSS))
    else:
        spread_zero = tl.broadcast_to(zero[:, :, None], (DOWN, ACROSS, 32))
        spread_scale = tl.broadcast_to(scale[:, :, None], (DOWN, ACROSS, 32))
    spread_zero = tl.reshape(spread_zero, (TILE, WIDTH))
    spread_scale = tl.reshape(spread_scale, (TILE, WIDTH))
    token = tl.program_id(2) * TILE + tl.arange(0, TILE)[:, None]
    packed = body + 4 * rows * HEADS * GROUPS
    level = _levels(values, spread_zero, spread_scale, TOP)
    _pack(packed, level, token * HEADS + head, token < tokens, TILE, WIDTH, DIM, BITS)


@triton.jit
def encode_channels(
    bodies: tl.tensor,
    sections: tl.tensor,
    status: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DTYPE: tl.constexpr,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    BODY: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """fp8: a program makes WIDTH channels of a head, and reads them twice."""
    section = sections + tl.program_id(0) * 8
    body = tl.multiple_of(bodies + tl.load(section), BODY)
    address = tl.load(section + 1)
    tokens = tl.multiple_of(tl.load(section + 5).to(tl.int32), ROWS)
    head = tl.program_id(1)
    dim = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)[None, :]
    at = head * step_of(section + 3, ALIGN, DTYPE) + (dim if UNIT else dim * tl.load(section + 4))
    token_step = step_of(section + 2, ALIGN, DTYPE)
    largest = tl.zeros((1, WIDTH), tl.float32)
    for first in range(0, tokens, TILE):
        token = first + tl.arange(0, TILE)[:, None]
        inside = (token < tokens) & (dim < DIM)
        values = load_floats(address, token.to(tl.int64) * token_step + at, inside, DTYPE, ALIGN)
        _refuse(values, status + tl.load(section + 7))
        largest = tl.maximum(largest, tl.max(tl.abs(values), 0)[None, :])
    # 448 is 1.75 * 2^8: a quarter less a bit carries into the exponent for every mantissa above 1.75.
    bits = largest.to(tl.uint32, bitcast=True)
    exponent = tl.maximum(((bits + 0x1FFFFF) >> 23).to(tl.int32), 32)
    channel = head * DIM + dim
    tl.store(body + channel, exponent.to(tl.uint8), mask=dim < DIM)
    inverse = ((262 - exponent) << 23).to(tl.float32, bitcast=True)
    for first in range(0, tokens, TILE):
        token = first + tl.arange(0, TILE)[:, None]
        inside = (token < tokens) & (dim < DIM)
        values = load_floats(address, token.to(tl.int64) * token_step + at, inside, DTYPE, ALIGN)
        code = _to_e4m3(values * inverse)
        tl.store(body + HEADS * DIM * (1 + token) + channel, code.to(tl.uint8), mask=inside)


@triton.jit
def _refuse(values: tl.tensor, status: tl.tensor) -> None:
    # The bits of a magnitude, so that NaN is large as well: 2^100 is 227 << 23.
    size = values.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    largest = tl.max(tl.max(size, 1), 0)
    tl.atomic_max(status, 1, mask=largest >= 227 << 23)


@triton.jit
def _least(values: tl.tensor, inside: tl.tensor, AXIS: tl.constexpr) -> tl.tensor:
    return tl.min(tl.where(inside, values, float("inf")), AXIS)


@triton.jit
def _most(values: tl.tensor, inside: tl.tensor, AXIS: tl.constexpr) -> tl.tensor:
    return tl.max(tl.where(inside, values, float("-inf")), AXIS)


@triton.jit
def _asymmetric(least: tl.tensor, most: tl.tensor, STEPS: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    # Where everything is masked, least is above most: such a group is not stored, but must not become NaN either.
    empty = least > most
    zero = bfloat16_below(tl.where(empty, 0.0, least))
    return zero, _scale(tl.where(empty, 0.0, most) - from_bfloat16(zero), STEPS)


@triton.jit
def _scale(span: tl.tensor, STEPS: tl.constexpr) -> tl.tensor:
    return to_bfloat16(tl.maximum(span * (1.0 / STEPS), 7.52316384526264e-37))


@triton.jit
def _levels(values: tl.tensor, zero: tl.tensor, scale: tl.tensor, TOP: tl.constexpr) -> tl.tensor:
    inverse = tl.div_rn(1.0, from_bfloat16(scale))
    steps = nearest((values - from_bfloat16(zero)) * inverse)
    return tl.minimum(tl.maximum(steps, 0.0), TOP * 1.0).to(tl.int32)


@triton.jit
def _pack(
    rows: tl.tensor,
    levels: tl.tensor,
    row: tl.tensor,
    known: tl.tensor,
    TILE: tl.constexpr,
    WIDTH: tl.constexpr,
    DIM: tl.constexpr,
    BITS: tl.constexpr,
) -> None:
    # Byte i holds elements i, i + n, i + 2n ...: gathered from the tile along its rows.
    LENGTH: tl.constexpr = (DIM * BITS + 7) // 8
    byte = tl.arange(0, WIDTH)[None, :]
    packed = tl.zeros((TILE, WIDTH), tl.int32)
    for part in tl.static_range(8 // BITS):
        source = tl.broadcast_to(byte + part * LENGTH, (TILE, WIDTH))
        found = tl.gather(levels, tl.minimum(source, WIDTH - 1), 1)
        packed = packed | tl.where(source < DIM, found, 0) << (part * BITS)
    tl.store(rows + row * LENGTH + byte, packed.to(tl.uint8), mask=known & (byte < LENGTH))


@triton.jit
def _to_e4m3(values: tl.tensor) -> tl.tensor:
    bits = values.to(tl.uint32, bitcast=True)
    large = bits & 0x7FFFFFFF
    normal = ((large + 0x7FFFF + ((large >> 20) & 1)) >> 20).to(tl.int32) - 960
    small = tl.abs(values) < 0.015625
    tiny = nearest(tl.where(small, tl.abs(values), 0.0) * 512.0).to(tl.int32)
    code = tl.minimum(tl.where(small, tiny, normal), 0x7E)
    return code | ((bits >> 24) & 0x80).to(tl.int32)


def encode(sources: Sequence[torch.Tensor], blocks: Sequence[Block], form: Form) -> list[Encoded]:
    """Encode a tensor each, all on one device, with int8, fp8, int4 or kivi: what `kvstore.codecs.encode` gives.

    A tensor is contiguous and has the bytes of its block in the order of its axes. Bodies are made on the device and
    copied to the host together; headers and checksums are made there. Raises `InvalidArgument` for another codec and
    for tensors that do not fit, `NotEncodable` for NaN, infinity or 2^100 and more.
    """
    codec, made = form.codec, list[Encoded]()
    if not isinstance(codec, Quantizer):
        raise InvalidArgument(f"{codec.name} has no kernels to encode with: encode it on the host")
    for block in blocks:
        codec.check(block)
    device = device_of(blocks, sources)
    groups: dict[Any, list[tuple[int, ...]]] = {}
    bodies, at, tokens = list[list[int]](), 0, 1
    for chunk, (source, block) in enumerate(zip(sources, blocks, strict=True)):
        layer_step, plane_step, token_step, head_step, dim_step = block.strides()
        bodies.append([at])
        for layer in range(len(block.layers)):
            for plane in range(block.planes):
                address = source.data_ptr() + (layer * layer_step + plane * plane_step) * block.itemsize
                row = (at, address, token_step, head_step, dim_step, block.tokens, plane, chunk)
                by_channel = isinstance(codec, Kivi) and plane == 0
                groups.setdefault((block.heads, block.dim, block.dtype, by_channel), []).append(row)
                at += codec.section_bytes(form.level, plane, (block.tokens, block.heads, block.dim))
            bodies[-1].append(at)
        tokens = max(tokens, block.tokens)
    data = torch.empty(at, dtype=torch.uint8, device=device)
    status = torch.zeros(len(blocks), dtype=torch.int32, device=device)
    staging = Staging()
    staged_rows = {key: staging.add_rows(rows) for key, rows in groups.items()}
    staged = staging.on(device)
    for (heads, dim, dtype, by_channel), rows in staged_rows.items():
        places = places_of(groups[heads, dim, dtype, by_channel], dtype)
        where = {"DTYPE": CODES[dtype], **places}
        _launch(codec, form.level, data, rows.of(staged), status, (heads, dim, tokens), where, by_channel)
    refused = torch.nonzero(status.cpu()).reshape(-1).tolist()
    if refused:
        raise NotEncodable(f"{codec.name} takes finite values below 2^100; chunks {refused[:8]} have others")
    host = data.cpu().numpy()
    for block, ends in zip(blocks, bodies, strict=True):
        frames = [host[a:b].data for a, b in pairwise(ends)]
        made.append(seal(frames, block, form))
    return made


def _launch(
    codec: Quantizer,
    level: int,
    data: torch.Tensor,
    rows: torch.Tensor,
    status: torch.Tensor,
    extent: tuple[int, int, int],
    where: dict[str, Any],
    by_channel: bool,
) -> None:
    heads, dim, tokens = extent
    if isinstance(codec, Fp8):
        encode_channels[(len(rows) // FIELDS, heads, triton.cdiv(dim, 32))](
            data,
            rows,
            status,
            HEADS=heads,
            DIM=dim,
            TILE=32,
            WIDTH=32,
            **where,
            num_warps=4,
            enable_fp_fusion=False,
        )
        return
    width = max(32, triton.next_power_of_2(dim))
    tile = max(32 if by_channel else 2, TILE_ELEMENTS // width)
    encode_rows[(len(rows) // FIELDS, heads, triton.cdiv(tokens, tile))](
        data,
        rows,
        status,
        CODEC=codec.number,
        BITS=codec.bits[level] if isinstance(codec, Kivi) else 4,
        HEADS=heads,
        DIM=dim,
        SIZE=hadamard_size(dim),
        TILE=tile,
        WIDTH=width,
        BY_CHANNEL=by_channel,
        **where,
        num_warps=4 if tile * width <= 8192 else 16,
        enable_fp_fusion=False,
    )
