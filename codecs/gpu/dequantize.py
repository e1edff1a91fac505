"""int8, fp8, int4 and kivi on a device, decoded bit for bit as `kvstore.codecs.quantized` defines them.

A program decodes a tile of tokens of one head of one section. It reads packed bytes once, in rows, and writes elements
once: the memory's bandwidth bounds it. In all four a product is exact in float32 and at most one sum is rounded, so
not even a fused multiply-add would change a bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from kvstore.codecs.base import Opened
from kvstore.codecs.gpu.floats import (
    ALIGNMENT,
    CODES,
    alignment_of,
    from_bfloat16,
    hadamard,
    load_pair,
    step_of,
    store_floats,
)
from kvstore.codecs.gpu.staging import Rows, Staging
from kvstore.codecs.hadamard import hadamard_size
from kvstore.codecs.kivi import Kivi
from kvstore.codecs.quantized import Quantizer

FIELDS = 8  # of a section's row
TILE_ELEMENTS = 4096  # of a program: 32 per thread


@triton.jit
def _decode(
    staged: tl.tensor,
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
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    BODY: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    section = sections + tl.program_id(0) * 8
    data = tl.multiple_of(staged + tl.load(section), BODY)
    address = tl.load(section + 1)
    tokens = tl.multiple_of(tl.load(section + 5).to(tl.int32), ROWS)
    first_plane = tl.load(section + 6) == 0
    head = tl.program_id(1)
    token = tl.program_id(2) * TILE + tl.arange(0, TILE)[:, None]
    dim = tl.arange(0, WIDTH)[None, :]
    inside = (token < tokens) & (dim < DIM)
    row = token * HEADS + head
    rows = tokens * HEADS
    if CODEC == 5:
        scale_bits = load_pair(data, 2 * row, token < tokens, BODY)
        scale = from_bfloat16(scale_bits)
        code = tl.load(data + 2 * rows + row * DIM + dim, mask=inside, other=0).to(tl.int8, bitcast=True)
        values = code.to(tl.float32) * scale
        badness = tl.where(token < tokens, _bad_scale(scale_bits), 0)
    elif CODEC == 4:
        channel = head * DIM + dim
        exponent = tl.load(data + channel, mask=dim < DIM, other=127).to(tl.uint32)
        code = tl.load(data + HEADS * DIM + row * DIM + dim, mask=inside, other=0).to(tl.uint32)
        values = _from_e4m3(code) * ((exponent - 8) << 23).to(tl.float32, bitcast=True)
        power = exponent.to(tl.int32)
        odd = tl.maximum(tl.maximum(32 - power, power - 228), (code & 0x7F).to(tl.int32) - 0x7E)
        badness = tl.where(inside, odd, 0)
    elif CODEC == 6:
        zero_bits = load_pair(data, 2 * row, token < tokens, BODY)
        scale_bits = load_pair(data, 2 * rows + 2 * row, token < tokens, BODY)
        level = _unpack(data + 4 * rows, row, dim, inside, BITS, DIM)
        mixed = hadamard(level, TILE, WIDTH, SIZE).to(tl.float32)
        product = mixed * (from_bfloat16(scale_bits) * (1.0 / SIZE))
        values = tl.where(dim % SIZE == 0, product + from_bfloat16(zero_bits), product)
        odd = tl.maximum(_bad_scale(scale_bits), _bad_zero(zero_bits))
        badness = tl.where(token < tokens, odd, 0)
    else:
        grouped_tokens = HEADS * DIM * ((tokens + 31) // 32)
        GROUPS: tl.constexpr = (DIM + 31) // 32
        groups = tl.where(first_plane, grouped_tokens, rows * GROUPS)
        place = tl.where(first_plane, (token // 32 * HEADS + head) * DIM + dim, row * GROUPS + dim // 32)
        zero_bits = load_pair(data, 2 * place, inside, BODY)
        scale_bits = load_pair(data, 2 * groups + 2 * place, inside, BODY)
        level = _unpack(data + 4 * groups, row, dim, inside, BITS, DIM)
        values = level.to(tl.float32) * from_bfloat16(scale_bits) + from_bfloat16(zero_bits)
        badness = tl.where(inside, tl.maximum(_bad_scale(scale_bits), _bad_zero(zero_bits)), 0)
    to = token.to(tl.int64) * step_of(section + 2, ALIGN, DTYPE) + head * step_of(section + 3, ALIGN, DTYPE)
    to += dim if UNIT else dim * tl.load(section + 4)
    store_floats(address, to, values, inside, DTYPE, ALIGN)
    bad = tl.max(tl.max(badness, 1), 0)
    tl.atomic_max(status + tl.load(section + 7), 1, mask=bad > 0)


@triton.jit
def _unpack(
    data: tl.tensor, row: tl.tensor, dim: tl.tensor, inside: tl.tensor, BITS: tl.constexpr, DIM: tl.constexpr
) -> tl.tensor:
    LENGTH: tl.constexpr = (DIM * BITS + 7) // 8
    packed = tl.load(data + row * LENGTH + dim % LENGTH, mask=inside, other=0).to(tl.int32)
    return (packed >> (dim // LENGTH * BITS)) & ((1 << BITS) - 1)


# Badness is a number, above 0 for what no encoder writes: of booleans, Triton 3.6 for Hopper makes a disjunction that
# takes in lanes outside of the tile where a head's size is no power of two (seen on an H200).


@triton.jit
def _bad_scale(bits: tl.tensor) -> tl.tensor:
    # Not in [2^-120, 2^112): the sign and NaN are above.
    power = (bits >> 7).to(tl.int32)
    return tl.maximum(7 - power, power - 238)


@triton.jit
def _bad_zero(bits: tl.tensor) -> tl.tensor:
    return ((bits & 0x7FFF) >> 7).to(tl.int32) - 238


@triton.jit
def _from_e4m3(code: tl.tensor) -> tl.tensor:
    size = code & 0x7F
    normal = ((size << 20) + (120 << 23)).to(tl.float32, bitcast=True)
    value = tl.where(size < 8, size.to(tl.float32) * 0.001953125, normal)
    return (value.to(tl.uint32, bitcast=True) | ((code & 0x80) << 24)).to(tl.float32, bitcast=True)


def places_of(rows: Sequence[tuple[int, ...]], dtype: str) -> dict[str, Any]:
    """UNIT and ALIGN of sections' rows; of which powers of two their bodies (BODY) and tokens (ROWS) are multiples."""
    at, addresses, token_steps, head_steps, dim_steps, tokens, *_ = (set(column) for column in zip(*rows, strict=True))
    return {
        "UNIT": dim_steps == {1},
        "ALIGN": alignment_of(addresses, token_steps | head_steps, dtype),
        "BODY": math.gcd(ALIGNMENT, *at),
        "ROWS": math.gcd(ALIGNMENT, *tokens),
    }


