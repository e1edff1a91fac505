"""rANS decoding on a device: one warp per stream, a thread per lane (`kvstore.codecs.rans` has the format).

A step is a chain: slot → symbol → its frequency → state → which lanes take a word → state. Nothing in a stream can be
done beside it, so what counts is the latency of each link. A bank of 32 tables is 160 KiB as symbols and frequencies
(it would be 512 KiB as an entry per slot) and stays in a multiprocessor's first cache. The 32 words that may be next
are loaded a step ahead, as soon as it is known where they begin, and handed out within the warp; which lanes take one
is a bit each of one sum. The device is filled with streams: SmolLM2's chunk of 256 tokens has some 30 of them, an H200
holds 32 programs in each of 132 multiprocessors. Hence `decode_streams` takes those of many chunks.

What a stream says is never trusted: entries are masked to the table, words that are not there read as zero, and what
came out is only good where `status` is zero in the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from kvstore.codecs.frame import Buffer
from kvstore.codecs.gpu.staging import Rows, Staging, raise_corrupt
from kvstore.codecs.rans import STATE_BYTES, TOTAL
from kvstore.errors import Corrupt, InvalidArgument

FIELDS = 9  # of a job's row


@dataclass(frozen=True, slots=True)
class Job:
    """One stream of a launch. `at` (even), `tables` and `shifts` are bytes in the staged buffer, a shift for each
    column of levels. `out` is the first element that it writes, `stride` elements lie from one token to the next.
    `owner` is the place in the status that a bad stream sets to 1."""

    at: int
    words: int
    tables: int
    shifts: int
    out: int
    stride: int
    tokens: int
    columns: int
    owner: int

    def row(self) -> tuple[int, ...]:
        """The fields that the kernel reads."""
        return (
            self.at // 2, self.words, self.tables, self.shifts, self.out, self.stride, self.tokens, self.columns,
            self.owner,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tables:
    """What decoding looks up, on a device: the symbol of each slot, uint8 `[n, 4096]`, and uint32 `[n, 256]`, for each
    symbol its frequency - 1 | its first slot << 12."""

    symbols: torch.Tensor
    entries: torch.Tensor

    @classmethod
    def of(cls, freqs: npt.NDArray[np.uint16], device: torch.device) -> Tables:
        """Those of a bank uint16 `[n, 256]`."""
        wide = freqs.astype(np.uint32)
        starts = np.cumsum(wide, axis=1, dtype=np.uint32) - wide
        symbols = np.repeat(np.tile(np.arange(256, dtype=np.uint8), len(freqs)), wide.reshape(-1)).reshape(-1, TOTAL)
        entries = (np.maximum(wide, 1) - 1) | (starts & (TOTAL - 1)) << 12  # a start of 4096 is never looked up
        return cls(torch.from_numpy(symbols).to(device), torch.from_numpy(entries).to(device))


@triton.jit
def _popcount(bits: tl.tensor) -> tl.tensor:
    """The ones in uint32, as int32."""
    pairs = bits - ((bits >> 1) & 0x55555555)
    fours = (pairs & 0x33333333) + ((pairs >> 2) & 0x33333333)
    return ((((fours + (fours >> 4)) & 0x0F0F0F0F) * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def _rans_decode(
    words: tl.tensor,
    staged: tl.tensor,
    symbols: tl.tensor,
    entries: tl.tensor,
    jobs: tl.tensor,
    out: tl.tensor,
    status: tl.tensor,
    LEVELS: tl.constexpr,
) -> None:
    job = jobs + tl.program_id(0) * 9
    stream = words + tl.load(job)
    limit = tl.load(job + 1).to(tl.int32)
    tables = staged + tl.load(job + 2)
    shifts = staged + tl.load(job + 3)
    target = out + tl.load(job + 4)
    stride = tl.load(job + 5)
    tokens = tl.load(job + 6).to(tl.int32)
    columns = tl.load(job + 7).to(tl.int32)

    lane = tl.arange(0, 32)
    bit = tl.full((32,), 1, tl.uint32) << lane.to(tl.uint32)
    low = tl.load(stream + 2 * lane).to(tl.uint32)
    x = low | tl.load(stream + 2 * lane + 1).to(tl.uint32) << 16
    wrong = (x < 32768) | (x >= 2147483648)
    at = 0
    ahead = tl.load(stream + 64 + lane, mask=lane < limit, other=0)
    for first in range(0, columns, 32):
        live = first + lane < columns
        table = tl.load(tables + first + lane, mask=live, other=0).to(tl.int32)
        own_symbols, own_entries = symbols + table * 4096, entries + table * 256
        shift = tl.zeros((32,), tl.int32)
        if LEVELS:
            shift = tl.load(shifts + first + lane, mask=live, other=0).to(tl.int32)
        row = target + first + lane
        for _ in range(tokens):
            slot = x & 4095
            symbol = tl.load(own_symbols + slot).to(tl.int32)
            entry = tl.load(own_entries + symbol)
            state = ((entry & 4095) + 1) * (x >> 12) + slot - (entry >> 12)
            takes = live & (state < 32768)
            taking = tl.sum(tl.where(takes, bit, 0), 0)
            word = tl.gather(ahead, _popcount(taking & (bit - 1)), 0).to(tl.uint32)
            x = tl.where(live, tl.where(takes, (state << 16) | word, state), x)
            at += _popcount(taking)
            ahead = tl.load(stream + 64 + at + lane, mask=at + lane < limit, other=0)
            if LEVELS:
                tl.store(row, ((symbol - 128) << shift).to(tl.int16), mask=live)
            else:
                tl.store(row, symbol.to(tl.uint8), mask=live)
            row += stride
    wrong = wrong | (x != 32768)
    bad = tl.sum(wrong.to(tl.int32), 0) + (at != limit).to(tl.int32)
    tl.atomic_max(status + tl.load(job + 8), 1, mask=bad != 0)


def launch(
    staged: torch.Tensor, tables: Tables, jobs: Rows, out: torch.Tensor, status: torch.Tensor, *, levels: bool
) -> None:
    """Decode streams into `out`, symbols uint8 or, with `levels`, int16 `symbol - 128 << shift`.

    `jobs` are rows of `Job`, inside `staged` and `out`. A stream that no encoder makes sets its owner's status to 1.
    """
    if jobs.size:
        _rans_decode[(jobs.size // FIELDS,)](
            staged.view(torch.uint16),
            staged,
            tables.symbols,
            tables.entries,
            jobs.of(staged),
            out,
            status,
            LEVELS=levels,
            num_warps=1,
        )


def job_of(
    staging: Staging,
    stream: Buffer,
    tables: npt.NDArray[np.uint8],
    shifts: npt.NDArray[np.uint8] | None,
    tokens: int,
    out: int,
    stride: int,
    owner: int,
) -> Job:
    """Stage a stream, the tables and (for levels) the shifts of its columns. `Corrupt` for a length that none has."""
    size = len(stream)
    if size < STATE_BYTES or size % 2:
        raise Corrupt(f"a stream has {STATE_BYTES} bytes and whole words, not {size}")
    if size > STATE_BYTES + 2 * tokens * len(tables):
        raise Corrupt(f"a stream of {tokens} × {len(tables)} symbols has no {size} bytes")
    words = (size - STATE_BYTES) // 2
    at, shift = staging.add(stream), 0 if shifts is None else staging.add_array(shifts)
    return Job(at, words, staging.add_array(tables), shift, out, stride, tokens, len(tables), owner)


def decode_streams(
    streams: Sequence[Buffer],
    tables: Sequence[npt.NDArray[np.uint8]],
    tokens: Sequence[int],
    freqs: npt.NDArray[np.uint16],
    device: torch.device,
) -> list[torch.Tensor]:
    """The symbols uint8 `[tokens, columns]` of each stream, in one launch; as `kvstore.codecs.rans.decode`, many times.

    `InvalidArgument` for tables that the bank `freqs` lacks, `Corrupt` if no encoder makes one of the streams.
    """
    staging, jobs, at = Staging(), list[Job](), 0
    for stream, chosen, count in zip(streams, tables, tokens, strict=True):
        if len(chosen) and int(chosen.max()) >= len(freqs):
            raise InvalidArgument(f"a column's table is {chosen.max()}; the bank has {len(freqs)}")
        jobs.append(job_of(staging, stream, chosen, None, count, at, len(chosen), len(jobs)))
        at += count * len(chosen)
    out = torch.empty(at, dtype=torch.uint8, device=device)
    status = torch.zeros(len(jobs), dtype=torch.int32, device=device)
    rows = staging.add_rows([job.row() for job in jobs])
    launch(staging.on(device), Tables.of(freqs, device), rows, out, status, levels=False)
    raise_corrupt(status, "streams")
    return [out[job.out :][: job.tokens * job.columns].view(job.tokens, job.columns) for job in jobs]
