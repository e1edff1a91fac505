"""vLLM's KV blocks in device memory: gathered and scattered there, and one copy over the bus for each part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvstore.errors import InvalidArgument
from kvstore.tiers.hbm.blocks import PagedBlocks
from kvstore.tiers.hbm.lanes import Lanes, Move

Bytes = npt.NDArray[np.uint8]


class DeviceLayers:
    """The layers of one KV group, as `_native.PagedLayers` has them for host memory.

    `layers` are vLLM's views `[block, head, token, content]` of any strides. A token's content is its key and then its
    value (`planes` 2), or one latent (1). A part is canonical, `[layer][plane][token][head][dim]`.

    Copies run on streams of their own. What reads blocks is queued behind the forward that has filled them, what
    writes them behind all that was queued when the load began, since a block's last owner may still be computing.
    A part in memory that is registered (`lanes.pins`) is read and written by the device itself, any other through
    pinned buffers.
    """

    def __init__(self, layers: Sequence[torch.Tensor], planes: int) -> None:
        self._blocks = PagedBlocks(layers, planes)
        self._device = self._blocks.device
        self.lanes = Lanes(self._device)

    def fence(self) -> Any:
        """What was queued on the engine's stream until now, for `write` to wait for."""
        if self._device.type != "cuda":
            return None
        return torch.cuda.current_stream(self._device).record_event()

    def read(self, table: Sequence[int], first: int, part: Bytes) -> Callable[[], None]:
        """Queue a copy of the blocks of `table` into a part, from its block `first` on; zeros for a block of -1.

        The blocks may be overwritten by what is queued later. The part is filled when what this returns has run, which
        may be in another thread.
        """
        chunk = self._blocks.gather(table)
        ready = self.fence()

        def finish() -> None:
            with self.lanes.take() as lane:
                lane.after(ready)
                lane.read(self._moves(chunk, len(table), first, part))

        return finish

    def write(self, table: Sequence[int], first: int, part: Bytes, after: Any = None) -> None:
        """The inverse of `read`, done when this returns. `after` is the `fence` of when the load began."""
        nbytes = self._blocks.chunk_bytes(len(table))
        with self.lanes.take() as lane, lane.current():
            chunk = torch.empty(nbytes, dtype=torch.uint8, device=self._device)
            lane.write(self._moves(chunk, len(table), first, part))
            lane.after(after)
            self._blocks.scatter(table, chunk)
            lane.wait()

    def _moves(self, chunk: torch.Tensor, count: int, first: int, part: Bytes) -> list[Move]:
        """Between a chunk of `count` blocks and a part in host memory; a last block that is cut is left out."""
        blocks = self._blocks
        block = blocks.tokens * blocks.row_bytes
        plane, rest = divmod(part.nbytes, blocks.plane_count)
        if rest or plane % blocks.row_bytes or not part.flags.c_contiguous:
            raise InvalidArgument(
                f"a part of {part.nbytes} bytes is not {blocks.plane_count} planes of tokens of {blocks.row_bytes}"
            )
        if first < 0 or first + count > plane // block:
            raise IndexError(f"blocks {first} to {first + count} of a part that has {plane // block}")
        inside, outside = chunk.data_ptr(), part.ctypes.data
        if count * block == plane:
            return [(inside, outside, part.nbytes)]
        return [
            (inside + n * count * block, outside + n * plane + first * block, count * block)
            for n in range(blocks.plane_count)
        ]
