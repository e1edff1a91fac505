"""A connector's way to the store: its options, its client, and what happens when the store does not answer.

An engine must not wait for a cache, nor fail because of one: after a call that failed the store is left alone for a
while, and there is one warning.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, TypeVar

import kvstore
from kvstore.client import Client
from kvstore.errors import ConfigError, Corrupt, KVStoreError, NotFound, Shed
from kvstore.nearest import nearest
from kvstore.spec import KVSpec

MiB = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True)
class StoreOptions:
    """Where the store is, and how long it is waited for.

    `server` is what `kvstore.connect` takes; without it the store opens in this process, from the file `config` or
    with `dram_mib` MiB of memory. `token`, `ca`, `cert`, `key`, `namespace` as for `connect`. `timeout_s` ends any
    single call; after one that failed the store is left alone for `retry_s`. `revision` names the weights where the
    engine does not, or in addition.
    """

    POSITIVE: ClassVar[tuple[str, ...]] = ("timeout_s", "dram_mib")

    server: str = ""
    config: str = ""
    dram_mib: int = 1024
    namespace: str = "default"
    token: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    timeout_s: float = 5.0
    retry_s: float = 5.0
    revision: str = ""

    @classmethod
    def of(cls, given: Mapping[str, Any], where: str) -> Self:
        """Check what stands in `where`; `ConfigError` names a key that is unknown or has a wrong value."""
        known = {each.name: each.default for each in fields(cls)}
        chosen: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise ConfigError(f"{where}: unknown key {name!r}{nearest(name, list(known))}")
            kind = (int, float) if isinstance(known[name], float) else type(known[name])
            if isinstance(value, bool) != (kind is bool) or not isinstance(value, kind):
                raise ConfigError(f"{where}: {name} is {value!r}, not of the kind of {known[name]!r}")
            if isinstance(value, int | float) and not value >= 0:
                raise ConfigError(f"{where}: {name} must not be negative, it is {value}")
            chosen[name] = value
        for name in cls.POSITIVE:
            if not chosen.get(name, 1):
                raise ConfigError(f"{where}: {name} must be above 0")
        if chosen.get("server") and chosen.get("config"):
            raise ConfigError(f"{where}: give server or config, not both")
        return cls(**chosen)

    def open(self) -> Client:
        """The client. To a server nothing is sent before the first call."""
        if not self.server:
            return kvstore.open(self.config or self.in_memory(), namespace=self.namespace)
        return self.connect(self.server)

    def connect(self, address: str) -> Client:
        """The client of a server. Nothing is sent before the first call."""
        return kvstore.connect(
            address,
            token=self.token,
            ca=self.ca or None,
            cert=self.cert or None,
            key=self.key or None,
            namespace=self.namespace,
            timeout=self.timeout_s,
            retries=1,
        )

    def in_memory(self) -> kvstore.Config:
        """A store of `dram_mib` MiB and no disk."""
        capacity = self.dram_mib * MiB
        dram = kvstore.DramConfig(capacity=capacity, extent=min(capacity, 1024 * MiB))
        return kvstore.Config(dram=dram, namespaces=(kvstore.NamespaceConfig(self.namespace),))


@dataclass(frozen=True)
class HoldOptions(StoreOptions):
    """For engines without leases: `hold_s` is how long what was found is kept from eviction, to be loaded."""

    POSITIVE: ClassVar[tuple[str, ...]] = (*StoreOptions.POSITIVE, "hold_s")

    hold_s: float = 10.0


def hold(client: Client, spec: KVSpec, keys: Sequence[bytes], seconds: float) -> bool:
    """Keep chunks from eviction for a time, and bring them into DRAM; whether all of them are there.

    For engines that tell no positions, which a lease follows. It is the server's own word, too: what is known without
    asking it may be some seconds old.
    """
    if not keys or client.pin(spec, keys, seconds) < len(keys):
        return False
    client.prefetch(spec, keys)
    return True


class Breaker:
    """Calls to a store that may be gone: a failure is logged once, and the store is left alone for `retry_s`."""

    def __init__(self, logger: logging.Logger, retry_s: float) -> None:
        self._logger, self._retry_s = logger, retry_s
        self._lock = threading.Lock()
        self._down_until = 0.0
        self.failures = 0

    @property
    def down(self) -> bool:
        """Whether the store is left alone just now."""
        return time.monotonic() < self._down_until

    def run(self, call: Callable[[], T], otherwise: T) -> T:
        """What `call` gives, or `otherwise`: where something is not there, or the store does not answer."""
        if self.down:
            return otherwise
        try:
            return call()
        except (NotFound, Corrupt, Shed):  # of one chunk; the store counts them, and goes on
            return otherwise
        except KVStoreError as error:
            self.failed(error)
            return otherwise

    def failed(self, error: Exception) -> None:
        """Count a failure that the engine must not see; the first of a row is logged."""
        with self._lock:
            self.failures += 1
            was_down, self._down_until = self.down, time.monotonic() + self._retry_s
        if not was_down:
            self._logger.warning(
                "the store is left alone for %g s, what it holds is a miss: %s: %s",
                self._retry_s,
                type(error).__name__,
                error,
            )
