"""vLLM's KV blocks in host memory, and a chunk's part in the order that its spec declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.connectors.vllm._order import Order
from kvstore.connectors.vllm._plan import NULL_BLOCK
from kvstore.errors import InvalidArgument
from kvstore.spec import KVSpec

Bytes = npt.NDArray[np.uint8]


class Blocks:
    """The layers of every KV group, in the order of the model's layers, copied to and from parts of whole blocks."""

    def __init__(
        self,
        caches: Mapping[str, Any],
        groups: Sequence[Any],
        spec: KVSpec,
        block: int,
        orders: Sequence[Order] | None,
    ) -> None:
        """`caches` are vLLM's tensors by layer name, `groups` its `kv_cache_groups`, `orders` how their blocks lie.

        Raises `InvalidArgument` where a block is not one piece of host memory of the size the spec says.
        """
        self.block_tokens = block
        self._groups = []
        for number, group in enumerate(groups):
            layers = [_plain(caches[name], name) for name in sorted(group.layer_names, key=layer_number)]
            expected = spec.part_bytes(spec.part(number), block) // len(layers)
            if any(layer.shape[1] != expected for layer in layers):
                raise InvalidArgument(
                    f"a block of KV group {number} has {layers[0].shape[1]} bytes; the spec says {expected}"
                )
            order = Order.opaque(block, expected) if orders is None else orders[number]
            self._groups.append(order.over(layers))

    def write(self, group: int, source: Bytes, first: int, table: Sequence[int]) -> None:
        """Copy a part's blocks from block `first` of the chunk on into the blocks of `table`."""
        self._groups[group].write(table, first, source)

    def read(self, group: int, table: Sequence[int], out: Bytes) -> None:
        """Copy the blocks of `table` into a part; zeros for those that have left the window."""
        self._groups[group].read([-1 if block == NULL_BLOCK else block for block in table], 0, out)


def layer_number(name: str) -> int:
    """The number of a layer, as in `model.layers.7.self_attn.attn`."""
    numbers = [int(each) for each in name.split(".") if each.isdecimal()]
    if len(numbers) != 1:
        raise InvalidArgument(f"which layer {name!r} is cannot be told")
    return numbers[0]


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
