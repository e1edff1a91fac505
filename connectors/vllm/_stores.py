"""The client of a connector: to a server, or of a store in this process that scheduler and worker share."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import kvstore
from kvstore.client import Client
from kvstore.connectors.vllm._options import MiB, Options


@dataclass
class _Shared:
    client: Client
    users: int


_lock = threading.Lock()
_embedded: dict[tuple[str, int, str], _Shared] = {}


def open_store(options: Options) -> Client:
    """A client as the options say. Nothing is sent to a server before the first call."""
    if options.server:
        return kvstore.connect(
            options.server,
            token=options.token,
            ca=options.ca or None,
            cert=options.cert or None,
            key=options.key or None,
            namespace=options.namespace,
            timeout=options.timeout_s,
            retries=1,
        )
    with _lock:
        shared = _embedded.get(_name(options))
        if shared is None:
            shared = _embedded[_name(options)] = _Shared(_open_embedded(options), 0)
        shared.users += 1
        return shared.client


def close_store(options: Options, client: Client) -> None:
    """Give a client back. An embedded store is closed by its last user."""
    if not options.server:
        with _lock:
            shared = _embedded[_name(options)]
            shared.users -= 1
            if shared.users:
                return
            del _embedded[_name(options)]
    client.close()


def _name(options: Options) -> tuple[str, int, str]:
    return options.config, options.dram_mib, options.namespace


def _open_embedded(options: Options) -> Client:
    if options.config:
        return kvstore.open(options.config, namespace=options.namespace)
    capacity = options.dram_mib * MiB
    dram = kvstore.DramConfig(capacity=capacity, extent=min(capacity, 1024 * MiB))
    return kvstore.open(kvstore.Config(dram=dram), namespace=options.namespace)
