"""The cachegen codec on a device: two streams a frame, then every token from its anchor (`kvstore.codecs.cachegen`)."""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from kvstore.codecs.base import Opened
from kvstore.codecs.cachegen.reference import anchor_rows, open_body
from kvstore.codecs.cachegen.tables import LayerTables, layer_tables
from kvstore.codecs.gpu import rans
from kvstore.codecs.gpu.escapes import TOKENS, Constants, before, counted, tile_constants
from kvstore.codecs.gpu.floats import CODES, in_runs, load_floats, step_of, store_floats
from kvstore.codecs.gpu.staging import Rows, Staging
from kvstore.errors import Corrupt


@triton.jit
def values(
    symbols: tl.tensor,
    staged: tl.tensor,
    floats: tl.tensor,
    frames: tl.tensor,
    counts: tl.tensor,
    ends: tl.tensor,
    status: tl.tensor,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    DTYPE: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    EVEN: tl.constexpr,
    RUN: tl.constexpr,
    TOKENS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """A tile of tokens and columns (a multiple of EVEN) of one frame. `floats` is `staged` as float32.

    Every product and sum is rounded.
    """
    job = frames + tl.program_id(0) * 21
    columns, tokens = tl.multiple_of(tl.load(job + 2).to(tl.int32), EVEN), tl.load(job + 3).to(tl.int32)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    there = token < tokens
    first, group = tl.load(job + 4).to(tl.int32), tl.load(job + 5).to(tl.int32)
    number = tl.where(token < first, 0, (token - first) // group + 1)
    stands = token == tl.where(number == 0, 0, first + (number - 1) * group)  # an anchor has no difference
    other = tl.where(stands, 0, token - number - 1)
    differs = there & (stands == 0)
    anchor_row = symbols + tl.multiple_of(tl.load(job), EVEN) + number.to(tl.int64)[:, None] * columns
    other_row = symbols + tl.multiple_of(tl.load(job + 1), EVEN) + other.to(tl.int64)[:, None] * columns
    used_anchors = before(counts, ends, tl.load(job + 6), number, there)
    used_others = before(counts, ends, tl.load(job + 7), other, differs)
    anchors_due, others_due = tl.load(job + 9).to(tl.int32), tl.load(job + 11).to(tl.int32)
    table, written_anchors, written_others = floats + tl.load(job + 12), tl.load(job + 8), tl.load(job + 10)
    for start in range(0, columns, BLOCK):
        column = tl.multiple_of(start, BLOCK) + tl.arange(0, BLOCK)
        known = column < columns
        inside = there[:, None] & known[None, :]
        symbol = tl.load(anchor_row + column[None, :], mask=inside, other=128).to(tl.int32)
        step = tl.load(table + columns + column, mask=known, other=0.0)
        mean = tl.load(table + column, mask=known, other=0.0)
        anchor = (symbol - 128).to(tl.float32) * step[None, :] + mean[None, :]
        if anchors_due > 0:
            anchor = _written(anchor, symbol, used_anchors, staged + written_anchors, anchors_due, DTYPE)
        used_anchors += tl.sum((symbol == 0).to(tl.int32), 1)

        different = differs[:, None] & known[None, :]
        symbol = tl.load(other_row + column[None, :], mask=different, other=128).to(tl.int32)
        step = tl.load(table + 5 * columns + column, mask=known, other=0.0)
        value = tl.where(different, (symbol - 128).to(tl.float32) * step[None, :] + anchor, anchor)
        if others_due > 0:
            value = _written(value, symbol, used_others, staged + written_others, others_due, DTYPE)
        used_others += tl.sum((symbol == 0).to(tl.int32), 1)
        channel = column % (HEADS * DIM)
        to = (column // (HEADS * DIM)).to(tl.int64) * step_of(job + 14, ALIGN, DTYPE)
        to += (channel // DIM).to(tl.int64) * step_of(job + 16, ALIGN, DTYPE)
        dim = (channel % DIM).to(tl.int64)
        if UNIT:
            to = in_runs(to, dim, RUN, ALIGN, DTYPE)
        else:
            to += dim * tl.load(job + 17)
        where = token.to(tl.int64)[:, None] * step_of(job + 15, ALIGN, DTYPE) + to[None, :]
        store_floats(tl.load(job + 13), where, value, inside, DTYPE, ALIGN)
    last = tl.where(stands, number == tl.load(job + 19) - 1, other == tl.load(job + 20) - 1)
    short = tl.where(stands, used_anchors != anchors_due, used_others != others_due)
    wrong = tl.max((there & last & short).to(tl.int32), 0)
    tl.atomic_max(status + tl.load(job + 18), 1, mask=wrong > 0)


@triton.jit
def _written(
    values: tl.tensor, symbol: tl.tensor, used: tl.tensor, written: tl.tensor, due: tl.tensor, DTYPE: tl.constexpr
) -> tl.tensor:
    """Values, those whose symbol is 0 taken from what was written of them."""
    escaped = (symbol == 0).to(tl.int32)
    at = used[:, None] + tl.cumsum(escaped, 1) - escaped
    found = load_floats(written, at, (escaped > 0) & (at < due), DTYPE)
    return tl.where(escaped > 0, found, values)


class CacheGenDecoder:
    """Gathers frames that one artefact coded at one level."""

    def __init__(self, opened: Opened, device: torch.device) -> None:
        if opened.artefact is None:
            raise Corrupt("the frame names no artefact, and cachegen cannot do without")
        self._artefact, self._level = opened.artefact, opened.frame.level
        self._block, self._device = opened.block, device
        self._jobs: list[rans.Job] = []
        self._matrices: list[tuple[int, ...]] = []
        self._frames: list[tuple[int, ...]] = []
        self._staged = (Rows(0, 0),) * 3  # jobs, matrices, frames
        self._places: Constants = {}
        self._symbols = self._rows = self._tokens = 0

    def add(self, opened: Opened, staging: Staging, address: int, chunk: int) -> None:
        """Take a frame. `Corrupt` for a body whose pieces do not fit one another."""
        block, tables = opened.block, self._tables(opened)
        element = np.dtype(np.uint32 if block.itemsize == 4 else np.uint16)
        first, streams, written = open_body(opened.body, block.dtype, element, tables.group)
        columns, anchors = tables.tables.shape[1], len(anchor_rows(block.tokens, tables.group, first))
        others = block.tokens - anchors
        if not others and (len(streams[1]) or len(written[1])):
            raise Corrupt("a cachegen body has differences, but all its tokens are anchors")
        places, counts = list[int](), list[int]()
        for side, rows in enumerate((anchors, others)):
            places.append(self._symbols)
            counts.append(self._rows)
            if rows:
                # The bank's own array, so that it is staged once for all chunks.
                chosen = (tables.anchors, tables.deltas)[side].tables
                job = rans.job_of(staging, streams[side], chosen, None, rows, self._symbols, columns, chunk)
                self._jobs.append(job)
                self._matrices.append((self._symbols, columns, rows, self._rows))
            self._symbols += rows * columns
            self._rows += rows
        lists = [part for each in written for part in (staging.add_array(each), len(each))]
        floats = staging.add_array(tables.floats) // 4
        shape = (*places, columns, block.tokens, first, tables.group, *counts, *lists, floats)
        self._frames.append((*shape, address, *block.strides()[1:], chunk, anchors, others))
        self._tokens = max(self._tokens, block.tokens)

    def close(self, staging: Staging) -> None:
        """Stage what the programs are to do: there will be no more frames."""
        jobs = staging.add_rows([job.row() for job in self._jobs])
        self._staged = (jobs, staging.add_rows(self._matrices), staging.add_rows(self._frames))
        frames = self._frames
        self._places = tile_constants(
            self._block,
            {row[13] for row in frames},
            {step for row in frames for step in row[14:17]},
            {row[17] for row in frames},
            {row[2] for row in frames},
        )

    def launch(self, staged: torch.Tensor, status: torch.Tensor) -> None:
        """Decode; the status of a chunk becomes 1 where a stream or its escapes are none that an encoder writes."""
        jobs, matrices, frames = self._staged
        block = self._block
        symbols = torch.empty(self._symbols, dtype=torch.uint8, device=self._device)
        rans.launch(staged, self._bank(), jobs, symbols, status, levels=False)
        # A place more than there are rows: where a frame has no differences, its counts begin behind the last.
        counts, ends = counted(symbols, staged, matrices, self._tokens, self._rows + 1, 0)
        values[len(self._frames), triton.cdiv(self._tokens, TOKENS)](
            symbols,
            staged,
            staged.view(torch.float32),
            frames.of(staged),
            counts,
            ends,
            status,
            HEADS=block.heads,
            DIM=block.dim,
            DTYPE=CODES[block.dtype],
            **self._places,
            num_warps=4,
            enable_fp_fusion=False,
        )

    def _tables(self, opened: Opened) -> LayerTables:
        return layer_tables(self._artefact, opened.block, self._level)

    def _bank(self) -> rans.Tables:
        freqs = layer_tables(self._artefact, self._block, self._level).freqs
        return self._artefact.prepared(("gpu bank", self._device), lambda: rans.Tables.of(freqs, self._device))
