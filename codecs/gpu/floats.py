"""Elements of KV on a device: the bits of a dtype to float32 and back, as `kvstore.codecs.floats` does it.

Kernels get the addresses of what they read and write as numbers, so that one launch serves tensors of many chunks.
What the compiler cannot see in numbers it is told: that elements of a head lie side by side (UNIT), and of which power
of two all addresses and steps are multiples (ALIGN, in bytes). Without that it takes the tokens of a tile for
neighbours, and every element costs a sector of memory.
They are launched with `enable_fp_fusion=False`: a fused multiply-add would round once where the reference rounds twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import triton
import triton.language as tl

CODES = {"bfloat16": 0, "float16": 1, "float32": 2}  # DTYPE of the kernels
ITEMSIZES = {"bfloat16": 2, "float16": 2, "float32": 4}

ALIGNMENT = 16  # bytes: as far as any access goes


def alignment_of(addresses: Iterable[int], steps: Iterable[int], dtype: str) -> int:
    """ALIGN for these addresses (bytes) and steps (elements)."""
    return math.gcd(ALIGNMENT, *addresses, *(ITEMSIZES[dtype] * step for step in steps))


@triton.jit
def load_floats(
    address: tl.tensor, offsets: tl.tensor, mask: tl.tensor, DTYPE: tl.constexpr, ALIGN: tl.constexpr = 1
) -> tl.tensor:
    """Elements as float32, 0 where masked."""
    if DTYPE == 2:
        wide = tl.multiple_of(address.to(tl.pointer_type(tl.float32)), ALIGN)
        values = tl.load(wide + offsets, mask=mask, other=0.0)
    else:
        half = tl.multiple_of(address.to(tl.pointer_type(tl.uint16)), ALIGN)
        bits = tl.load(half + offsets, mask=mask, other=0)
        if DTYPE == 1:
            values = bits.to(tl.float16, bitcast=True).to(tl.float32)
        else:
            values = (bits.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    return values


@triton.jit
def store_floats(
    address: tl.tensor,
    offsets: tl.tensor,
    values: tl.tensor,
    mask: tl.tensor,
    DTYPE: tl.constexpr,
    ALIGN: tl.constexpr = 1,
) -> None:
    """Store the nearest elements, ties to even; what float16 cannot reach becomes its largest number."""
    if DTYPE == 2:
        tl.store(tl.multiple_of(address.to(tl.pointer_type(tl.float32)), ALIGN) + offsets, values, mask=mask)
    else:
        if DTYPE == 1:
            near = tl.minimum(tl.maximum(values, -65504.0), 65504.0).to(tl.float16)
            bits = near.to(tl.uint16, bitcast=True)
        else:
            bits = to_bfloat16(values).to(tl.uint16)
        tl.store(tl.multiple_of(address.to(tl.pointer_type(tl.uint16)), ALIGN) + offsets, bits, mask=mask)


@triton.jit
def step_of(row: tl.tensor, ALIGN: tl.constexpr, DTYPE: tl.constexpr) -> tl.tensor:
    """A step in elements, read from where it stands."""
    ELEMENTS: tl.constexpr = ALIGN // 4 if DTYPE == 2 else ALIGN // 2
    return tl.multiple_of(tl.load(row), ELEMENTS if ELEMENTS > 1 else 1)


@triton.jit
def in_runs(
    starts: tl.tensor, dim: tl.tensor, RUN: tl.constexpr, ALIGN: tl.constexpr, DTYPE: tl.constexpr
) -> tl.tensor:
    """`starts + dim`, places of channels that count up in runs of RUN, from multiples of it."""
    ELEMENTS: tl.constexpr = ALIGN // 4 if DTYPE == 2 else ALIGN // 2
    EVEN: tl.constexpr = ELEMENTS if ELEMENTS < RUN else RUN
    places = starts + dim  # what the compiler is told stays with an operation of this function, not with an argument
    return tl.max_contiguous(tl.multiple_of(places, EVEN if EVEN > 1 else 1), RUN)


@triton.jit
def to_bfloat16(values: tl.tensor) -> tl.tensor:
    """The nearest bfloat16 numbers of finite values, as uint32."""
    bits = values.to(tl.uint32, bitcast=True)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16


@triton.jit
def bfloat16_below(values: tl.tensor) -> tl.tensor:
    """The largest bfloat16 numbers that are not above finite values, as uint32; 0 for -0."""
    bits = (values + 0.0).to(tl.uint32, bitcast=True)
    return (bits + (bits >> 31) * 0xFFFF) >> 16


@triton.jit
def from_bfloat16(bits: tl.tensor) -> tl.tensor:
    """The values of bfloat16 numbers in the low half of uint32."""
    return (bits << 16).to(tl.float32, bitcast=True)


@triton.jit
def load_pair(data: tl.tensor, offsets: tl.tensor, mask: tl.tensor, BODY: tl.constexpr) -> tl.tensor:
    """Little-endian u16 as uint32, at even byte offsets from `data`, which is a multiple of BODY and may be odd."""
    if BODY > 1:
        pairs = tl.multiple_of(data.to(tl.pointer_type(tl.uint16), bitcast=True), BODY)
        bits = tl.load(pairs + offsets // 2, mask=mask, other=0).to(tl.uint32)
    else:
        low = tl.load(data + offsets, mask=mask, other=0).to(tl.uint32)
        bits = low | tl.load(data + offsets + 1, mask=mask, other=0).to(tl.uint32) << 8
    return bits


@triton.jit
def store_pair(data: tl.tensor, offsets: tl.tensor, bits: tl.tensor, mask: tl.tensor, BODY: tl.constexpr) -> None:
    """The inverse of `load_pair`."""
    if BODY > 1:
        pairs = tl.multiple_of(data.to(tl.pointer_type(tl.uint16), bitcast=True), BODY)
        tl.store(pairs + offsets // 2, bits.to(tl.uint16), mask=mask)
    else:
        tl.store(data + offsets, (bits & 0xFF).to(tl.uint8), mask=mask)
        tl.store(data + offsets + 1, (bits >> 8 & 0xFF).to(tl.uint8), mask=mask)


@triton.jit
def nearest(values: tl.tensor) -> tl.tensor:
    """Rounded to whole numbers, ties to even, for magnitudes below 2^22: adding 1.5 * 2^23 leaves no fraction."""
    return (values + 12582912.0) - 12582912.0


@triton.jit
def hadamard(values: tl.tensor, ROWS: tl.constexpr, WIDTH: tl.constexpr, SIZE: tl.constexpr) -> tl.tensor:
    """Blocks of SIZE along the last axis of `[ROWS, WIDTH]` times the Hadamard matrix, by `hadamard`'s butterflies.

    Whole numbers and floats; the order of sums is the format's.
    """
    for level in tl.static_range(SIZE.bit_length() - 1):
        values = _butterflies(values, ROWS, WIDTH, SIZE >> (level + 1))
    return values


@triton.jit
def _butterflies(values: tl.tensor, ROWS: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr) -> tl.tensor:
    pairs = tl.reshape(values, (ROWS * WIDTH // (2 * STEP), 2, STEP))
    first, second = tl.split(tl.permute(pairs, (0, 2, 1)))
    mixed = tl.permute(tl.join(first + second, first - second), (0, 2, 1))
    return tl.reshape(mixed, (ROWS, WIDTH))
