"""The bank: a few symmetric tables that stand for the histograms of every column (k-means in bits)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kvstore.codecs.rans import TOTAL, quantize_freqs

ESCAPE_BITS = 48  # of a symbol that a table lacks, beside its own 12
# A symbol that a table has at the least frequency makes all others cost log2(4096 / 4095) bits more.
_LEAST = np.log2(TOTAL / (TOTAL - 1)) / ESCAPE_BITS
_ROUNDS = 12

Counts = npt.NDArray[np.float64]


def bank_of(counts: Counts, tables: int) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
    """Frequencies uint16 `[≤ tables, 256]`, the first free for zeros alone, and each column's table.

    `counts` `[column, 128]` counts the symbols' distances from zero, both signs together.
    """
    total = counts.sum(1)
    share = counts / np.maximum(total, 1)[:, None]
    entropy = -(share * np.log2(np.maximum(share, 1e-30))).sum(1)
    order = np.argsort(entropy, kind="stable")
    groups = np.empty(len(counts), np.int64)
    groups[order] = np.arange(len(counts)) * (tables - 1) // max(1, len(counts))
    for _ in range(_ROUNDS):
        kept, groups = np.unique(groups, return_inverse=True)
        shapes = np.stack([_smooth(counts[groups == each].sum(0)) for each in range(len(kept))])
        chosen = (counts @ -np.log2(shapes).T).argmin(1)
        if (chosen == groups).all():
            break
        groups = chosen
    kept, groups = np.unique(groups, return_inverse=True)
    free = np.zeros(256, np.uint16)
    free[128] = TOTAL
    made = [free, *(_table(counts[groups == each].sum(0)) for each in range(len(kept)))]
    return np.stack(made), (groups + 1).astype(np.uint8)


def bits_of(bank: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """Bits per symbol of each table, those of an escape for one that it lacks, float32 `[tables, 256]`."""
    least = np.maximum(bank[:, :1], 1).astype(np.float64)
    cost = np.where(bank > 0, -np.log2(np.maximum(bank, 1) / TOTAL), ESCAPE_BITS - np.log2(least / TOTAL))
    cost[:, 0] = (ESCAPE_BITS - np.log2(least / TOTAL))[:, 0]
    return cost.astype(np.float32)


def _smooth(counts: Counts) -> Counts:
    """Probabilities of the distances 0 to 127: the counts, and a tail that falls off as they do, for what none saw."""
    total = counts.sum()
    spread = max((counts * np.arange(len(counts))).sum() / max(total, 1), 0.02)
    decay = spread / (1 + spread)
    tail = (1 - decay) * decay ** np.arange(len(counts)) + 1e-9
    share: Counts = (counts + 2 * tail / tail.sum()) / (total + 2)
    return share


def _table(counts: Counts) -> npt.NDArray[np.uint16]:
    """The frequencies of one table: symmetric counts without a gap, as far out as a symbol is worth it, the escape."""
    share = _smooth(counts)
    both = np.zeros(256)
    both[128] = share[0]
    both[129:] = share[1:] / 2
    both[1:128] = both[:128:-1]
    reach = int(np.flatnonzero(both[128:] >= _LEAST)[-1])
    both[: 128 - reach] = both[129 + reach :] = 0
    both[0] = max(1e-9, 1 - both.sum())
    return quantize_freqs(both)
