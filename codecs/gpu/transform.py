"""The transform codec on a device: streams, low bits, escapes, matrices and rotation, a launch each for many chunks.

Between the launches lie the levels, int16 `[token, column]` of every frame: 2 bytes of scratch per coded component.
What an artefact says of a frame goes to a device once and stays with the artefact.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton

from kvstore.codecs.base import Opened
from kvstore.codecs.block import Block
from kvstore.codecs.gpu import inverse as kernels
from kvstore.codecs.gpu import rans
from kvstore.codecs.gpu.floats import CODES, alignment_of
from kvstore.codecs.gpu.staging import Rows, Staging
from kvstore.codecs.transform import body as bodies
from kvstore.codecs.transform.plan import Plan, plan_of
from kvstore.codecs.transform.rotary import Rotary
from kvstore.errors import Corrupt

TOKENS, PAIRS = 128, 32  # of a program; fewer tokens where there are few
DEPTH = 32  # a row of a matrix is padded to a multiple of so many columns: the least depth of an int8 product
SLICE_FIELDS, POINTERS = 21, (4, 5, 6, 8, 9, 10, 11)  # of a slice's row
Indices = npt.NDArray[np.int32]
Column = npt.NDArray[np.uint8]


class DevicePlan:
    """A plan's arrays on a device, for frames of a block's shape.

    `slices` are rows for the kernel, into these arrays: channels of one layer that share a matrix. What differs from
    chunk to chunk is 0 in them; a slice's column is counted from the frame's first. `layers` says whose each is.
    """

    def __init__(self, plan: Plan, block: Block, device: torch.device) -> None:
        self.plan = plan
        self.run = PAIRS
        self._tiles: dict[tuple[int, int], tuple[Column, Column]] = {}
        sections, staging, cuts = plan.sections, Staging(), list[tuple[int, ...]]()
        layers: list[int] = []
        sums = np.concatenate([128 * section.matrix.sum(1, dtype=np.int32) for section in sections])
        floats = [np.concatenate([each.scale for each in sections]), np.concatenate([each.mean for each in sections])]
        shared = [staging.add_array(each) for each in (*floats, sums.astype(np.int32))]
        per_layer = block.planes * block.heads * block.dim
        for section in sections:
            live = section.matrix.shape[1]
            pitch = live + -live % DEPTH
            # The kernel counts channels from the frame's first on.
            matrix = staging.add_array(np.pad(section.matrix, ((0, 0), (0, pitch - live)))) - section.start * pitch
            start, stop = section.channels.start, section.channels.stop
            for layer in range(start // per_layer, -(-stop // per_layer)):
                ends = max(start, layer * per_layer), min(stop, (layer + 1) * per_layer)
                pairs = pairs_of(*ends, block, plan.rotary[layer])
                self.run = min(self.run, run_of(pairs, block.dim))
                places = [staging.add_array(each) for each in pairs]
                turns = plan.rotary[layer].pairs
                cuts.append((section.column, len(pairs[0]), *places, pitch, matrix, *shared, turns))
                layers.append(layer)
        before = np.cumsum(plan.shift, dtype=np.int32) - plan.shift
        shift, planes = staging.add_array(plan.shift), staging.add_array(before.astype(np.int32))
        self._data = staging.on(device)
        base = self._data.data_ptr()
        self.low_bits = (base + shift, base + planes)  # of each column: how many, and those of the columns before
        found = np.array(cuts, np.int64)
        self.pairs = int(found[:, 1].max())
        self.layers = np.array(layers)
        self.slices = np.zeros((len(cuts), SLICE_FIELDS), np.int64)
        self.slices[:, 0], self.slices[:, 3], self.slices[:, 4:13] = found[:, 0], found[:, 1], found[:, 2:]
        self.slices[:, POINTERS] += base

    def tile(self, columns: slice) -> tuple[Column, Column]:
        """Tables and shifts of a stream's columns, the same arrays each time."""
        key = (columns.start, columns.stop)
        if key not in self._tiles:
            self._tiles[key] = (self.plan.tables[columns], self.plan.shift[columns])
        return self._tiles[key]


