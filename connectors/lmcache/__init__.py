"""LMCache: `KVStoreL2Adapter`, which puts this store under an LMCache server as its second level.

    lmcache server … --l2-adapter '{"type": "plugin", "module_path": "kvstore.connectors.lmcache",
      "class_name": "KVStoreL2Adapter", "adapter_params": {"server": "127.0.0.1:7420"}}'

Options and limits: docs/lmcache.md.
"""

from __future__ import annotations

from typing import Any

NAME = "KVStoreL2Adapter"


def __getattr__(name: str) -> Any:
    """The adapter's class on first use: LMCache takes seconds to import."""
    if name == NAME:
        from kvstore.connectors.lmcache._adapter import KVStoreL2Adapter

        return KVStoreL2Adapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
