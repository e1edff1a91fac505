"""SGLang's storage configuration and backend factory, and the pages of its host pools."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from sglang.srt.mem_cache.hicache_storage import HiCacheStorageConfig
from sglang.srt.mem_cache.pool_host.mla import MLATokenToKVPoolHost
from sglang.srt.mem_cache.storage.backend_factory import StorageBackendFactory

from kvstore.bench.sglang_pools import LATENT, ROPE, pool

from ..vllm.harness import Server

PAGE = 16
__all__ = [
    "LATENT",
    "PAGE",
    "ROPE",
    "backend",
    "config",
    "fill",
    "hashes",
    "page",
    "pool",
    "server_of_namespaces",
    "slots",
]


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


def server_of_namespaces(folder: Path) -> Server:
    """A server with two namespaces, `default` and `other`."""
    config_file = folder / "kvstore.toml"
    config_file.write_text('[[namespace]]\nname = "default"\n[[namespace]]\nname = "other"\n')
    return Server(folder / "store", "--config", str(config_file))
