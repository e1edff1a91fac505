"""How the numbers of a KV block lie in an engine's memory, and where each belongs in the canonical form.

A CPU backend packs keys and values for its kernels: transposed, or interleaved for AMX tiles. Which way is not said
anywhere, so the engine is asked: its own operation writes a block of numbers that tell their places apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import InvalidArgument

Places = npt.NDArray[np.int64]
# Whole numbers below this are exact in every dtype that is kept, bfloat16 with its 8 bits included.
_DIGIT = 128


@dataclass(frozen=True)
class Order:
    """Where the bytes of a block belong in a part `[layer][plane][token][head][dim]`; see `_native.PagedLayers`.

    A block has `regions` of equal size, each of one plane, and a region has units of `unit_bytes`. Unit u of region r
    belongs `bases[r] + tables[kinds[r]][u]` bytes after the row of the block's first token in plane `planes[r]`.
    """

    block_tokens: int
    row_bytes: int  # one token of one plane, all heads
    planes_per_layer: int
    unit_bytes: int
    planes: tuple[int, ...]
    bases: tuple[int, ...]
    kinds: tuple[int, ...]
    tables: tuple[tuple[int, ...], ...]

    @classmethod
    def opaque(cls, block_tokens: int, block_bytes: int) -> Order:
        """Bytes of which nothing is known: they are kept as they lie."""
        if block_bytes % block_tokens:
            raise InvalidArgument(f"a block of {block_bytes} bytes does not divide into {block_tokens} tokens")
        return cls(block_tokens, block_bytes // block_tokens, 1, block_bytes, (0,), (0,), (0,), ((0,),))

    @classmethod
    def of(cls, places: Places, tokens: int, heads: int, dim: int, itemsize: int) -> Order:
        """From where each element of a block belongs.

        `places` are flat indices into `[plane][token][head][dim]`, one for each element in the order of the block.
        Raises `InvalidArgument` unless they are a permutation that falls into regions of one plane each.
        """
        plane_elements = tokens * heads * dim
        if not np.array_equal(np.sort(places), np.arange(2 * plane_elements)):
            raise InvalidArgument("an engine's block does not hold each number of its tokens once")
        for count in (2, 2 * heads, 2 * heads * tokens):
            regions = places.reshape(count, -1)
            if (regions // plane_elements == regions[:, :1] // plane_elements).all():
                return cls._of_regions(regions, plane_elements, tokens, heads * dim * itemsize, itemsize)
        raise InvalidArgument("keys and values lie mixed up in an engine's block")

    def over(self, layers: Sequence[npt.NDArray[np.uint8]]) -> _native.PagedLayers:
        """Copies to and from blocks in this order, over layers `[block, bytes of a block]`."""
        return _native.PagedLayers(list(layers), **asdict(self))

    @classmethod
    def _of_regions(cls, regions: Places, plane_elements: int, tokens: int, row_bytes: int, itemsize: int) -> Order:
        inside = regions % plane_elements
        bases = inside.min(axis=1)
        tables: dict[tuple[int, ...], int] = {}
        kinds = [
            tables.setdefault(tuple(((row - base) * itemsize).tolist()), len(tables))
            for row, base in zip(inside, bases, strict=True)
        ]
        planes = (regions[:, 0] // plane_elements).tolist()
        return cls(tokens, row_bytes, 2, itemsize, tuple(planes), tuple((bases * itemsize).tolist()), tuple(kinds),
                   tuple(tables))  # fmt: skip


def cpu_order(spec: Any, cache_dtype: str) -> Order:
    """The order in blocks of vLLM's CPU backend, for one KV group's `kv_cache_spec`.

    Raises `InvalidArgument` where its operation is not to be had or does something else than put every number into
    its block.
    """
    tokens, heads, dim = int(spec.block_size), int(spec.num_kv_heads), int(spec.head_size)
    digits, rest = [], np.arange(2 * tokens * heads * dim, dtype=np.int64)
    while rest.any():
        rest, digit = np.divmod(rest, _DIGIT)
        digits.append(_packed(digit.reshape(2, tokens, heads, dim), spec, cache_dtype))
    places = sum(digit * _DIGIT**n for n, digit in enumerate(digits))
    return Order.of(np.asarray(places), tokens, heads, dim, spec.dtype.itemsize)


def _packed(numbers: Places, spec: Any, cache_dtype: str) -> Places:
    """Whole numbers `[plane][token][head][dim]` in the order in which the CPU backend puts them into a block."""
    import torch

    try:
        from vllm import _custom_ops as ops
        from vllm.v1.attention.backends.cpu_attn import _get_attn_isa
    except ImportError as error:
        raise InvalidArgument(f"this vLLM cannot be asked how its CPU blocks lie: {error}") from None
    _, tokens, heads, dim = numbers.shape
    key, value = torch.from_numpy(numbers).to(spec.dtype)
    # Two blocks, of which the second is written: a step from block to block that is misread would show.
    cache = torch.full((2, heads, 2 * tokens, dim), -1.0, dtype=spec.dtype)
    slots = torch.arange(tokens, 2 * tokens, dtype=torch.int64)
    try:
        isa = _get_attn_isa(spec.dtype, tokens, dim, cache_dtype)
        ops.cpu_attn_reshape_and_cache(
            key, value, *cache.chunk(2, dim=2), slots, isa, k_scale=1.0, v_scale=1.0, kv_cache_dtype=cache_dtype
        )
    except (TypeError, AttributeError, NotImplementedError, RuntimeError) as error:
        raise InvalidArgument(f"this vLLM cannot be asked how its CPU blocks lie: {error}") from None
    if not bool((cache[0] == -1.0).all()):
        raise InvalidArgument("vLLM's CPU backend writes outside the block that it is told")
    packed: Places = cache[1].to(torch.float64).to(torch.int64).reshape(-1).numpy()
    return packed
