"""The kernel that gathers and scatters blocks (`PagedBlocks`), in Triton. A copy of bits: nothing is computed."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvstore.tiers.hbm.blocks import WHOLE, PagedBlocks, Shape

TILE_BYTES = 16 << 10  # that a program copies: enough loads in flight, and programs enough for every multiprocessor


@triton.jit
def copy_blocks(
    layers: tl.tensor,
    table: tl.tensor,
    chunk: tl.tensor,
    count: tl.tensor,
    block_step: tl.tensor,
    head_step: tl.tensor,
    token_step: tl.tensor,
    plane_step: tl.tensor,
    unit_step: tl.tensor,
    PLANES: tl.constexpr,
    TOKENS: tl.constexpr,
    HEADS: tl.constexpr,
    RUN: tl.constexpr,
    UNIT: tl.constexpr,
    ALIGN: tl.constexpr,
    TILE: tl.constexpr,
    SCATTER: tl.constexpr,
) -> None:
    """A tile of one block of one layer and plane, whose rows `[token][head][unit]` are contiguous in the chunk.

    `layers` are addresses, `table` has `count` blocks. Steps are in units of UNIT bytes, RUN of which are a token's
    content in one head and plane.
    """
    ROWS: tl.constexpr = TOKENS * HEADS * RUN
    TILES: tl.constexpr = (ROWS + TILE - 1) // TILE
    number = tl.program_id(0) // TILES
    plane = tl.program_id(1)
    at = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
    block = tl.load(table + number)
    inside = at < ROWS

    row = at // RUN
    where = at % RUN * unit_step + row // HEADS * token_step + row % HEADS * head_step
    start = block * block_step + plane % PLANES * plane_step
    address = tl.load(layers + plane // PLANES)
    if UNIT == 8:
        paged = address.to(tl.pointer_type(tl.int64))
    elif UNIT == 4:
        paged = address.to(tl.pointer_type(tl.int32))
    elif UNIT == 2:
        paged = address.to(tl.pointer_type(tl.int16))
    else:
        paged = address.to(tl.pointer_type(tl.uint8))
    paged = tl.multiple_of(paged, ALIGN) + start + where
    dense = chunk + (plane.to(tl.int64) * count + number) * ROWS + at
    if block >= 0:
        if SCATTER:
            tl.store(paged, tl.load(dense, mask=inside), mask=inside)
        else:
            tl.store(dense, tl.load(paged, mask=inside), mask=inside)
    elif not SCATTER:
        tl.store(dense, 0, mask=inside)


def launch(
    layers: torch.Tensor, table: torch.Tensor, chunk: torch.Tensor, group: PagedBlocks, shape: Shape, *, scatter: bool
) -> None:
    """Queue a copy of all layers, planes and blocks. `chunk` is uint8 and has the length of these blocks."""
    rows = group.tokens * group.heads * shape.run
    tile = max(16, min(TILE_BYTES // shape.unit, triton.next_power_of_2(rows)))
    grid = (len(table) * triton.cdiv(rows, tile), group.plane_count)
    with torch.cuda.device_of(layers):  # type: ignore[no-untyped-call]
        copy_blocks[grid](
            layers, table, chunk.view(WHOLE[shape.unit]), len(table),
            shape.block_step, shape.head_step, shape.token_step, shape.plane_step, shape.unit_step,
            PLANES=group.planes, TOKENS=group.tokens, HEADS=group.heads, RUN=shape.run, UNIT=shape.unit,
            ALIGN=16 if group.aligned else shape.unit, TILE=tile, SCATTER=scatter, num_warps=4,
        )  # fmt: skip
