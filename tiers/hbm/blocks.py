"""Gather and scatter between an engine's paged blocks and a chunk, both in device memory.

An engine's layers are views `[block, head, token, content]` of any strides, where a token's content is its key and then
its value (`planes` 2), or one latent (1). A chunk is canonical: `[layer][plane][token][head][dim]`.

On a GPU that is one launch for all layers (`blocks_kernel`); elsewhere, and where the layers of a group lie in
different ways, a few operations of torch for each layer, which are the kernel's reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

import torch

from kvstore.errors import InvalidArgument

WHOLE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # bits are copied, whatever they mean


@dataclass(frozen=True, slots=True)
class Shape:
    """What a kernel must know of layers. Steps are in units of `unit` bytes, which divides all that is contiguous."""

    unit: int
    run: int  # units of a token's content in one head and plane
    block_step: int
    head_step: int
    token_step: int
    plane_step: int
    unit_step: int
    layers_inside: bool  # a block has all its layers side by side


@dataclass(frozen=True, slots=True)
class Table:
    """Numbers of blocks, and where the kernel finds them."""

    blocks: Sequence[int]
    there: torch.Tensor | None


class PagedBlocks:
    """The blocks of one KV group. All layers have one shape, one dtype and one device."""

    def __init__(self, layers: Sequence[torch.Tensor], planes: int, *, kernel: bool | None = None) -> None:
        """`kernel` asks for the kernel (on a CPU: Triton's interpreter) or for torch; None chooses.

        Raises `InvalidArgument` for layers that do not hold `planes` equal pieces per token, or that differ.
        """
        first = layers[0]
        self.blocks, self.heads, self.tokens, content = first.shape
        if content % planes or any(layer.shape != first.shape for layer in layers):
            shapes = sorted({tuple(layer.shape) for layer in layers})
            raise InvalidArgument(f"layers of shape {shapes} do not hold {planes} equal halves per token")
        kinds = {(layer.dtype, layer.device) for layer in layers}
        if len(kinds) > 1:
            raise InvalidArgument(f"the layers of a group have several dtypes or devices: {sorted(map(str, kinds))}")
        self.planes, self.dim = planes, content // planes
        self.device, self.itemsize = first.device, first.element_size()
        self._layers = [layer.view(WHOLE[self.itemsize]) for layer in layers]
        self.aligned = all(layer.data_ptr() % 16 == 0 for layer in layers)
        self.row_bytes = self.heads * self.dim * self.itemsize  # one token of one plane and layer
        self.plane_count = len(layers) * planes
        shape = _shape_of(self._layers, planes)
        if kernel and shape is None:
            raise InvalidArgument("the kernel needs layers that all have the same strides")
        wanted = self.device.type == "cuda" if kernel is None else kernel
        self._shape = shape if wanted else None
        self._addresses = _on([layer.data_ptr() for layer in layers], self.device)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # it is read on other streams, too

    def chunk_bytes(self, count: int) -> int:
        """Length of a chunk of so many blocks."""
        return self.plane_count * count * self.tokens * self.row_bytes

    def table(self, blocks: Sequence[int]) -> Table:
        """Blocks to gather or scatter, -1 for none. It can be used again, on streams behind torch's current one.

        Raises `IndexError` for a block that is not there.
        """
        if blocks and not -1 <= min(blocks) <= max(blocks) < self.blocks:
            raise IndexError(f"blocks {min(blocks)} to {max(blocks)} of {self.blocks}")
        return Table(blocks, None if self._shape is None else _on(blocks, self.device))

    def chunk(self, count: int) -> torch.Tensor:
        """Memory for a chunk of so many blocks, uint8."""
        return torch.empty(self.chunk_bytes(count), dtype=torch.uint8, device=self.device)

    def gather(self, table: Table, chunk: torch.Tensor, layers: range | None = None) -> None:
        """Fill a contiguous chunk of as many blocks, with zeros for a block of -1: all of it or what some layers have.

        Queued on torch's current stream.
        """
        self._check(table, chunk)
        chosen = range(len(self._layers)) if layers is None else layers
        if self._shape is None:
            self._gather(table.blocks, self._rows(table, chunk), chosen)
        else:
            self._launch(self._shape, table, chunk, chosen, scatter=False)

    def scatter(self, table: Table, chunk: torch.Tensor, layers: range | None = None) -> None:
        """The inverse; -1 leaves a block out."""
        self._check(table, chunk)
        chosen = range(len(self._layers)) if layers is None else layers
        if self._shape is None:
            self._scatter(table.blocks, self._rows(table, chunk), chosen)
        else:
            self._launch(self._shape, table, chunk, chosen, scatter=True)

    def _check(self, table: Table, chunk: torch.Tensor) -> None:
        count = len(table.blocks)
        if chunk.nbytes != self.chunk_bytes(count) or not chunk.is_contiguous() or chunk.device != self.device:
            raise InvalidArgument(
                f"{count} blocks are a chunk of {self.chunk_bytes(count)} bytes in one piece on "
                f"{self.device}, not {chunk.nbytes} on {chunk.device}"
            )

    def _rows(self, table: Table, chunk: torch.Tensor) -> torch.Tensor:
        """A chunk as `[layer, plane, block, token, head, dim]`."""
        shape = (len(self._layers), self.planes, len(table.blocks), self.tokens, self.heads, self.dim)
        return chunk.view(-1).view(torch.uint8).view(WHOLE[self.itemsize]).view(shape)

    def _gather(self, table: Sequence[int], rows: torch.Tensor, chosen: range) -> None:
        known = _on([max(block, 0) for block in table], self.device)
        gone = [n for n, block in enumerate(table) if block < 0]
        for number in chosen:
            own = self._layers[number].index_select(0, known)
            if gone:
                own[gone] = 0
            # [block, head, token, plane, dim] to [plane, block, token, head, dim]
            rows[number] = own.view(*own.shape[:-1], self.planes, self.dim).permute(3, 0, 2, 1, 4)

    def _scatter(self, table: Sequence[int], rows: torch.Tensor, chosen: range) -> None:
        kept = [n for n, block in enumerate(table) if block >= 0]
        known = _on([table[n] for n in kept], self.device)
        for number in chosen:
            self._layers[number].index_copy_(0, known, rows[number][:, kept].permute(1, 3, 2, 0, 4).flatten(-2))

    def _launch(self, shape: Shape, table: Table, chunk: torch.Tensor, layers: range, *, scatter: bool) -> None:
        from kvstore.tiers.hbm import blocks_kernel

        if chunk.data_ptr() % 16:
            raise InvalidArgument("a chunk in device memory begins at a multiple of 16 bytes")
        if table.blocks and table.there is not None:
            given = chunk.view(-1).view(torch.uint8)
            blocks_kernel.launch(self._addresses, table.there, given, self, shape, layers, scatter=scatter)


def _on(table: Sequence[int], device: torch.device) -> torch.Tensor:
    """Numbers on a device, without waiting for what is queued there."""
    if device.type != "cuda":
        return torch.tensor(table, dtype=torch.int64)
    return torch.tensor(table, dtype=torch.int64, pin_memory=True).to(device, non_blocking=True)


def _shape_of(layers: Sequence[torch.Tensor], planes: int) -> Shape | None:
    """The shape that layers share; None where their strides differ, or a block reaches farther than 32 bits count."""
    first = layers[0]
    reach = sum(step * (size - 1) for step, size in zip(first.stride()[1:], first.shape[1:], strict=True))
    if reach >= 1 << 31 or any(layer.stride() != first.stride() for layer in layers):
        return None
    item, dim = first.element_size(), first.shape[3] // planes
    steps = [step * item for step in first.stride()[:3]]
    inner = first.stride(3)
    unit = gcd(8, dim * item, *steps, *(layer.data_ptr() for layer in layers)) if inner == 1 else item
    run = dim * item // unit
    block_step, head_step, token_step = (step // unit for step in steps)
    starts = [layer.data_ptr() for layer in layers]
    inside = len(layers) > 1 and max(starts) - min(starts) < steps[0]
    return Shape(unit, run, block_step, head_step, token_step, run * inner, inner, inside)
