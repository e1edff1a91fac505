"""SGLang's own host pools over device buffers of a token or two, its storage configuration, and its backend factory."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from sglang.srt.mem_cache.device_pool_info import KVBufferLayout, KVBuffers, MHABufferInfo, MLABufferInfo
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.pool_host.base import host_memory_budget_scope
from sglang.srt.mem_cache.pool_host.mha import MHATokenToKVPoolHost
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

from ..vllm.harness import Server

PAGE, LAYERS, HEADS, DIM, LATENT, ROPE = 16, 4, 2, 8, 48, 16
CPU = torch.device("cpu")


def pool(kind: str = "mha", layout: str = "layer_first", pages: int = 16, **more: Any) -> Any:
    """A host pool of SGLang's, with pages of 16 tokens of 4 layers unless said otherwise."""
    given = {"dtype": torch.bfloat16, "page_size": PAGE, "heads": HEADS, "layers": LAYERS, "dim": DIM, **more}
    tokens, layers, dtype = pages * given["page_size"], given["layers"], given["dtype"]
    common: dict[str, Any] = {
        "host_to_device_ratio": 1.0, "host_size": 0, "page_size": given["page_size"], "layout": layout,
        "pin_memory": False, "device_capacity_tokens": tokens // 2, "host_token_capacity": tokens,
        "start_layer": given.get("start_layer", 0), "end_layer": given.get("start_layer", 0) + layers,
    }  # fmt: skip
    with host_memory_budget_scope(1 << 32):
        if kind == "mla":
            rows = tuple(torch.zeros(1, 1, LATENT + ROPE, dtype=dtype) for _ in range(layers))
            mla = MLABufferInfo(
                buffers=rows, data_ptrs=_pointers(rows), layer_indices=tuple(range(layers)), device_layer_num=layers,
                page_size=given["page_size"], kv_lora_rank=LATENT, qk_rope_head_dim=ROPE, kv_cache_dim=LATENT + ROPE,
                dtype=dtype, device=CPU,
            )  # fmt: skip
            return MLATokenToKVPoolHost(mla, target_layer_num=layers, **common)
        k, v = (tuple(torch.zeros(1, given["heads"], given["dim"], dtype=dtype) for _ in range(layers)) for _ in "kv")
        mha = MHABufferInfo(
            buffers=KVBuffers(k=k, v=v, k_data_ptrs=_pointers(k), v_data_ptrs=_pointers(v), layout=KVBufferLayout.NHD),
            page_size=given["page_size"], head_num=given["heads"], head_dim=given["dim"], v_head_dim=given["dim"],
            dtype=dtype, device=CPU,
        )  # fmt: skip
        return MHATokenToKVPoolHost(mha, **common)


def config(address: str = "", **more: Any) -> HiCacheStorageConfig:
    """What SGLang gives a backend; options that are not its own go into the extra configuration."""
    fields = {
        "tp_rank": 0, "tp_size": 1, "pp_rank": 0, "pp_size": 1, "attn_cp_rank": 0, "attn_cp_size": 1,
        "is_mla_model": False, "enable_storage_metrics": False, "is_page_first_layout": False, "model_name": "org/m",
    }  # fmt: skip
    known = HiCacheStorageConfig.__dataclass_fields__
    fields.update({name: value for name, value in more.items() if name in known})
    extra = {"backend_name": "kvstore", "module_path": "kvstore.connectors.sglang", "class_name": "KVStoreHiCache",
             "interface_v1": 1, "revision": "r1", **({"server": address} if address else {}),
             **{name: value for name, value in more.items() if name not in known}}  # fmt: skip
    return HiCacheStorageConfig(**fields, extra_config=extra)


def backend(host_pool: Any, address: str = "", **more: Any) -> Any:
    """A backend as SGLang makes it: by its factory, from the extra configuration, then given the pool."""
    more.setdefault("is_mla_model", isinstance(host_pool, MLATokenToKVPoolHost))
    made = StorageBackendFactory.create_backend("dynamic", config(address, **more), host_pool)
    made.register_mem_pool_host(host_pool)
    made.on_host_pools_registered()
    return made


def fill(host_pool: Any, seed: int = 0) -> None:
    """Bytes without a pattern, NaNs among them."""
    generator = torch.Generator().manual_seed(seed)
    raw = host_pool.kv_buffer.view(torch.uint8)
    raw.copy_(torch.randint(0, 256, raw.shape, dtype=torch.uint8, generator=generator))


def hashes(count: int, seed: int = 0) -> list[str]:
    """Page hashes as SGLang's: hex digits of chained SHA-256."""
    found, parent = [], b""
    for n in range(count):
        parent = hashlib.sha256(parent + f"{seed}/{n}".encode()).digest()
        found.append(parent.hex())
    return found


def slots(host_pool: Any, *pages: int) -> torch.Tensor:
    """The host indices of pages by their number."""
    size = host_pool.page_size
    return torch.cat([torch.arange(page * size, (page + 1) * size) for page in pages])


def page(host_pool: Any, number: int) -> torch.Tensor:
    """A page's bytes in the pool's order, as SGLang gives them."""
    return host_pool.get_data_page(number * host_pool.page_size).view(torch.uint8).clone()


def _pointers(tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.tensor([each.data_ptr() for each in tensors], dtype=torch.uint64)


def server_of_namespaces(folder: Path) -> Server:
    """A server with two namespaces, `default` and `other`."""
    config_file = folder / "kvstore.toml"
    config_file.write_text('[[namespace]]\nname = "default"\n[[namespace]]\nname = "other"\n')
    return Server(folder / "store", "--config", str(config_file))
