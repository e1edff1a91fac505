"""Elements as numbers: the bits of the floating-point dtypes that codecs take, to float32 and back.

Everything here is exact or rounds to the nearest even number, and the native code does the same bit for bit.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.codecs.block import Block
from kvstore.errors import InvalidArgument

Floats: TypeAlias = npt.NDArray[np.float32]
Bits: TypeAlias = npt.NDArray[Any]  # unsigned, as wide as the element

FLOAT_DTYPES = ("float32", "bfloat16", "float16")
_LARGEST_HALF = np.float32(65504.0)


def require_floats(name: str, block: Block) -> None:
    """Raise `InvalidArgument` unless a block has axes and a floating-point dtype of 16 or 32 bits."""
    if block.opaque:
        raise InvalidArgument(f"{name} needs to know the axes of the bytes; an opaque layout takes byte codecs alone")
    if block.dtype not in FLOAT_DTYPES:
        raise InvalidArgument(f"{name} takes {', '.join(FLOAT_DTYPES)}, not {block.dtype}; lz4 and zstd take any dtype")


def to_float32(bits: Bits, dtype: str) -> Floats:
    """The values of elements of a dtype in `FLOAT_DTYPES`."""
    if dtype == "bfloat16":
        return from_bfloat16(bits)
    if dtype == "float16":
        return bits.view(np.float16).astype(np.float32)
    return bits.view(np.float32)


def from_float32(values: Floats, dtype: str) -> Bits:
    """The nearest elements to finite values; what float16 cannot reach becomes its largest number."""
    if dtype == "bfloat16":
        return to_bfloat16(values)
    if dtype == "float16":
        return np.clip(values, -_LARGEST_HALF, _LARGEST_HALF).astype(np.float16).view(np.uint16)
    return values.view(np.uint32)


def from_bfloat16(bits: npt.NDArray[np.uint16]) -> Floats:
    """The values of bfloat16 numbers."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bfloat16(values: Floats) -> npt.NDArray[np.uint16]:
    """The nearest bfloat16 numbers to finite values."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def bfloat16_below(values: Floats) -> npt.NDArray[np.uint16]:
    """The largest bfloat16 numbers that are not above finite values; 0 for -0."""
    bits = (values + np.float32(0)).view(np.uint32)
    away = (bits >> np.uint32(31)) * np.uint32(0xFFFF)  # a negative number goes away from zero
    return ((bits + away) >> np.uint32(16)).astype(np.uint16)
