"""What stands in `kv_connector_extra_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from kvstore.connectors.access import MiB, StoreOptions
from kvstore.errors import ConfigError

__all__ = ["MiB", "Options"]
WHERE = "kv_connector_extra_config"
FIDELITIES = ("exact", "lossy")


@dataclass(frozen=True)
class Options(StoreOptions):
    """Where the store is, and how patient the engine is with it.

    `fidelity` `lossy` also loads lossy copies, where no exact ones reach as far. What is computed after them is never
    stored.

    `lookup_wait_ms` is the longest that one call of the scheduler waits for a look-up; after `lookup_timeout_s` it
    counts as a miss. `lease_s` is how long a hit is held for a request that waits. `readers` and `writers` are threads;
    `staging_mib` bounds what waits to be stored, beyond that saves are dropped. `prefetch_mib` bounds what the store
    is asked to load ahead for requests that wait (0: nothing).

    With `load_or_recompute` a hit is loaded as far as that is quicker than computing it, once the engine has seen how
    fast it computes, or from the start with `prefill_tokens_per_s`.
    """

    POSITIVE: ClassVar[tuple[str, ...]] = (
        *StoreOptions.POSITIVE, "chunk_tokens", "readers", "writers", "staging_mib", "lookup_timeout_s", "lease_s",
    )  # fmt: skip

    chunk_tokens: int = 256
    fidelity: str = "exact"
    lookup_wait_ms: float = 2.0
    lookup_timeout_s: float = 1.0
    lease_s: float = 30.0
    readers: int = 2
    writers: int = 1
    staging_mib: int = 256
    prefetch_mib: int = 256
    load_or_recompute: bool = True
    prefill_tokens_per_s: float = 0.0

    @property
    def staging_bytes(self) -> int:
        """Bytes that may wait to be stored."""
        return self.staging_mib * MiB

    @property
    def prefetch_bytes(self) -> int:
        """Bytes that may be loaded ahead, and not taken yet."""
        return self.prefetch_mib * MiB

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str = WHERE) -> Self:
        """Check what was given; `ConfigError` names a key that is unknown or has a wrong value."""
        options = super().of(given, where)
        if options.fidelity not in FIDELITIES:
            raise ConfigError(f"{where}: fidelity is 'exact' or 'lossy', not {options.fidelity!r}")
        return options
