"""Escaped symbols lie one after the other, by token, then column: how many come before each token."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
import triton
import triton.language as tl

from kvstore.codecs.block import Block
from kvstore.codecs.gpu.floats import ALIGNMENT, alignment_of
from kvstore.codecs.gpu.staging import Rows

Constants: TypeAlias = dict[str, Any]

FIELDS = 4  # of a matrix's row
TOKENS, COLUMNS = 8, 128  # of a program's tile


def tile_constants(block: Block, addresses: set[int], steps: set[int], dims: set[int], columns: set[int]) -> Constants:
    """What kernels that work in such tiles are told of frames, besides the block's shape.

    `addresses` (bytes) and `steps` (elements) are all that elements are found by, `dims` the steps from one dim to the
    next, `columns` how many a frame has.
    """
    return {
        "UNIT": dims == {1},
        "ALIGN": alignment_of(addresses, steps, block.dtype),
        "EVEN": math.gcd(ALIGNMENT, *columns),
        "RUN": math.gcd(COLUMNS, block.dim),
        "TOKENS": TOKENS,
        "BLOCK": COLUMNS,
    }


@triton.jit
def count_escapes(
    symbols: tl.tensor,
    matrices: tl.tensor,
    counts: tl.tensor,
    ESCAPE: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """How many symbols of each row are escapes."""
    job = matrices + tl.program_id(0) * 4
    columns, rows = tl.load(job + 1).to(tl.int32), tl.load(job + 2).to(tl.int32)
    number = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row = symbols + tl.load(job) + number.to(tl.int64)[:, None] * columns
    found = tl.zeros((TOKENS,), tl.int32)
    for first in range(0, columns, BLOCK):
        column = first + tl.arange(0, BLOCK)
        inside = (number < rows)[:, None] & (column < columns)[None, :]
        symbol = tl.load(row + column[None, :], mask=inside, other=255).to(tl.int32)
        found += tl.sum((symbol == ESCAPE).to(tl.int32), 1)
    tl.store(counts + tl.load(job + 3) + number, found, mask=number < rows)


def counted(
    symbols: torch.Tensor, staged: torch.Tensor, matrices: Rows, longest: int, rows: int, escape: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The escapes of each row of all matrices, int32 `[rows]`, and their sums up to it, inclusive, int64.

    `matrices` are rows of: first symbol, columns, rows (`longest` at most), the place of its counts.
    """
    counts = torch.zeros(rows, dtype=torch.int32, device=symbols.device)
    if not matrices.size:
        return counts, counts
    count_escapes[matrices.size // FIELDS, triton.cdiv(longest, TOKENS)](
        symbols, matrices.of(staged), counts, ESCAPE=escape, TOKENS=TOKENS, BLOCK=COLUMNS, num_warps=4
    )
    return counts, torch.cumsum(counts, 0, dtype=torch.int64)


@triton.jit
def before(counts: tl.tensor, ends: tl.tensor, place: tl.tensor, row: tl.tensor, known: tl.tensor) -> tl.tensor:
    """The escapes in a matrix before rows, whose counts begin at `place`; only where `known`."""
    others = tl.load(ends + place) - tl.load(counts + place)
    end = tl.load(ends + place + row, mask=known, other=0)
    return (end - tl.load(counts + place + row, mask=known, other=0) - others).to(tl.int32)
