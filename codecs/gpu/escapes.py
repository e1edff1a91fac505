"""Escaped symbols lie one after the other, by token, then column: how many come before each token."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvstore.codecs.gpu.staging import Rows

FIELDS = 4  # of a matrix's row
BLOCK = 256  # columns at a time


@triton.jit
def count_escapes(
    symbols: tl.tensor, matrices: tl.tensor, counts: tl.tensor, ESCAPE: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    """How many symbols of each row are escapes."""
    job = matrices + tl.program_id(0) * 4
    columns, rows, number = tl.load(job + 1).to(tl.int32), tl.load(job + 2).to(tl.int32), tl.program_id(1)
    limit = tl.where(number < rows, columns, 0)
    row = symbols + tl.load(job) + number.to(tl.int64) * columns
    found = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, limit, BLOCK):
        column = first + tl.arange(0, BLOCK)
        symbol = tl.load(row + column, mask=column < limit, other=255).to(tl.int32)
        found += (symbol == ESCAPE).to(tl.int32)
    tl.store(counts + tl.load(job + 3) + number, tl.sum(found, 0), mask=number < rows)


def counted(
    symbols: torch.Tensor, staged: torch.Tensor, matrices: Rows, longest: int, rows: int, escape: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The escapes of each row of all matrices, int32 `[rows]`, and their sums up to it, inclusive, int64.

    `matrices` are rows of: first symbol, columns, rows (`longest` at most), the place of its counts.
    """
    counts = torch.zeros(rows, dtype=torch.int32, device=symbols.device)
    grid = (matrices.size // FIELDS, longest)
    count_escapes[grid](symbols, matrices.of(staged), counts, ESCAPE=escape, BLOCK=BLOCK, num_warps=4)
    return counts, torch.cumsum(counts, 0, dtype=torch.int64)


@triton.jit
def before(counts: tl.tensor, ends: tl.tensor, place: tl.tensor, row: tl.tensor) -> tl.tensor:
    """The escapes in a matrix before a row, whose counts begin at `place`."""
    others = tl.load(ends + place) - tl.load(counts + place)
    return (tl.load(ends + place + row) - tl.load(counts + place + row) - others).to(tl.int32)
