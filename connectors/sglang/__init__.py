"""SGLang: `KVStoreHiCache`, a storage backend for HiCache that keeps the host pool's pages in the store.

    --enable-hierarchical-cache --hicache-storage-backend dynamic --hicache-storage-backend-extra-config
    '{"backend_name": "kvstore", "module_path": "kvstore.connectors.sglang", "class_name": "KVStoreHiCache",
      "interface_v1": 1, "server": "127.0.0.1:7420"}'

Options and limits: docs/sglang.md.
"""

from __future__ import annotations

from typing import Any

NAME = "KVStoreHiCache"


def __getattr__(name: str) -> Any:
    """The backend's class on first use: SGLang takes seconds to import."""
    if name == NAME:
        from kvstore.connectors.sglang._backend import KVStoreHiCache

        return KVStoreHiCache
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
