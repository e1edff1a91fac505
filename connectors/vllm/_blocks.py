"""vLLM's KV blocks, and a chunk's part in the order that its spec declares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.connectors.vllm._order import Order
from kvstore.connectors.vllm._plan import NULL_BLOCK
from kvstore.errors import InvalidArgument
from kvstore.spec import KVSpec

if TYPE_CHECKING:
    from kvstore.tiers.hbm.pinning import Pins

Bytes = npt.NDArray[np.uint8]


class Layers(Protocol):
    """One KV group's layers, wherever they are; see `DeviceLayers`."""

    @property
    def pins(self) -> Pins | None: ...
    @property
    def device(self) -> Any: ...
    def fence(self) -> Any: ...
    def read(self, table: Sequence[int], first: int, part: Bytes) -> Callable[[], None]: ...
    def write(self, table: Sequence[int], first: int, part: Bytes, after: Any = None) -> None: ...
    def write_from(self, table: Sequence[int], first: int, part: Any, after: Any = None) -> None: ...


class HostLayers:
    """Layers in host memory, whose copies are done when they return."""

    def __init__(self, paged: _native.PagedLayers) -> None:
        self._paged = paged
        self.pins = self.device = None

    def fence(self) -> None:
        """Nothing is queued."""

    def read(self, table: Sequence[int], first: int, part: Bytes) -> Callable[[], None]:
        """Copy blocks into a part; zeros for a block of -1."""
        self._paged.read(table, first, part)
        return lambda: None

    def write(self, table: Sequence[int], first: int, part: Bytes, after: Any = None) -> None:
        """Copy a part's blocks into those of `table`."""
        self._paged.write(table, first, part)

    def write_from(self, table: Sequence[int], first: int, part: Any, after: Any = None) -> None:
        """As `write`, of a tensor."""
        self._paged.write(table, first, part.numpy())


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

        Raises `InvalidArgument` where a block does not have the size that the spec says, or is in host memory but not
        one piece.
        """
        self.block_tokens = block
        self._groups: list[Layers] = []
        for number, group in enumerate(groups):
            names = sorted(group.layer_names, key=layer_number)
            expected = spec.part_bytes(spec.part(number), block) // len(names)
            for name in names:
                found = caches[name][0].numel() * caches[name].element_size()
                if found != expected:
                    raise InvalidArgument(f"a block of {name} has {found} bytes; the spec says {expected}")
            tensors = [caches[name] for name in names]
            if tensors[0].device.type == "cpu":
                order = Order.opaque(block, expected) if orders is None else orders[number]
                self._groups.append(HostLayers(order.over([_plain(each) for each in tensors])))
            else:
                self._groups.append(_on_device(tensors, block, 1 if spec.groups[number].latent_dim else 2))

    @property
    def pins(self) -> Pins | None:
        """Where host memory is registered that the layers' device copies from and to; None for layers on the host."""
        return self._groups[0].pins

    @property
    def device(self) -> Any:
        """The device, torch's, that the layers lie on; None for layers on the host."""
        return self._groups[0].device

    def fence(self) -> Any:
        """What a load that begins now has to wait for before it writes; for `write`."""
        return self._groups[0].fence()

    def write(self, group: int, source: Bytes, first: int, table: Sequence[int], after: Any) -> None:
        """Copy a part's blocks from block `first` of the chunk on into the blocks of `table`."""
        self._groups[group].write(table, first, source, after)

    def write_from(self, group: int, source: Any, first: int, table: Sequence[int], after: Any) -> None:
        """As `write`, from a part that lies on the layers' device, as a uint8 tensor."""
        self._groups[group].write_from(table, first, source, after)

    def read(self, group: int, table: Sequence[int], out: Bytes) -> Callable[[], None]:
        """Copy the blocks of `table` into a part; zeros for those that have left the window.

        The blocks may be overwritten from now on; the part is filled when what this returns has run.
        """
        return self._groups[group].read([-1 if block == NULL_BLOCK else block for block in table], 0, out)


def layer_number(name: str) -> int:
    """The number of a layer, as in `model.layers.7.self_attn.attn`."""
    numbers = [int(each) for each in name.split(".") if each.isdecimal()]
    if len(numbers) != 1:
        raise InvalidArgument(f"which layer {name!r} is cannot be told")
    return numbers[0]


def _on_device(tensors: Sequence[Any], block: int, planes: int) -> Layers:
    from kvstore.connectors.vllm._device import DeviceLayers

    if tensors[0].ndim != 4 or tensors[0].shape[2] != block:
        raise InvalidArgument(f"KV tensors are {tuple(tensors[0].shape)}, not [block, head, {block} tokens, content]")
    return DeviceLayers(tensors, planes)


def _plain(cache: Any) -> Bytes:
    """A layer's tensor in host memory, `[block, …]`, as bytes, without a copy."""
    import torch

    if not cache[0].is_contiguous():
        raise InvalidArgument(f"a block is not one piece of memory: {tuple(cache.shape)} by {tuple(cache.stride())}")
    nbytes, step = cache[0].numel() * cache.element_size(), cache.stride(0) * cache.element_size()
    flat = torch.empty(0, dtype=torch.uint8).set_(
        cache.untyped_storage(), cache.storage_offset() * cache.element_size(), (cache.shape[0], nbytes), (step, 1)
    )
    array: Bytes = flat.numpy()
    return array
