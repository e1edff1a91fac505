"""int4 after a Hadamard rotation: SAW-INT4's scheme, token-wise int4 after a block-diagonal rotation along the head.

The rotation spreads an outlier channel over its block, so that 16 levels per token and head do. A block is the largest
power of two that divides the head size.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvstore.codecs.floats import Floats, bfloat16_below, from_bfloat16
from kvstore.codecs.quantized import Quantizer, pack_rows, pieces, read_scales, read_zeros, scale_bits, unpack_rows


def hadamard_size(dim: int) -> int:
    """Width of a block: the largest power of two that divides `dim`."""
    return dim & -dim


def hadamard(values: Floats) -> Floats:
    """Each block along the last axis times the Hadamard matrix of its size, not normalised, in float32.

    Butterflies (a, b) → (a + b, a - b) over elements half a block apart first, then a quarter, down to neighbours:
    the order is part of the format, since sums of floats depend on it.
    """
    size = hadamard_size(values.shape[-1])
    mixed = values.reshape(-1, size)
    step = size // 2
    while step:
        pairs = mixed.reshape(-1, 2, step)
        mixed = np.stack([pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]], axis=1).reshape(-1, size)
        step //= 2
    return mixed.reshape(values.shape)


class Int4(Quantizer):
    """Rotated, asymmetric int4 with scale and zero point per token and head: 4 + 32/dim bits per element.

    A section: zero points u16 (bfloat16) [token, head], scales u16 (bfloat16) [token, head], then packed rows
    (`pack_rows`) [token, head].
    """

    number, name = 6, "int4"

    def section_bytes(self, level: int, plane: int, shape: tuple[int, int, int]) -> int:
        """Four bytes for the parameters of a row, half a byte per element, rounded up."""
        tokens, heads, dim = shape
        return tokens * heads * (4 + -(-dim // 2))

    def encode_plane(self, values: Floats, level: int, plane: int) -> list[npt.NDArray[np.uint8]]:
        """y = Hx; q = rint((y - zero) · (1 / scale)), clamped to 0 ... 15; scale = (max - zero) / 15."""
        rotated = hadamard(values)
        zeros = bfloat16_below(rotated.min(axis=2))
        zero = from_bfloat16(zeros)
        scales = scale_bits(rotated.max(axis=2) - zero, 15)
        inverse = np.float32(1) / from_bfloat16(scales)
        steps = np.rint((rotated - zero[..., None]) * inverse[..., None])
        rows = pack_rows(np.clip(steps, 0, 15).astype(np.uint8), 4)
        return [zeros.view(np.uint8), scales.view(np.uint8), rows]

    def decode_plane(
        self, section: npt.NDArray[np.uint8], level: int, plane: int, shape: tuple[int, int, int]
    ) -> Floats:
        """x = Hq · (scale / n), exact in float32, plus the zero point in each block's first element."""
        tokens, heads, dim = shape
        size = hadamard_size(dim)
        first, second, rows = pieces(section, 2 * tokens * heads, 2 * tokens * heads)
        zero = read_zeros(first.view(np.uint16)).reshape(tokens, heads, 1)
        scale = read_scales(second.view(np.uint16)).reshape(tokens, heads, 1) * np.float32(1 / size)
        values = hadamard(unpack_rows(rows, 4, shape).astype(np.float32)) * scale
        values[..., ::size] += zero
        return values
