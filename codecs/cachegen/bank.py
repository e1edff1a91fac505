"""A few tables for many columns: what keeps an artefact small.

A table per (level, layer, plane, channel, anchor or difference) would be 512 bytes each. Columns whose symbols are
alike share one: k-means over their histograms, the distance being the bits that a column costs with a table.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.cachegen.tables import ZERO
from kvstore.codecs.rans import SYMBOLS, TOTAL, quantize_freqs

TABLES = 32
_ROUNDS = 12
_TRAINED_ON = 8192  # histograms at most
_WRITTEN_BITS = 16.0  # of an element that is written out, besides its symbol 0
_RARE = 0.1 / TOTAL  # a symbol that keeps less than this is not worth the 1/4096 that it must be given
_ABSENT_BITS = 28.0

Floats64 = npt.NDArray[np.float64]


def choose_bank(
    counts: npt.NDArray[np.uint32],
) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8], dict[str, Any]]:
    """A bank uint16 [n, 256], the table of each histogram of `counts` [..., 256], and what sharing costs.

    That is `shared_bits`, the bits per symbol of the samples with the bank, beside `own_bits`, those with an ideal
    table for each histogram.
    """
    rows = counts.reshape(-1, SYMBOLS)
    used = rows[rows.any(axis=1)]
    trained = used[:: -(-len(used) // _TRAINED_ON)].astype(np.float32)
    chosen = _by_spread(trained)
    for _ in range(_ROUNDS):
        costs = np.stack([_ideal_bits(trained[chosen == k].sum(axis=0, dtype=np.float64)) for k in np.unique(chosen)])
        chosen = _cheapest(trained, costs)
    bank = np.stack([_table(trained[chosen == k].sum(axis=0, dtype=np.float64)) for k in np.unique(chosen)])
    costs = np.stack([_bits(freqs) for freqs in bank])
    tables = _cheapest(rows, costs)
    total = float(rows.sum(dtype=np.float64))
    shared = sum(float(rows[tables == k].sum(axis=0, dtype=np.float64) @ costs[k]) for k in range(len(bank)))
    facts = {"shared_bits": round(shared / total, 4), "own_bits": round(_entropy(rows) / total, 4)}
    return bank, tables.reshape(counts.shape[:-1]).astype(np.uint8), facts


def _by_spread(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Histograms in `TABLES` groups of equal number by how far their symbols spread: where the search begins."""
    codes = np.arange(SYMBOLS, dtype=np.float32) - ZERO
    spread = (rows @ np.square(codes)) / rows.sum(axis=1)
    chosen = np.empty(len(rows), np.intp)
    chosen[np.argsort(spread, kind="stable")] = np.arange(len(rows)) * TABLES // len(rows)
    return chosen


def _cheapest(rows: npt.NDArray[Any], costs: Floats64) -> npt.NDArray[np.intp]:
    """Which of `costs` [n, 256] codes each histogram in the fewest bits."""
    weights = costs.T.astype(np.float32)
    pieces = [(rows[i : i + 4096].astype(np.float32) @ weights).argmin(axis=1) for i in range(0, len(rows), 4096)]
    return np.concatenate(pieces)


def _ideal_bits(histogram: Floats64) -> Floats64:
    """Bits of each symbol before frequencies are rounded."""
    share = histogram / histogram.sum()
    bits: Floats64 = np.minimum(-np.log2(np.maximum(share, 2.0**-40)), _ABSENT_BITS)
    return bits


def _table(histogram: Floats64) -> npt.NDArray[np.uint16]:
    """Frequencies without a gap around the likeliest code; what lies outside is written out, as symbol 0."""
    share = histogram / histogram.sum()
    top = 1 + int(share[1:].argmax())
    rare = np.flatnonzero(np.concatenate([[True], share[1:] < _RARE, [True]]))
    low, high = int(rare[rare < top].max(initial=0)) + 1, int(rare[rare > top].min(initial=SYMBOLS))
    kept = np.zeros(SYMBOLS)
    kept[low:high] = np.maximum(share[low:high], _RARE)
    kept[0] = max(1.0 - kept.sum(), _RARE / 10)
    return quantize_freqs(kept)


def _bits(freqs: npt.NDArray[np.uint16]) -> Floats64:
    """Bits of each symbol with a table; those it lacks cost symbol 0 and an element."""
    own = -np.log2(np.maximum(freqs, 1) / TOTAL)
    written = own[0] + _WRITTEN_BITS
    bits = np.where(freqs > 0, own, written)
    bits[0] = written
    return bits


def _entropy(rows: npt.NDArray[np.uint32]) -> float:
    """Bits in all with an ideal table for each histogram."""
    total = 0.0
    for i in range(0, len(rows), 4096):
        piece = rows[i : i + 4096].astype(np.float64)
        share = piece / np.maximum(piece.sum(axis=1, keepdims=True), 1)
        total -= float((piece * np.log2(np.where(share > 0, share, 1))).sum())
    return total
