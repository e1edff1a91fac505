"""Pages of SGLang's host pools, seen in the store's order of axes.

Each layout of a pool is a permutation of one array, so a page is a strided view: the one copy that moves its bytes also
puts them in order, and the store holds the same chunk whatever layout the engine runs with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidArgument

Page = npt.NDArray[Any]

# The axes of `kv_buffer`, from slowest to fastest; `slot` counts tokens of the whole pool, `page` pages.
BUFFERS: dict[str, dict[str, tuple[str, ...]]] = {
    "MHATokenToKVPoolHost": {
        "layer_first": ("kv", "layer", "slot", "head", "dim"),
        "page_first": ("kv", "slot", "layer", "head", "dim"),
        "page_first_direct": ("kv", "page", "layer", "token", "head", "dim"),
        "page_head": ("kv", "page", "head", "token", "layer", "dim"),
    },
    "MLATokenToKVPoolHost": {
        "layer_first": ("layer", "slot", "head", "dim"),
        "page_first": ("slot", "layer", "head", "dim"),
        "page_first_direct": ("page", "layer", "token", "head", "dim"),
    },
}
CANONICAL = ("layer", "kv", "token", "head", "dim")


class Pages:
    """The pages of one host pool. A page is an array `[layer, K/V, token, kv_head, dim]` over the pool's memory, for
    MLA `[layer, token, 1, latent]`; its dtype is an unsigned integer of the element's size."""

    def __init__(self, pool: Any) -> None:
        kind, layout = type(pool).__name__, str(pool.layout)
        if kind not in BUFFERS:
            raise InvalidArgument(f"host pools of the kind {kind} are not supported: only {' and '.join(BUFFERS)}")
        if layout not in BUFFERS[kind]:
            raise InvalidArgument(
                f"--hicache-mem-layout {layout} is not supported for {kind}; one of {', '.join(BUFFERS[kind])}"
            )
        self.pool, self.is_mla = pool, kind.startswith("MLA")
        self.tokens = int(pool.page_size)
        self._buffer_axes = BUFFERS[kind][layout]
        # A page alone: the axis of pages is gone, that of slots counts the page's tokens.
        self._page_axes = tuple("token" if axis == "slot" else axis for axis in self._buffer_axes if axis != "page")
        order = [axis for axis in CANONICAL if axis in self._page_axes]
        self._order = tuple(self._page_axes.index(axis) for axis in order)

    def at(self, host_indices: Any, count: int) -> list[Page]:
        """The `count` pages whose slots are `host_indices` (one index per token), writable.

        `InvalidArgument` unless there is an index for every token, and a page begins at a page's boundary.
        """
        if len(host_indices) != count * self.tokens:
            raise InvalidArgument(
                f"{count} pages have {count * self.tokens} host indices, one for each token, not {len(host_indices)}"
            )
        buffer = _as_integers(self.pool.kv_buffer)
        return [self._page(buffer, first) for first in host_indices[:: self.tokens].tolist()]

    def flat(self, tensor: Any) -> Page:
        """The same view of a page outside the pool: a flat, contiguous tensor in the pool's order, as
        `get_data_page` gives it."""
        sizes = self._sizes()
        shape = tuple(sizes[axis] for axis in self._page_axes)
        array = _as_integers(tensor.reshape(-1))
        if array.size != int(np.prod(shape)):
            raise InvalidArgument(f"a page of this pool has {int(np.prod(shape))} elements, not {array.size}")
        return array.reshape(shape).transpose(self._order)

    def empty(self) -> Any:
        """A tensor for `flat`."""
        import torch

        return torch.empty(int(np.prod([self._sizes()[axis] for axis in self._page_axes])), dtype=self.pool.dtype)

    def _page(self, buffer: Page, first: int) -> Page:
        if first % self.tokens:
            raise InvalidArgument(f"host index {first} is not the beginning of a page of {self.tokens} tokens")
        cut: list[Any] = [slice(None)] * len(self._buffer_axes)
        if "slot" in self._buffer_axes:
            cut[self._buffer_axes.index("slot")] = slice(first, first + self.tokens)
        else:
            cut[self._buffer_axes.index("page")] = first // self.tokens
        page: Page = buffer[tuple(cut)].transpose(self._order)
        return page

    def _sizes(self) -> dict[str, int]:
        pool = self.pool
        heads, dim = (1, int(pool.kv_cache_dim)) if self.is_mla else (int(pool.head_num), int(pool.head_dim))
        return {"kv": 2, "layer": int(pool.layer_num), "token": self.tokens, "head": heads, "dim": dim}


def as_bytes(pages: Iterable[Page]) -> list[Page]:
    """Contiguous pages as flat bytes over the same memory."""
    return [page.reshape(-1).view(np.uint8) for page in pages]


def _as_integers(tensor: Any) -> Page:
    """The same memory as a NumPy array; NumPy has no bfloat16."""
    import torch

    integer = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    array: Page = tensor.view(integer).numpy()
    return array
