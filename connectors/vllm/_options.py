"""What stands in `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvstore.errors import ConfigError
from kvstore.nearest import nearest

MiB = 1 << 20


@dataclass(frozen=True)
class Options:
    """Where the store is, and how patient the engine is with it.

    `server` is what `kvstore.connect` takes; without it the store opens in the engine's process, from the file
    `config` or with `dram_mib` MiB of memory. `token`, `ca`, `cert`, `key`, `namespace` as for `connect`.
    `revision` is added to what names the weights.

    `fidelity` `lossy` also loads lossy copies, where no exact ones reach as far. What is computed after them is never
    stored.

    `lookup_wait_ms` is the longest that one call of the scheduler waits for a look-up; after `lookup_timeout_s` it
    counts as a miss. `lease_s` is how long a hit is held for a request that waits. `timeout_s` ends any single call
    to the store. After a failure to reach it the store is left alone for `retry_s`.
    `readers` and `writers` are threads; `staging_mib` bounds what waits to be stored, beyond that saves are dropped.
    """

    server: str = ""
    config: str = ""
    dram_mib: int = 1024
    namespace: str = "default"
    token: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    revision: str = ""
    chunk_tokens: int = 256
    fidelity: str = "exact"
    lookup_wait_ms: float = 2.0
    lookup_timeout_s: float = 1.0
    lease_s: float = 30.0
    timeout_s: float = 5.0
    retry_s: float = 5.0
    readers: int = 2
    writers: int = 1
    staging_mib: int = 256

    @property
    def staging_bytes(self) -> int:
        """Bytes that may wait to be stored."""
        return self.staging_mib * MiB

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """Check what was given; `ConfigError` names a key that is unknown or has the wrong kind of value."""
        known = {each.name: each for each in fields(cls)}
        chosen: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"kv_connector_extra_config: unknown key {name!r}{nearest(name, list(known))}")
            default = known[name].default
            kind = (int, float) if isinstance(default, float) else type(default)
            if isinstance(value, bool) or not isinstance(value, kind):
                raise ConfigError(f"kv_connector_extra_config: {name} is {value!r}, not of the kind of {default!r}")
            chosen[name] = value
        options = cls(**chosen)
        options._check()
        return options

    def _check(self) -> None:
        least = {"dram_mib": 1, "chunk_tokens": 1, "readers": 1, "writers": 1, "staging_mib": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise ConfigError(f"kv_connector_extra_config: {name} must be at least {value}")
        for name in ("lookup_timeout_s", "lease_s", "timeout_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"kv_connector_extra_config: {name} must be above 0")
        for name in ("lookup_wait_ms", "retry_s"):
            if getattr(self, name) < 0:
                raise ConfigError(f"kv_connector_extra_config: {name} must not be negative")
        if self.fidelity not in ("exact", "lossy"):
            raise ConfigError(f"kv_connector_extra_config: fidelity is 'exact' or 'lossy', not {self.fidelity!r}")
        if self.server and self.config:
            raise ConfigError("kv_connector_extra_config: give server or config, not both")
