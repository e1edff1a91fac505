"""vLLM's KV blocks in host memory as plain bytes, copied in whole."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.connectors.vllm._plan import NULL_BLOCK
from kvstore.errors import InvalidArgument
from kvstore.spec import KVSpec

Bytes = npt.NDArray[np.uint8]


class Blocks:
    """The layers of every KV group, each `[block, bytes of a block]`, in the order of the model's layers.

    A chunk's part is `[layer, block of the chunk, bytes of a block]`.
    """

    def __init__(self, caches: Mapping[str, Any], groups: Sequence[Any], spec: KVSpec, block: int) -> None:
        """`caches` are vLLM's tensors by layer name, `groups` its `kv_cache_groups`.

        Raises `InvalidArgument` where a block is not one piece of host memory of the size the spec says.
        """
        self._layers = [
            [_plain(caches[name], name) for name in sorted(group.layer_names, key=_number)] for group in groups
        ]
        self.block_tokens = block
        for number, layers in enumerate(self._layers):
            expected = spec.part_bytes(spec.part(number), block) // len(layers)
            if any(layer.shape[1] != expected for layer in layers):
                raise InvalidArgument(
                    f"a block of KV group {number} has {layers[0].shape[1]} bytes; the spec says {expected}"
                )

    def write(self, group: int, source: Bytes, first: int, table: Sequence[int]) -> None:
        """Copy a part's blocks from block `first` of the chunk on into the blocks of `table`."""
        layers = self._layers[group]
        part = source.reshape(len(layers), -1, layers[0].shape[1])
        for at, block, count in _runs(table):
            for layer, rows in zip(layers, part, strict=True):
                np.copyto(layer[block : block + count], rows[first + at : first + at + count])

    def read(self, group: int, table: Sequence[int], out: Bytes) -> None:
        """Copy the blocks of `table` into a part; zeros for those that have left the window."""
        layers = self._layers[group]
        part = out.reshape(len(layers), -1, layers[0].shape[1])
        for at, block, count in _runs(table):
            for layer, rows in zip(layers, part, strict=True):
                if block == NULL_BLOCK:
                    rows[at : at + count] = 0
                else:
                    np.copyto(rows[at : at + count], layer[block : block + count])


def _runs(table: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(index in the table, first block, how many) for blocks that lie side by side; placeholders one by one."""
    at = 0
    while at < len(table):
        count = 1
        while table[at] and at + count < len(table) and table[at + count] == table[at] + count:
            count += 1
        yield at, table[at], count
        at += count


def _number(name: str) -> int:
    return next(int(each) for each in name.split(".") if each.isdecimal())


def _plain(cache: Any, name: str) -> Bytes:
    """A layer's tensor, `[block, …]`, as bytes, without a copy."""
    import torch

    if cache.device.type != "cpu":
        raise InvalidArgument(f"the KV cache is on {cache.device}: this connector copies blocks in host memory only")
    if not cache[0].is_contiguous():
        raise InvalidArgument(f"a block of {name} is not one piece of memory: {tuple(cache.stride())}")
    nbytes, step = cache[0].numel() * cache.element_size(), cache.stride(0) * cache.element_size()
    flat = torch.empty(0, dtype=torch.uint8).set_(
        cache.untyped_storage(), cache.storage_offset() * cache.element_size(), (cache.shape[0], nbytes), (step, 1)
    )
    array: Bytes = flat.numpy()
    return array