def pairs_of(start: int, end: int, block: Block, rotary: Rotary) -> tuple[Indices, Indices, Indices]:
    """The channels from `start` up to `end`, whole heads of one layer, in pairs: int32 first, second, column of the
    rotary tables. -1 stands for no second channel and for a pair that does not turn."""
    found: list[tuple[int, int, int]] = []
    for head in range(start, end, block.dim):
        turns = rotary.pairs if head // (block.heads * block.dim) % block.planes == 0 else 0
        at, step, apart = head + rotary.start, 1, turns
        if rotary.style == "interleaved":
            step, apart = 2, 1
        turning = [(at + step * pair, at + step * pair + apart, pair) for pair in range(turns)]
        taken = {channel for first, second, _ in turning for channel in (first, second)}
        rest = [channel for channel in range(head, head + block.dim) if channel not in taken]
        half = -(-len(rest) // 2)
        found += turning + [(a, b, -1) for a, b in zip(rest[:half], [*rest[half:], -1], strict=False)]
    first, second, turn = np.array(found, np.int32).T
    return first, second, turn


def run_of(pairs: tuple[Indices, Indices, Indices], dim: int) -> int:
    """RUN: the largest power of two in whose runs each array is -1 or counts from a multiple, inside of a head."""
    run = math.gcd(PAIRS, dim, len(pairs[0]))
    while run > 1 and not all(_counts(each, run) for each in pairs):
        run //= 2
    return run


def _counts(numbers: Indices, run: int) -> bool:
    starts = np.repeat(numbers[::run], run)[: len(numbers)]
    due = starts + np.arange(len(numbers), dtype=np.int32) % run
    return bool(np.where(starts < 0, numbers == -1, (numbers == due) & (starts % run == 0)).all())


class TransformDecoder:
    """Gathers frames that one artefact coded at one level."""

    def __init__(self, opened: Opened, device: torch.device) -> None:
        if opened.artefact is None:
            raise Corrupt("a frame of the transform codec names no artefact")
        self._artefact, self._block, self._device = opened.artefact, opened.block, device
        self._level = opened.codec.levels[opened.frame.level]
        self._jobs: list[rans.Job] = []
        self._slices: list[npt.NDArray[np.int64]] = []
        self._low_bits: list[tuple[int, ...]] = []
        self._sinks: list[tuple[int, ...]] = []
        self._staged_jobs = self._staged_slices = self._staged_low_bits = self._staged_sinks = Rows(0, 0)
        self._patches = (Rows(0, 0), 0)  # where their places and values are
        self._places: list[npt.NDArray[np.int64]] = []
        self._values: list[npt.NDArray[np.int16]] = []
        self._levels = 0  # elements of scratch
        self._tokens = self._pairs = self._widest = 0
        self._run = PAIRS
        self._where: dict[str, Any] = {}

    def add(self, opened: Opened, staging: Staging, address: int, chunk: int) -> None:
        """Take a frame. `Corrupt` for a body whose pieces do not fit one another."""
        block, device_plan = opened.block, self._plan_of(opened.block)
        plan = device_plan.plan
        sinks = bodies.sinks_of(block.position, block.tokens, plan.sinks)
        tokens, columns, at = block.tokens - sinks, plan.columns, self._levels
        raw = sinks * block.nbytes // block.tokens
        pieces = bodies.unpack(opened.body, bodies.Shape(tokens, columns, plan.bit_planes, raw), sinks)
        strides = block.strides()
        if sinks:
            count = raw // block.itemsize
            self._sinks.append((staging.add(pieces.raw), count, sinks, address, *strides))
        for (down, across), stream in zip(pieces.tiles, pieces.streams, strict=True):
            tables, shifts = device_plan.tile(across)
            to = at + down.start * columns + across.start
            size = down.stop - down.start
            self._jobs.append(rans.job_of(staging, stream, tables, shifts, size, to, columns, chunk))
        if plan.bit_planes:
            self._low_bits.append((at, columns, tokens, staging.add(pieces.bits), *device_plan.low_bits))
        if len(pieces.escapes):
            self._places.append(at + pieces.escapes["token"].astype(np.int64) * columns + pieces.escapes["column"])
            self._values.append(pieces.escapes["value"].astype(np.int16))
        layer, plane, token, head, dim = strides
        address += sinks * token * block.itemsize
        slices = device_plan.slices.copy()
        slices[:, 0] += at
        slices[:, 1:3] = columns, tokens
        for number, rotary in enumerate(plan.rotary):
            turns = [staging.add_array(part) // 4 for part in rotary.tables(block.position + sinks, tokens)]
            slices[device_plan.layers == number, 13:15] = turns
        slices[:, 15:] = address, token, layer, plane, head, dim
        self._slices.append(slices)
        self._pairs = max(self._pairs, device_plan.pairs)
        self._run = min(self._run, device_plan.run)
        self._levels += tokens * columns
        self._widest = max(self._widest, columns)
        self._tokens = max(self._tokens, tokens)

    def close(self, staging: Staging) -> None:
        """Stage what the programs are to do: there will be no more frames."""
        self._staged_jobs = staging.add_rows([job.row() for job in self._jobs])
        slices = np.concatenate(self._slices)
        self._staged_slices = staging.add_rows(slices)
        self._staged_low_bits = staging.add_rows(self._low_bits)
        self._staged_sinks = staging.add_rows(self._sinks)
        self._where = {
            "UNIT": bool((slices[:, 20] == 1).all()),
            "ALIGN": alignment_of(
                np.unique(slices[:, 15]).tolist(), np.unique(slices[:, 16:20]).tolist(), self._block.dtype
            ),
        }
        if self._places:
            places = np.concatenate(self._places)
            self._patches = (
                Rows(staging.add_array(places), len(places)),
                staging.add_array(np.concatenate(self._values)),
            )

    def launch(self, staged: torch.Tensor, status: torch.Tensor) -> None:
        """Decode them all."""
        block, device = self._block, self._device
        shape = {"PLANES": block.planes, "HEADS": block.heads, "DIM": block.dim}
        if self._sinks:
            grid = (len(self._sinks), triton.cdiv(max(row[1] for row in self._sinks), 1024))
            rows = self._staged_sinks.of(staged)
            kernels.copy_sinks[grid](staged, rows, **shape, WIDE=block.itemsize == 4, BLOCK=1024, num_warps=4)
        if not self._tokens:
            return
        q = torch.empty(self._levels + DEPTH, dtype=torch.int16, device=device)
        rans.launch(staged, self._bank(), self._staged_jobs, q, status, levels=True)
        if self._low_bits:
            cut = (len(self._low_bits), triton.cdiv(self._tokens, 64), triton.cdiv(self._widest, 32))
            rows = self._staged_low_bits.of(staged)
            kernels.add_low_bits[cut](q, staged, rows, TOKENS=64, COLUMNS=32, num_warps=4)
        if self._places:
            found, at = self._patches
            places, values = found.of(staged), staged[at : at + 2 * found.size].view(torch.int16)
            kernels.patch[(triton.cdiv(len(places), 512),)](q, places, values, len(places), BLOCK=512, num_warps=4)
        tile = min(TOKENS, max(32, triton.next_power_of_2(self._tokens)))
        count = self._staged_slices.size // SLICE_FIELDS
        tiles = (count, triton.cdiv(self._tokens, tile), triton.cdiv(self._pairs, PAIRS))
        kernels.inverse[tiles](
            q,
            staged.view(torch.float32),
            self._staged_slices.of(staged),
            **shape,
            DTYPE=CODES[block.dtype],
            TOKENS=tile,
            PAIRS=PAIRS,
            DEPTH=DEPTH,
            RUN=self._run,
            **self._where,
            num_warps=4,
            enable_fp_fusion=False,
        )

    def _plan_of(self, block: Block) -> DevicePlan:
        key = ("gpu", self._device, block.layers, block.first_head, block.heads, self._level)
        plan = plan_of(self._artefact, block, self._level)
        return self._artefact.prepared(key, lambda: DevicePlan(plan, block, self._device))

    def _bank(self) -> rans.Tables:
        bank: npt.NDArray[np.uint16] = plan_of(self._artefact, self._block, self._level).bank
        return self._artefact.prepared(("gpu bank", self._device), lambda: rans.Tables.of(bank, self._device))
