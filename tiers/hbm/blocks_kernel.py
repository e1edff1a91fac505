"""The kernel that gathers and scatters blocks (`PagedBlocks`), in Triton. A copy of bits: nothing is computed.

A program copies some tokens of one block and layer, with all their heads and both planes: on the paged side that is one
stretch of memory where a token's heads lie together, else one per head; on the chunk's side one per plane.
Where layers lie inside blocks, programs that run at a time take all layers of a few blocks, not a layer of all.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from kvstore.tiers.hbm.blocks import WHOLE, PagedBlocks, Shape

TILE_BYTES = 16 << 10  # that a program copies: enough loads in flight, and programs enough for every multiprocessor
TOGETHER = 8  # blocks whose layers are copied at a time, where layers lie inside blocks
WARPS = 4


@triton.jit(do_not_specialize=["count", "first", "together"])
def copy_blocks(
    layers: tl.tensor,
    table: tl.tensor,
    chunk: tl.tensor,
    count: tl.tensor,
    first: tl.tensor,
    together: tl.tensor,
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
    """A tile of one block of one layer, `[token][head][plane][unit]`; the chunk is `[plane][token][head][unit]` there.

    `layers` are addresses, of which those from `first` on are copied; `table` has `count` blocks. Steps are in units of
    UNIT bytes, RUN of which are a token's content in one head and plane.
    """
    ROWS: tl.constexpr = TOKENS * HEADS * RUN
    TILES: tl.constexpr = (ROWS * PLANES + TILE - 1) // TILE
    number = tl.program_id(2) * together + tl.program_id(0) // TILES
    layer = first + tl.program_id(1)
    at = tl.program_id(0) % TILES * TILE + tl.arange(0, TILE)
    block = tl.load(table + tl.minimum(number, count - 1))
    inside = at < tl.where(number < count, ROWS * PLANES, 0)

    unit = at % RUN
    plane = at // RUN % PLANES
    row = at // (RUN * PLANES)
    where = unit * unit_step + plane * plane_step + row // HEADS * token_step + row % HEADS * head_step
    address = tl.load(layers + layer)
    if UNIT == 8:
        paged = address.to(tl.pointer_type(tl.int64))
    elif UNIT == 4:
        paged = address.to(tl.pointer_type(tl.int32))
    elif UNIT == 2:
        paged = address.to(tl.pointer_type(tl.int16))
    else:
        paged = address.to(tl.pointer_type(tl.uint8))
    paged = tl.multiple_of(paged, ALIGN) + block * block_step + where
    start = (layer.to(tl.int64) * PLANES * count + number) * ROWS
    dense = chunk + start + plane.to(tl.int64) * count * ROWS + row * RUN + unit
    if block >= 0:
        if SCATTER:
            tl.store(paged, tl.load(dense, mask=inside), mask=inside)
        else:
            tl.store(dense, tl.load(paged, mask=inside), mask=inside)
    elif not SCATTER:
        tl.store(dense, 0, mask=inside)


def launch(
    addresses: torch.Tensor,
    table: torch.Tensor,
    chunk: torch.Tensor,
    group: PagedBlocks,
    shape: Shape,
    layers: range,
    *,
    scatter: bool,
) -> None:
    """Queue a copy of some layers with all planes and blocks. `chunk`, uint8, has the length of all layers."""
    count, units = len(table), group.planes * group.tokens * group.heads * shape.run
    tile = max(16, min(TILE_BYTES // shape.unit, triton.next_power_of_2(units)))
    together = min(count, TOGETHER) if shape.layers_inside else count
    grid = (together * triton.cdiv(units, tile), len(layers), triton.cdiv(count, together))
    with torch.cuda.device_of(addresses):  # type: ignore[no-untyped-call]
        copy_blocks[grid](
            addresses, table, chunk.view(WHOLE[shape.unit]), count, layers.start, together,
            shape.block_step, shape.head_step, shape.token_step, shape.plane_step, shape.unit_step,
            PLANES=group.planes, TOKENS=group.tokens, HEADS=group.heads, RUN=shape.run, UNIT=shape.unit,
            ALIGN=16 if group.aligned else shape.unit, TILE=tile, SCATTER=scatter, num_warps=WARPS,
        )  # fmt: skip
