"""The configuration as data. `kvstore.settings` reads it from files, variables and flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MiB = 1 << 20
GiB = 1 << 30


@dataclass(frozen=True)
class DramConfig:
    """The arena: extents of `extent` bytes up to `capacity`, each owned by one namespace."""

    capacity: int = 2 * GiB
    extent: int = 1 * GiB


@dataclass(frozen=True)
class NvmeConfig:
    """A folder of log-structured segments."""

    path: Path
    capacity: int = 64 * GiB
    segment: int = 256 * MiB
    reserve: int = 1 * GiB
    io_threads: int = 4


@dataclass(frozen=True)
class NamespaceConfig:
    """A tenant. `quota` bounds its bytes over all tiers (0: no bound), `ttl_s` the time since last use (0: none)."""

    name: str
    quota: int = 0
    ttl_s: float = 0.0
    tokens: tuple[str, ...] = ()


@dataclass(frozen=True)
class ServerConfig:
    """Where and for whom the server listens. Beyond the host it needs a certificate and tokens."""

    listen: str = "127.0.0.1:7420"
    tls_cert: Path | None = None
    tls_key: Path | None = None
    client_ca: Path | None = None
    max_workers: int = 16


@dataclass(frozen=True)
class Config:
    """Everything a store and its server are told.

    `flush_on_close` writes what only DRAM holds to the NVMe tier when the store is closed in order, so that a
    restart keeps the cache. `prefill_tokens_per_s` lets the mover drop what is cheaper to recompute than to load
    (0: not known, keep everything). `max_chunks` bounds the index.
    """

    dram: DramConfig = field(default_factory=DramConfig)
    nvme: NvmeConfig | None = None
    namespaces: tuple[NamespaceConfig, ...] = (NamespaceConfig("default"),)
    server: ServerConfig = field(default_factory=ServerConfig)
    max_chunks: int = 1 << 20
    lease_limit_s: float = 60.0
    put_wait_s: float = 1.0
    flush_on_close: bool = True
    prefill_tokens_per_s: float = 0.0
