"""Makes the tables of the codec `lossless`: shapes of the distribution of exponents in a channel of real KV.

    python -m kvstore.codecs.lossless_priors KV.npy ... > codecs/native/lossless_tables.cpp

Each file is a float32 array [layer, plane, token, head, dim] of one document's KV. What is in the repository was made
from five documents of SmolLM2-135M-Instruct in bfloat16: two of code, two licences, one of a manual.

Exponents are counted below the largest of their channel (or head) in 256 tokens. Lloyd's algorithm then alternates
between giving every channel the table and shift that code it in the fewest bits and making each table from the
channels that it was given. The first tables are for channels, the last ones for whole heads (short chunks).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.codecs.floats import to_bfloat16
from kvstore.codecs.rans import TOTAL, quantize_freqs

SYMBOLS, ESCAPE = 32, 31
SHIFTS = 8  # the largest exponent of a channel becomes symbol 30 - shift
DEPTH = 40  # bins below the largest exponent; deeper ones share the last
CHANNEL_TABLES, HEAD_TABLES = 12, 4
TOKENS, ROUNDS = 256, 12

Counts = npt.NDArray[np.float32]


def count(kv: npt.NDArray[np.float32], per_head: bool) -> Counts:
    """Counts [channels or heads, DEPTH + 1] of exponents below the largest, in chunks of 256 tokens."""
    layers, planes, tokens, heads, dim = kv.shape
    chunks = tokens // TOKENS
    exponents = (to_bfloat16(kv[:, :, : chunks * TOKENS]) >> 7 & 0xFF).astype(np.int64)
    parts = exponents.reshape(layers, planes, chunks, TOKENS, heads, dim)
    rows = parts.transpose(0, 1, 2, 4, 3, 5) if per_head else parts.transpose(0, 1, 2, 4, 5, 3)
    rows = rows.reshape(-1, TOKENS * (dim if per_head else 1))
    depth = np.minimum(rows.max(axis=1, keepdims=True) - rows, DEPTH)
    flat = depth + np.arange(len(rows))[:, None] * (DEPTH + 1)
    return np.bincount(flat.ravel(), minlength=len(rows) * (DEPTH + 1)).reshape(len(rows), -1).astype(np.float32)


def symbols(counts: Counts, shift: int) -> Counts:
    """The counts as counts of symbols [n, SYMBOLS]."""
    found = np.zeros((len(counts), SYMBOLS), np.float32)
    kept = ESCAPE - shift
    found[:, :kept] = counts[:, kept - 1 :: -1]
    found[:, ESCAPE] = counts[:, kept:].sum(axis=1)
    return found


def costs(freqs: npt.NDArray[Any]) -> Counts:
    """Bits per symbol; an escape costs the 8 of the exponent that follows, too."""
    bits = -np.log2(freqs / freqs.sum(axis=1, keepdims=True))
    bits[:, ESCAPE] += 8
    found: Counts = bits.astype(np.float32)
    return found


def learn(counts: Counts, tables: int) -> npt.NDArray[np.uint16]:
    """`tables` frequencies [tables, 256] of 12 bits."""
    rng = np.random.default_rng(0)
    freqs: npt.NDArray[Any] = symbols(counts[rng.choice(len(counts), tables, replace=False)], 3) + 0.3
    for _ in range(ROUNDS):
        bits = costs(freqs).T
        each = np.stack([symbols(counts, shift) @ bits for shift in range(SHIFTS)], axis=2).reshape(len(counts), -1)
        best = each.argmin(axis=1)
        freqs = np.full((tables, SYMBOLS), 0.5)
        for shift in range(SHIFTS):
            chosen = best % SHIFTS == shift
            np.add.at(freqs, best[chosen] // SHIFTS, symbols(counts[chosen], shift))
    made = np.zeros((tables, 256), np.uint16)
    for row, found in zip(made, freqs, strict=True):
        weights = np.zeros(256)
        weights[:SYMBOLS] = np.maximum(found, found.sum() / TOTAL * 0.3)
        row[:] = quantize_freqs(weights)
    return made


def source(freqs: npt.NDArray[np.uint16]) -> str:
    """The C++ that holds the tables, and what each symbol costs in 1/256 bit."""
    used = freqs[:, :SYMBOLS]
    bits = np.rint(costs(used.astype(np.float64)) * 256).astype(int)

    def rows(numbers: npt.NDArray[np.integer]) -> str:
        return "".join("    {" + ", ".join(map(str, row)) + "},\n" for row in numbers.tolist())

    return (
        "// Made by `python -m kvstore.codecs.lossless_priors`: not to be edited, the format depends on it.\n"
        '#include "lossless_tables.hpp"\n\nnamespace kvstore::lossless {\n\n'
        "// clang-format off\n"
        f"const std::uint16_t kFreqs[kTables][kSymbols] = {{\n{rows(used)}}};\n\n"
        f"const std::uint16_t kCosts[kTables][kSymbols] = {{\n{rows(bits)}}};\n"
        "// clang-format on\n\n}  // namespace kvstore::lossless\n"
    )


def main(paths: list[str]) -> None:
    """Read, learn, print."""
    kept = [np.load(Path(path), mmap_mode="r") for path in paths]
    made = [
        learn(np.concatenate([count(kv, per_head) for kv in kept]), tables)
        for per_head, tables in ((False, CHANNEL_TABLES), (True, HEAD_TABLES))
    ]
    sys.stdout.write(source(np.concatenate(made)))


if __name__ == "__main__":
    main(sys.argv[1:])
