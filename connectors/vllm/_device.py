"""vLLM's KV blocks in device memory: gathered and scattered there, and one copy over the bus for each part."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvstore.errors import InvalidArgument

Bytes = npt.NDArray[np.uint8]


class DeviceLayers:
    """The layers of one KV group, as `_native.PagedLayers` has them for host memory.

    `layers` are vLLM's views `[block, head, token, content]` of any strides. A token's content is its key and then its
    value (`planes` 2), or one latent (1). A part is canonical, `[layer][plane][token][head][dim]`.

    Copies run on streams of their own. What reads blocks is queued behind the forward that has filled them, what
    writes them behind all that was queued when the load began, since a block's last owner may still be computing.
    """

    def __init__(self, layers: Sequence[torch.Tensor], planes: int) -> None:
        self._layers, self._planes = list(layers), planes
        _, self._heads, self._tokens, content = self._layers[0].shape
        if content % planes or any(layer.shape != self._layers[0].shape for layer in self._layers):
            shapes = sorted({tuple(layer.shape) for layer in self._layers})
            raise InvalidArgument(f"layers of shape {shapes} do not hold {planes} equal halves per token")
        self._dim = content // planes
        self._device = self._layers[0].device
        self._streams = threading.local()

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
        known = self._index([max(block, 0) for block in table])
        gathered = torch.stack([layer.index_select(0, known) for layer in self._layers])
        gone = [n for n, block in enumerate(table) if block < 0]
        if gone:
            gathered[:, gone] = 0
        # [layer, block, head, token, plane, dim] to [layer, plane, block, token, head, dim]
        split = gathered.view(*gathered.shape[:-1], self._planes, self._dim)
        ordered = split.permute(0, 4, 1, 3, 2, 5).contiguous()
        ready = self.fence()

        def finish() -> None:
            with self._stream(ready) as stream:
                self._rows(part)[:, :, first : first + len(table)].copy_(ordered)
                if stream is not None:
                    ordered.record_stream(stream)
                    stream.synchronize()

        return finish

    def write(self, table: Sequence[int], first: int, part: Bytes, after: Any = None) -> None:
        """The inverse of `read`, done when this returns. `after` is the `fence` of when the load began."""
        with self._stream(after) as stream:
            rows = self._rows(part)[:, :, first : first + len(table)].to(self._device)
            blocks = rows.permute(0, 2, 4, 3, 1, 5).flatten(-2)
            known = self._index(table)
            for layer, given in zip(self._layers, blocks, strict=True):
                layer.index_copy_(0, known, given)
            if stream is not None:
                stream.synchronize()

    def _index(self, table: Sequence[int]) -> torch.Tensor:
        return torch.tensor(table, dtype=torch.int64, device=self._device)

    def _rows(self, part: Bytes) -> torch.Tensor:
        """A part in host memory as `[layer, plane, block, token, head, dim]`; a last block that is cut is left out."""
        # torch takes no read-only memory, not even to read it.
        interface = {**part.__array_interface__, "data": (part.ctypes.data, False)}
        flat = torch.from_numpy(np.asarray(SimpleNamespace(__array_interface__=interface, memory=part)))
        flat = flat.view(self._layers[0].dtype)
        planes = flat.reshape(len(self._layers), self._planes, -1, self._heads, self._dim)
        whole = planes.shape[2] // self._tokens
        shape = (*planes.shape[:2], whole, self._tokens, *planes.shape[3:])
        return planes[:, :, : whole * self._tokens].view(shape)

    def _stream(self, after: Any) -> Any:
        """This thread's stream, behind an event."""
        return _Stream(self._streams, self._device, after)


class _Stream:
    """Makes a thread's own stream the current one; on a CPU there is none."""

    def __init__(self, streams: threading.local, device: torch.device, after: Any) -> None:
        self._streams, self._device, self._after = streams, device, after
        self._entered: Any = None

    def __enter__(self) -> Any:
        if self._device.type != "cuda":
            return None
        if not hasattr(self._streams, "own"):
            self._streams.own = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        stream = self._streams.own
        if self._after is not None:
            stream.wait_event(self._after)
        self._entered = torch.cuda.stream(stream)
        self._entered.__enter__()
        return stream

    def __exit__(self, *error: Any) -> None:
        if self._entered is not None:
            self._entered.__exit__(*error)
