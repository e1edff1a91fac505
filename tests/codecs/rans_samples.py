"""Banks and symbols that the tests of the entropy coder share."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.codecs import rans

Symbols = npt.NDArray[np.uint8]
Tables = npt.NDArray[np.uint8]
Freqs = npt.NDArray[np.uint16]


def supported_levels() -> list[str]:
    """What this processor has; a level that it lacks is another machine's to test."""
    before = _native.simd_level()
    levels = []
    for name in ("portable", "avx2", "avx512"):
        try:
            _native.set_simd_level(name)
        except ValueError:
            continue
        levels.append(name)
    _native.set_simd_level(before)
    return levels


def one_symbol(symbol: int) -> Freqs:
    """A table of a single symbol with all 4096 slots."""
    table = np.zeros(256, np.uint16)
    table[symbol] = rans.TOTAL
    return table


def laplace(width: float) -> Freqs:
    """A table around 128 in which every symbol has a frequency."""
    return rans.quantize_freqs(np.exp(-np.abs(np.arange(256) - 128) / width) + 1e-9)


def bank() -> Freqs:
    """Peaked and flat tables, one of a single symbol, one with frequency 1 beside 4095, and the uniform one."""
    lopsided = np.zeros(256, np.uint16)
    lopsided[[7, 200]] = 1, rans.TOTAL - 1
    tables = [one_symbol(255), one_symbol(0), lopsided, np.full(256, 16, np.uint16)]
    return np.stack([*tables, *(laplace(width) for width in (0.1, 0.5, 2, 8, 40))])


def draw(rng: np.random.Generator, freqs: Freqs, tokens: int, columns: int) -> tuple[Symbols, Tables]:
    """Symbols as the tables have them, and now and then the rarest that a table has."""
    tables = rng.integers(0, len(freqs), columns).astype(np.uint8)
    of_slot = np.stack([np.repeat(np.arange(256), row) for row in freqs]).astype(np.uint8)
    symbols = of_slot[tables, rng.integers(0, rans.TOTAL, (tokens, columns))]
    rarest = np.where(freqs == 0, rans.TOTAL + 1, freqs.astype(np.int64)).argmin(axis=1).astype(np.uint8)
    return np.where(rng.random((tokens, columns)) < 0.01, rarest[tables], symbols), tables
