"""SGLang's real host pools, over device buffers of one token each: for the tests and the benchmark of its connector."""

from __future__ import annotations

from typing import Any

import torch
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo, MLABufferInfo
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost

LATENT, ROPE = 48, 16
BUDGET = 4 << 30  # bytes of memory that a pool may take
CPU = torch.device("cpu")


def pool(
    kind: str = "mha",
    layout: str = "layer_first",
    pages: int = 16,
    *,
    dtype: torch.dtype = torch.bfloat16,
    page_size: int = 16,
    layers: int = 4,
    heads: int = 2,
    dim: int = 8,
    start_layer: int = 0,
) -> Any:
    """A host pool of `pages` pages; of the kind `mla` it has one head of `LATENT + ROPE` elements."""
    tokens = pages * page_size
    common: dict[str, Any] = {
        "host_to_device_ratio": 1.0, "host_size": 0, "page_size": page_size, "layout": layout, "pin_memory": False,
        "device_capacity_tokens": tokens // 2, "host_token_capacity": tokens, "start_layer": start_layer,
        "end_layer": start_layer + layers,
    }  # fmt: skip
    with host_memory_budget_scope(BUDGET):
        if kind == "mla":
            return MLATokenToKVPoolHost(_mla(dtype, page_size, layers), target_layer_num=layers, **common)
        return MHATokenToKVPoolHost(_mha(dtype, page_size, layers, heads, dim), **common)


def _mha(dtype: torch.dtype, page_size: int, layers: int, heads: int, dim: int) -> Any:
    k, v = (tuple(torch.zeros(1, heads, dim, dtype=dtype) for _ in range(layers)) for _ in "kv")
    return MHABufferInfo(
        buffers=KVBuffers(k=k, v=v, k_data_ptrs=_pointers(k), v_data_ptrs=_pointers(v), layout=KVBufferLayout.NHD),
        page_size=page_size, head_num=heads, head_dim=dim, v_head_dim=dim, dtype=dtype, device=CPU,
    )  # fmt: skip


def _mla(dtype: torch.dtype, page_size: int, layers: int) -> Any:
    rows = tuple(torch.zeros(1, 1, LATENT + ROPE, dtype=dtype) for _ in range(layers))
    return MLABufferInfo(
        buffers=rows, data_ptrs=_pointers(rows), layer_indices=tuple(range(layers)), device_layer_num=layers,
        page_size=page_size, kv_lora_rank=LATENT, qk_rope_head_dim=ROPE, kv_cache_dim=LATENT + ROPE, dtype=dtype,
        device=CPU,
    )  # fmt: skip


def _pointers(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.tensor([each.data_ptr() for each in tensors], dtype=torch.uint64)
