"""KIVI (Liu et al., 2024): K quantized per channel, V per token, asymmetric, in groups of 32.

K has outlier channels, so that a group is 32 tokens of one channel; V has none, and a group is 32 channels of one
token. K is taken as it is cached, after RoPE. KIVI's residual window, the last tokens of a sequence in full precision,
is the engine's own: a chunk that is stored has none. The latent of MLA is quantized as K is.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kvstore.codecs.floats import Floats, bfloat16_below, from_bfloat16
from kvstore.codecs.quantized import Quantizer, pack_rows, pieces, read_scales, read_zeros, scale_bits, unpack_rows

GROUP = 32


class Kivi(Quantizer):
    """Levels `4` and `2` are bits per element, to which scale and zero point add one.

    A section: zero points u16 (bfloat16), scales u16 (bfloat16), both [group of tokens, head, dim] for K and
    [token, head, group of dims] for V, the last group shorter where 32 does not divide; then packed rows
    (`pack_rows`) [token, head].
    """

    number, name, levels = 7, "kivi", ("4", "2")
    bits: ClassVar[tuple[int, ...]] = (4, 2)

    def section_bytes(self, level: int, plane: int, shape: tuple[int, int, int]) -> int:
        """Four bytes for the parameters of a group, and the packed rows."""
        tokens, heads, dim = shape
        groups = _groups(tokens) * dim if plane == 0 else tokens * _groups(dim)
        return heads * (4 * groups + tokens * -(-dim * self.bits[level] // 8))

    def encode_plane(self, values: Floats, level: int, plane: int) -> list[npt.NDArray[np.uint8]]:
        """q = rint((x - zero) · (1 / scale)), clamped; scale = (max - zero) / (2^bits - 1)."""
        bits, axis = self.bits[level], 0 if plane == 0 else 2
        highest, starts = (1 << bits) - 1, np.arange(0, values.shape[axis], GROUP)
        zeros = bfloat16_below(np.minimum.reduceat(values, starts, axis))
        zero = from_bfloat16(zeros)
        scales = scale_bits(np.maximum.reduceat(values, starts, axis) - zero, highest)
        inverse = np.float32(1) / from_bfloat16(scales)
        length = values.shape[axis]
        steps = np.rint((values - _spread(zero, axis, length)) * _spread(inverse, axis, length))
        rows = pack_rows(np.clip(steps, 0, highest).astype(np.uint8), bits)
        return [np.ascontiguousarray(zeros).view(np.uint8), np.ascontiguousarray(scales).view(np.uint8), rows]

    def decode_plane(
        self, section: npt.NDArray[np.uint8], level: int, plane: int, shape: tuple[int, int, int]
    ) -> Floats:
        """x = q · scale + zero: the product is exact in float32."""
        tokens, heads, dim = shape
        grid = (_groups(tokens), heads, dim) if plane == 0 else (tokens, heads, _groups(dim))
        length = 2 * grid[0] * grid[1] * grid[2]
        first, second, rows = pieces(section, length, length)
        axis = 0 if plane == 0 else 2
        zero = _spread(read_zeros(first.view(np.uint16)).reshape(grid), axis, shape[axis])
        scale = _spread(read_scales(second.view(np.uint16)).reshape(grid), axis, shape[axis])
        return unpack_rows(rows, self.bits[level], shape).astype(np.float32) * scale + zero


def _groups(length: int) -> int:
    return -(-length // GROUP)


def _spread(values: Floats, axis: int, length: int) -> Floats:
    """A value per group to a value per element."""
    return np.repeat(values, GROUP, axis).take(np.arange(length), axis)
