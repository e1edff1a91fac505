"""The lossless codec on a device: exponents by rANS, then sign and mantissa joined to them (`kvstore.codecs.lossless`).

Where an escaped exponent lies follows from how many there are before it: in frames that have any, which real KV seldom
makes, a launch counts them by token, a sum over all tokens gives every token its first, and the last launch finds the
others by a scan along the token. Scratch is a byte per element.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from kvstore.codecs import lossless
from kvstore.codecs.base import Opened
from kvstore.codecs.block import Block
from kvstore.codecs.gpu import rans
from kvstore.codecs.gpu.escapes import FIELDS, TOKENS, Constants, before, counted, tile_constants
from kvstore.codecs.gpu.floats import CODES, in_runs, step_of
from kvstore.codecs.gpu.staging import Rows, Staging
from kvstore.errors import Corrupt

HEAD_BYTES = 5
COPIED = 4096  # bytes of a stored body that a program copies


@triton.jit
def join(
    symbols: tl.tensor,
    staged: tl.tensor,
    frames: tl.tensor,
    counts: tl.tensor,
    ends: tl.tensor,
    status: tl.tensor,
    PLANES: tl.constexpr,
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
    """The elements of a tile of tokens and columns of one frame, whose columns are a multiple of EVEN.

    `ends` [token of all frames] counts the escapes up to it, inclusive, in frames that have any; a frame that has none
    may hold no symbol that stands for one.
    """
    job = frames + tl.program_id(0) * 16
    columns, tokens = tl.multiple_of(tl.load(job + 1).to(tl.int32), EVEN), tl.load(job + 2).to(tl.int32)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    there = token < tokens
    row = symbols + tl.multiple_of(tl.load(job), EVEN) + token.to(tl.int64)[:, None] * columns
    due = tl.load(job + 7).to(tl.int32)
    offsets, rest = staged + tl.load(job + 4), staged + tl.multiple_of(tl.load(job + 5), 16)
    escapes = staged + tl.load(job + 6)
    count = tl.load(job + 15)
    address = tl.load(job + 8)
    used = tl.zeros((TOKENS,), tl.int32)
    if due > 0:
        used = before(counts, ends, tl.load(job + 3), token, there)
    highest = tl.zeros((TOKENS,), tl.int32)
    for first in range(0, columns, BLOCK):
        column = tl.multiple_of(first, BLOCK) + tl.arange(0, BLOCK)
        known = column < columns
        inside = there[:, None] & known[None, :]
        symbol = tl.load(row + column[None, :], mask=inside, other=0).to(tl.int32)
        offset = tl.load(offsets + column, mask=known, other=0).to(tl.int32)
        escaped = (symbol == 31).to(tl.int32)
        exponent = (symbol + offset[None, :]) & 255
        if due > 0:
            at = used[:, None] + tl.cumsum(escaped, 1) - escaped
            written = tl.load(escapes + at, mask=inside & (escaped > 0) & (at < due), other=0).to(tl.int32)
            exponent = tl.where(escaped > 0, written, exponent)
        highest = tl.maximum(highest, tl.max(tl.where(inside, exponent, 0), 1))
        used += tl.sum(escaped, 1)
        plane = column // (HEADS * DIM)
        channel = column % (HEADS * DIM)
        element = (plane.to(tl.int64)[None, :] * tokens + token[:, None]) * (HEADS * DIM) + channel[None, :]
        bits = _element(rest, element, count, exponent, inside, DTYPE)
        to = (plane // PLANES).to(tl.int64) * step_of(job + 9, ALIGN, DTYPE)
        to += (plane % PLANES).to(tl.int64) * step_of(job + 10, ALIGN, DTYPE)
        to += (channel // DIM).to(tl.int64) * step_of(job + 12, ALIGN, DTYPE)
        dim = (channel % DIM).to(tl.int64)
        if UNIT:
            to = in_runs(to, dim, RUN, ALIGN, DTYPE)
        else:
            to += dim * tl.load(job + 13)
        where = token.to(tl.int64)[:, None] * step_of(job + 11, ALIGN, DTYPE) + to[None, :]
        if DTYPE == 2:
            tl.store(tl.multiple_of(address.to(tl.pointer_type(tl.uint32)), ALIGN) + where, bits, mask=inside)
        else:
            half = tl.multiple_of(address.to(tl.pointer_type(tl.uint16)), ALIGN)
            tl.store(half + where, bits.to(tl.uint16), mask=inside)
    wrong = there & tl.where(due > 0, (token == tokens - 1) & (used != due), used > 0)
    if DTYPE == 1:
        wrong = wrong | (there & (highest > 31))
    tl.atomic_max(status + tl.load(job + 14), 1, mask=tl.max(wrong.to(tl.int32), 0) > 0)


@triton.jit
def _element(
    rest: tl.tensor, element: tl.tensor, count: tl.tensor, exponent: tl.tensor, inside: tl.tensor, DTYPE: tl.constexpr
) -> tl.tensor:
    low = tl.load(rest + element, mask=inside, other=0).to(tl.uint32)
    power = exponent.to(tl.uint32)
    if DTYPE == 0:
        bits = (low & 0x80) << 8 | power << 7 | (low & 0x7F)
    elif DTYPE == 1:
        packed, at = rest + count, 3 * element
        both = tl.load(packed + at // 8, mask=inside, other=0).to(tl.uint32)
        more = inside & (at // 8 + 1 < (3 * count + 7) // 8)
        both = both | tl.load(packed + at // 8 + 1, mask=more, other=0).to(tl.uint32) << 8
        top = both >> (at % 8).to(tl.uint32)
        bits = (top & 4) << 13 | power << 10 | (top & 3) << 8 | low
    else:
        middle = tl.load(rest + count + element, mask=inside, other=0).to(tl.uint32)
        top = tl.load(rest + 2 * count + element, mask=inside, other=0).to(tl.uint32)
        bits = (top & 0x80) << 24 | power << 23 | (top & 0x7F) << 16 | middle << 8 | low
    return bits


@triton.jit
def copy_bytes(staged: tl.tensor, bodies: tl.tensor, BLOCK: tl.constexpr) -> None:
    """A body that is stored: the raw bytes, in the order that they go to."""
    job = bodies + tl.program_id(0) * 3
    at = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < tl.load(job + 2)
    found = tl.load(staged + tl.load(job) + at, mask=inside, other=0)
    tl.store(tl.load(job + 1).to(tl.pointer_type(tl.uint8)) + at, found, mask=inside)


class LosslessDecoder:
    """Gathers frames of one shape and decodes them together."""

    def __init__(self, opened: Opened, device: torch.device) -> None:
        self._block, self._device = opened.block, device
        self._jobs: list[rans.Job] = []
        self._frames: list[tuple[int, ...]] = []
        self._stored: list[tuple[int, ...]] = []
        self._staged = (Rows(0, 0),) * 4  # jobs, matrices, frames, stored
        self._places: Constants = {}
        self._symbols = self._rows = self._tokens = self._longest = 0

    def add(self, opened: Opened, staging: Staging, address: int, chunk: int) -> None:
        """Take a frame. `Corrupt` for a body whose pieces do not add up."""
        block, body = opened.block, opened.body
        if len(body) == 1 + block.nbytes and body[0] == lossless.STORED:
            self._stored.append((staging.add(body[1:]), address, block.nbytes))
            self._longest = max(self._longest, block.nbytes)
            return
        parts = _opened(body, block)
        columns, count = len(parts.tables), block.nbytes // block.itemsize
        job = rans.job_of(staging, parts.stream, parts.tables, None, block.tokens, self._symbols, columns, chunk)
        self._jobs.append(job)
        rest, escapes = staging.add(parts.rest), staging.add(parts.escapes)
        places = (staging.add_array(parts.offsets), rest, escapes, len(parts.escapes), address)
        shape = (self._symbols, columns, block.tokens, self._rows)
        self._frames.append((*shape, *places, *block.strides(), chunk, count))
        self._symbols += count
        self._rows += block.tokens
        self._tokens = max(self._tokens, block.tokens)

    def close(self, staging: Staging) -> None:
        """Stage what the programs are to do: there will be no more frames."""
        jobs = staging.add_rows([job.row() for job in self._jobs])
        matrices = staging.add_rows([row[:FIELDS] for row in self._frames if row[7]])
        self._staged = (jobs, matrices, staging.add_rows(self._frames), staging.add_rows(self._stored))
        frames = self._frames
        self._places = tile_constants(
            self._block,
            {row[8] for row in frames},
            {step for row in frames for step in row[9:13]},
            {row[13] for row in frames},
            {row[1] for row in frames},
        )

    def launch(self, staged: torch.Tensor, status: torch.Tensor) -> None:
        """Decode; the status of a chunk becomes 1 where a stream or its escapes are none that an encoder writes."""
        jobs, matrices, frames, stored = self._staged
        if self._stored:
            grid = (len(self._stored), triton.cdiv(self._longest, COPIED))
            copy_bytes[grid](staged, stored.of(staged), BLOCK=COPIED, num_warps=4)
        if not self._frames:
            return
        block, rows = self._block, frames.of(staged)
        symbols = torch.empty(self._symbols, dtype=torch.uint8, device=self._device)
        rans.launch(staged, _tables(self._device), jobs, symbols, status, levels=False)
        counts, ends = counted(symbols, staged, matrices, self._tokens, self._rows, lossless.ESCAPE)
        join[len(self._frames), triton.cdiv(self._tokens, TOKENS)](
            symbols,
            staged,
            rows,
            counts,
            ends,
            status,
            PLANES=block.planes,
            HEADS=block.heads,
            DIM=block.dim,
            DTYPE=CODES[block.dtype],
            **self._places,
            num_warps=4,
        )


@lru_cache(maxsize=8)
def _tables(device: torch.device) -> rans.Tables:
    return rans.Tables.of(lossless.freqs(), device)


@dataclass(frozen=True, slots=True)
class _Parts:
    """A coded body taken apart; `offsets` and `tables` uint8, one per column."""

    offsets: npt.NDArray[np.uint8]
    tables: npt.NDArray[np.uint8]
    rest: memoryview
    escapes: memoryview
    stream: memoryview


def _opened(body: memoryview, block: Block) -> _Parts:
    kind = body[0] if len(body) else 0
    if not kind & lossless.CODED or kind >= 2 * lossless.WIDE or not HEAD_BYTES <= len(body) <= block.nbytes:
        raise Corrupt(f"a lossless body of {len(body)} bytes and kind {kind}: no encoder makes it")
    sections, channels = len(block.layers) * block.planes, block.heads * block.dim
    span = block.dim if kind & lossless.PER_HEAD else 1
    sets = sections * channels // span
    lengths = (
        sets if kind & lossless.WIDE else sections,
        sets,
        lossless.rest_bytes(block),
        int.from_bytes(body[1:HEAD_BYTES], "little"),
    )
    if HEAD_BYTES + sum(lengths) > len(body):
        raise Corrupt(f"the pieces of a lossless body, {lengths} bytes, are more than its {len(body)}")
    pieces, at = list[memoryview](), HEAD_BYTES
    for length in lengths:
        pieces.append(body[at : at + length])
        at += length
    first, second = (np.frombuffer(piece, np.uint8) for piece in pieces[:2])
    if kind & lossless.WIDE:
        offsets, tables = first, second
    else:
        offsets = np.repeat(first, sets // sections) + (second >> np.uint8(4))
        tables = second & np.uint8(15)
    if tables.max() > 15:
        raise Corrupt(f"a lossless body names table {tables.max()} of 16")
    return _Parts(np.repeat(offsets, span), np.repeat(tables, span), pieces[2], pieces[3], body[at:])
