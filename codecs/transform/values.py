"""The floats in a block's bits, and back: bfloat16, float16 and float32, to the nearest and ties to even."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
DTYPES = ("bfloat16", "float16", "float32")


def to_floats(bits: npt.NDArray[Any], dtype: str) -> Floats:
    """float32 values of an array of bits (uint16 or uint32), a new C-ordered array."""
    if dtype == "bfloat16":
        return np.ascontiguousarray(bits.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(bits).view(np.float16 if dtype == "float16" else np.float32).astype(np.float32)


def to_bits(values: Floats, dtype: str) -> npt.NDArray[Any]:
    """The bits of float32 values, rounded to the dtype."""
    if dtype == "float32":
        return values.view(np.uint32)
    if dtype == "float16":
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.view(np.uint32)
    return ((bits + (np.uint32(0x7FFF) + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