class Dequantizer:
    """Gathers the sections of frames of one shape, codec and level, and decodes them in one launch."""

    def __init__(self, opened: Opened, device: torch.device) -> None:
        del device
        quantizer = opened.codec
        assert isinstance(quantizer, Quantizer)
        self._codec, self._level, self._block = quantizer, opened.frame.level, opened.block
        self._rows: list[tuple[int, ...]] = []
        self._staged = Rows(0, 0)
        self._places: dict[str, Any] = {}
        self._tokens = 0

    def add(self, opened: Opened, staging: Staging, address: int, chunk: int) -> None:
        """Take a frame that goes to the elements from `address` on. `Corrupt` for a body of another length."""
        block, level = opened.block, self._level
        self._codec.check_length(opened.body, block, level)
        shape = (block.tokens, block.heads, block.dim)
        layer_step, plane_step, token_step, head_step, dim_step = block.strides()
        at = staging.add(opened.body)
        for layer in range(len(block.layers)):
            for plane in range(block.planes):
                to = address + (layer * layer_step + plane * plane_step) * block.itemsize
                self._rows.append((at, to, token_step, head_step, dim_step, block.tokens, plane, chunk))
                at += self._codec.section_bytes(level, plane, shape)
        self._tokens = max(self._tokens, block.tokens)

    def close(self, staging: Staging) -> None:
        """Stage what the programs are to do: there will be no more frames."""
        self._staged = staging.add_rows(self._rows)
        self._places = places_of(self._rows, self._block.dtype)

    def launch(self, staged: torch.Tensor, status: torch.Tensor) -> None:
        """Decode; the status of a chunk becomes 1 where a parameter is none that an encoder writes."""
        block = self._block
        width = max(16, triton.next_power_of_2(block.dim))
        tile = max(2, TILE_ELEMENTS // width)
        codec: Any = self._codec
        _decode[(len(self._rows), block.heads, triton.cdiv(self._tokens, tile))](
            staged,
            self._staged.of(staged),
            status,
            CODEC=codec.number,
            BITS=codec.bits[self._level] if isinstance(codec, Kivi) else 4,
            HEADS=block.heads,
            DIM=block.dim,
            SIZE=hadamard_size(block.dim),
            DTYPE=CODES[block.dtype],
            TILE=tile,
            WIDTH=width,
            **self._places,
            num_warps=4,
            enable_fp_fusion=False,
        )
