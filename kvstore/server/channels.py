"""The local and the bulk channel of one server, beside its gRPC front."""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path

from kvstore.config import ServerConfig
from kvstore.server import bulk, local
from kvstore.server.access import Access, check_exposure
from kvstore.server.listen import bulk_address, bulk_listener, local_listener
from kvstore.server.streams import PeerCalls, StreamServer, tls_greeter
from kvstore.service import Service

INSTANCE_BYTES = 16


class Channels:
    """Starts and stops both; `local` and `bulk` say where they listen, empty where they do not."""

    def __init__(self, config: ServerConfig, service: Service, access: Access, peers: PeerCalls | None) -> None:
        """`peers` answer other servers on the bulk channel; None refuses them."""
        self._peers = peers
        self.local = ""
        self.bulk = ""
        self._config = config
        self._service = service
        self._access = access
        self._instance = secrets.token_bytes(INSTANCE_BYTES)
        self._servers: list[StreamServer] = []

    def start(self, address: str) -> None:
        """Listen beside gRPC's `address`. Raises `ConfigError`."""
        config, limit = self._config, self._config.max_connections
        facts = {"instance": self._instance.hex()}
        own = local_listener(config, address)
        if own is not None:
            self.local = facts["local"] = str(own.getsockname())
            handlers = {**bulk.handlers(), **local.handlers()}
            self._servers.append(
                StreamServer(
                    own,
                    self._service,
                    self._access,
                    self._instance,
                    handlers,
                    name="local",
                    limit=limit,
                )
            )
        wire = bulk_listener(config, address)
        if wire is not None:
            self.bulk = facts["bulk"] = bulk_address(wire)
            check_exposure(config, self._access, self.bulk)
            greet = tls_greeter(config) if config.tls_cert is not None else None
            self._servers.append(
                StreamServer(
                    wire, self._service, self._access, self._instance, bulk.handlers(), name="bulk", limit=limit,
                    greet=greet, peers=self._peers,
                )
            )  # fmt: skip
        self._service.facts = facts

    def stop(self) -> None:
        """Stop both. A second call does nothing."""
        servers, self._servers = self._servers, []
        for server in servers:
            server.stop()
        if self.local:
            with contextlib.suppress(OSError):
                Path(self.local).unlink()
            self.local = ""
