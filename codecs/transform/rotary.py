"""Rotary position embedding (RoFormer, Su et al.), undone before a transform and done again after it.

The tables are made with additions and multiplications alone, which IEEE 754 rounds alike everywhere, so that two hosts
decode the same bits: the sines of C libraries and of NumPy differ in the last place from one processor to the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import factorial
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.floats import Floats
from kvstore.errors import InvalidArgument

STYLES = ("half", "interleaved")
# π/2 in three pieces: a quotient of up to 20 bits times either of the first two is exact.
_HALF_PI = (1.57079632673412561417e00, 6.07710050630396597660e-11, 2.02226624879595063154e-21)
_SIN = [(-1) ** k / factorial(2 * k + 1) for k in range(8)]
_COS = [(-1) ** k / factorial(2 * k) for k in range(9)]


@dataclass(frozen=True, eq=False)
class Rotary:
    """What a layer's keys are rotated by: `frequencies` float64 `[pairs]` (none: no rotation), in radians a token.

    The pairs are channels `start` to `start + 2 · pairs` of a head: (i, i + pairs) in style `half` (Llama, Gemma),
    (2i, 2i + 1) in style `interleaved` (DeepSeek's latent). `scaling` multiplies cosine and sine (YaRN).
    """

    frequencies: npt.NDArray[np.float64]
    style: str = "half"
    start: int = 0
    scaling: float = 1.0

    def __post_init__(self) -> None:
        if self.style not in STYLES:
            raise InvalidArgument(f"no rotary style {self.style!r}: {', '.join(STYLES)}")

    @classmethod
    def of_base(cls, base: float, pairs: int, **rest: Any) -> Rotary:
        """The usual frequencies, base^(−i / pairs)."""
        return cls(base ** (-np.arange(pairs) / max(1, pairs)), **rest)

    @property
    def pairs(self) -> int:
        """How many pairs of channels turn."""
        return len(self.frequencies)

    def tables(self, position: int, tokens: int) -> tuple[Floats, Floats]:
        """Cosine and sine, float32 `[token, pair]`, of the tokens from `position` on, times `scaling`."""
        return _tables(self.frequencies.tobytes(), self.scaling, position, tokens, back=False)

    def tables_back(self, position: int, tokens: int) -> tuple[Floats, Floats]:
        """The tables of the inverse rotation."""
        return _tables(self.frequencies.tobytes(), self.scaling, position, tokens, back=True)

    def turn(self, x: Floats, position: int) -> None:
        """Rotate `x` `[token, head, dim]` in place, each product and sum rounded to float32."""
        self._turn(x, self.tables(position, len(x)))

    def turn_back(self, x: Floats, position: int) -> None:
        """The inverse of `turn`, up to rounding."""
        self._turn(x, self.tables_back(position, len(x)))

    def _turn(self, x: Floats, tables: tuple[Floats, Floats]) -> None:
        first, second = self._pairs_of(x)
        cos, sin = (table[:, None, :] for table in tables)
        turned = first * cos - second * sin
        second[...] = second * cos + first * sin
        first[...] = turned

    def _pairs_of(self, x: Floats) -> tuple[Floats, Floats]:
        start, pairs = self.start, self.pairs
        if self.style == "half":
            return x[..., start : start + pairs], x[..., start + pairs : start + 2 * pairs]
        return x[..., start : start + 2 * pairs : 2], x[..., start + 1 : start + 2 * pairs : 2]


@lru_cache(maxsize=64)
def _tables(frequencies: bytes, scaling: float, position: int, tokens: int, *, back: bool) -> tuple[Floats, Floats]:
    if back:
        scaling = 1 / scaling
    at = np.arange(position, position + tokens, dtype=np.float64)
    cos, sin = cos_sin(at[:, None] * np.frombuffer(frequencies))
    made = tuple((each * scaling).astype(np.float32) for each in (cos, -sin if back else sin))
    for table in made:
        table.flags.writeable = False
    return made[0], made[1]


def cos_sin(angle: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Cosine and sine of angles from 0 to a million and more, the same bits on every host."""
    quarter = np.rint(angle * (2 / np.pi))
    rest = angle
    for piece in _HALF_PI:
        rest = rest - quarter * piece
    square = rest * rest
    sin, cos = (_horner(square, each) for each in (_SIN, _COS))
    sin = sin * rest
    turn = quarter.astype(np.int64) & 3
    swap = (turn & 1).astype(bool)
    return (
        np.where(swap, sin, cos) * np.where((turn == 1) | (turn == 2), -1.0, 1.0),
        np.where(swap, cos, sin) * np.where(turn >= 2, -1.0, 1.0),
    )


def _horner(x: npt.NDArray[np.float64], terms: list[float]) -> npt.NDArray[np.float64]:
    total = np.full_like(x, terms[-1])
    for term in terms[-2::-1]:
        total = total * x + term
    return total
