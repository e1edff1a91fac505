"""kvstore: a tiered KV-cache store for LLM serving.

`open` gives a store inside this process, `connect` one behind a server; both give the same `Client`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kvstore.api import Ack, ChunkInfo, Description, Drain, Event, Fidelity, Page, PlacementInfo, Want
from kvstore.client import Client
from kvstore.config import Config, DramConfig, NamespaceConfig, NvmeConfig, ServerConfig
from kvstore.cost import Plan, Prefill, Prompt
from kvstore.errors import (
    Closed,
    ConfigError,
    Corrupt,
    DeadlineExceeded,
    InvalidArgument,
    KVStoreError,
    LeaseExpired,
    NotFound,
    PermissionDenied,
    Shed,
    SpecMismatch,
    StorageError,
    TooLarge,
    Unavailable,
    UnknownNamespace,
)
from kvstore.hit import Hit
from kvstore.keys import Chain, ChunkRef, Extras
from kvstore.spec import KVGroup, KVSpec, Part

if TYPE_CHECKING:
    from kvstore.aio import AsyncClient

__version__ = "0.1.0"


def open(config: Any = None, *, namespace: str = "default") -> Client:
    """Open a store in this process.

    `config` is a `Config`, the path of a `kvstore.toml`, or nothing for DRAM alone. Raises `ConfigError`,
    `StorageError` (a folder that is in use, read-only or full) and `UnknownNamespace`.
    """
    from kvstore.embedded import open_embedded

    return open_embedded(config, namespace=namespace)


def connect(url: str, **options: Any) -> Client:
    """Connect to a server: `connect("127.0.0.1:7420", token=…, ca=…, namespace=…, timeout=…)`.

    See `kvstore.channels.choose.connect_remote` for the options and for how to force a channel.
    """
    from kvstore.channels.choose import connect_remote

    return connect_remote(url, **options)


def open_async(config: Any = None, *, namespace: str = "default") -> AsyncClient:
    """`open` for asyncio. It blocks while the store is recovered: call it before the loop has work."""
    from kvstore.aio import AsyncClient

    return AsyncClient(open(config, namespace=namespace))


def connect_async(url: str, **options: Any) -> AsyncClient:
    """`connect` for asyncio. Nothing is sent before the first call."""
    from kvstore.aio import AsyncClient

    return AsyncClient(connect(url, **options))


def __getattr__(name: str) -> Any:
    """`AsyncClient` on first use: asyncio would be a third of the time that `import kvstore` takes."""
    if name == "AsyncClient":
        from kvstore.aio import AsyncClient

        return AsyncClient
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "Ack",
    "AsyncClient",
    "Chain",
    "ChunkInfo",
    "ChunkRef",
    "Client",
    "Closed",
    "Config",
    "ConfigError",
    "Corrupt",
    "DeadlineExceeded",
    "Description",
    "Drain",
    "DramConfig",
    "Event",
    "Extras",
    "Fidelity",
    "Hit",
    "InvalidArgument",
    "KVGroup",
    "KVSpec",
    "KVStoreError",
    "LeaseExpired",
    "NamespaceConfig",
    "NotFound",
    "NvmeConfig",
    "Page",
    "Part",
    "PermissionDenied",
    "PlacementInfo",
    "Plan",
    "Prefill",
    "Prompt",
    "ServerConfig",
    "Shed",
    "SpecMismatch",
    "StorageError",
    "TooLarge",
    "Unavailable",
    "UnknownNamespace",
    "Want",
    "connect",
    "connect_async",
    "open",
    "open_async",
]
