"""vLLM's KV blocks in device memory: gathered and scattered there, and one copy over the bus for each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvstore.errors import InvalidArgument
from kvstore.tiers.hbm.blocks import PagedBlocks
from kvstore.tiers.hbm.lanes import Lane, Lanes, Move
from kvstore.tiers.hbm.pinning import Pins

Bytes = npt.NDArray[np.uint8]
WHOLE_BYTES = 4 << 20  # a shorter part is not cut: its copy takes no longer than what is said about a further piece


class DeviceLayers:
    """The layers of one KV group, as `_native.PagedLayers` has them for host memory.

    `layers` are vLLM's views `[block, head, token, content]` of any strides. A token's content is its key and then its
    value (`planes` 2), or one latent (1). A part is canonical, `[layer][plane][token][head][dim]`.

    Copies run on streams of their own. What reads blocks is queued behind the forward that has filled them, what
    writes them behind all that was queued when the load began, since a block's last owner may still be computing.
    A part is copied in two pieces, a quarter of its layers and the others: the bus has the quarter while the others
    are gathered, and the others are scattered while it has the quarter.
    """

    def __init__(self, layers: Sequence[torch.Tensor], planes: int) -> None:
        self._blocks = PagedBlocks(layers, planes)
        self._device, self._layers = self._blocks.device, len(layers)
        self.lanes = Lanes(self._device)

    @property
    def device(self) -> torch.device:
        """Where the blocks are."""
        return self._device

    @property
    def pins(self) -> Pins:
        """Where host memory is registered that the device is to reach by itself."""
        return self.lanes.pins

    def fence(self) -> Any:
        """What was queued on the engine's stream until now, for `write` to wait for."""
        if self._device.type != "cuda":
            return None
        return torch.cuda.current_stream(self._device).record_event()

    def read(self, table: Sequence[int], first: int, part: Bytes) -> Callable[[], None]:
        """Queue a copy of the blocks of `table` into a part, from its block `first` on; zeros for a block of -1.

        The blocks may be overwritten by what is queued later. The part is filled when what this returns has run, which
        may be in another thread, and must run.
        """
        blocks, known = self._blocks, self._blocks.table(table)
        chunk = blocks.chunk(len(table))
        pieces = [(layers, self._moves(chunk, len(table), first, part, layers)) for layers in self._cut(chunk.nbytes)]
        # The driver copies other memory itself, in the thread that asks: not here, in the engine's.
        registered = self.lanes.pins.covers(part.ctypes.data, part.nbytes, writing=True)
        later: list[tuple[Any, list[Move]]] = []
        with self.lanes.take() as lane:
            for layers, moves in pieces:
                blocks.gather(known, chunk, layers)
                ready = self.fence()
                if registered:
                    lane.after(ready)
                    lane.read(moves)
                else:
                    later.append((ready, moves))
            lane.keep()
        return partial(self._finish, lane, later, chunk)

    def write(self, table: Sequence[int], first: int, part: Bytes, after: Any = None) -> None:
        """The inverse of `read`, done when this returns. `after` is the `fence` of when the load began."""
        blocks = self._blocks
        with self.lanes.take() as bus, self.lanes.take() as lane:
            with lane.current():
                known, chunk = blocks.table(table), blocks.chunk(len(table))
            lane.after(after)
            for layers in reversed(self._cut(chunk.nbytes)):
                bus.write(self._moves(chunk, len(table), first, part, layers))
                lane.after(bus.mark())
                with lane.current():
                    blocks.scatter(known, chunk, layers)
            bus.wait()
            lane.wait()

    def write_from(self, table: Sequence[int], first: int, part: torch.Tensor, after: Any = None) -> None:
        """`write` of a part, uint8, that lies in this device's memory: nothing crosses the bus."""
        blocks, count = self._blocks, len(table)
        block, plane = self._check(part.nbytes, first, count, contiguous=part.is_contiguous())
        with self.lanes.take() as lane:
            lane.after(after)
            with lane.current():
                chunk = part
                if count * block != plane:
                    rows = part.view(blocks.plane_count, plane)
                    chunk = rows[:, first * block : (first + count) * block].contiguous().view(-1)
                blocks.scatter(blocks.table(table), chunk)
            lane.wait()

    def _finish(self, lane: Lane, later: Sequence[tuple[Any, list[Move]]], chunk: torch.Tensor) -> None:
        """The rest of a `read`, for which `chunk` is kept."""
        del chunk
        with lane:
            for ready, moves in later:
                lane.after(ready)
                lane.wait()  # else the driver would, in the middle of its own copy
                lane.read(moves)
            lane.wait()

    def _cut(self, nbytes: int) -> list[range]:
        """The layers of each piece of a chunk, the short one first."""
        quarter = self._layers // 4
        if nbytes < WHOLE_BYTES or not quarter:
            return [range(self._layers)]
        return [range(quarter), range(quarter, self._layers)]

    def _moves(self, chunk: torch.Tensor, count: int, first: int, part: Bytes, layers: range) -> list[Move]:
        """Some layers, between a chunk of `count` blocks and a part in host memory; a last cut block is left out."""
        blocks = self._blocks
        block, plane = self._check(part.nbytes, first, count, contiguous=part.flags.c_contiguous)
        inside, outside = chunk.data_ptr(), part.ctypes.data
        start, end = layers.start * blocks.planes, layers.stop * blocks.planes
        if count * block == plane:
            return [(inside + start * plane, outside + start * plane, (end - start) * plane)]
        return [
            (inside + n * count * block, outside + n * plane + first * block, count * block) for n in range(start, end)
        ]

    def _check(self, nbytes: int, first: int, count: int, *, contiguous: bool) -> tuple[int, int]:
        """The bytes of a block and of a plane, of a part that has blocks `first` to `first + count`."""
        blocks = self._blocks
        block = blocks.tokens * blocks.row_bytes
        plane, rest = divmod(nbytes, blocks.plane_count)
        if rest or plane % blocks.row_bytes or not contiguous:
            raise InvalidArgument(
                f"a part of {nbytes} bytes is not {blocks.plane_count} planes of tokens of {blocks.row_bytes}"
            )
        if first < 0 or first + count > plane // block:
            raise IndexError(f"blocks {first} to {first + count} of a part that has {plane // block}")
        return block, plane
