"""Starting and stopping: a gRPC server on an asyncio loop in a thread of its own."""

from __future__ import annotations

import asyncio
import os
import threading
from concurrent.futures import Future
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from kvstore.config import Config
from kvstore.errors import ConfigError
from kvstore.pieces import PIECE_BYTES, keep_freed_memory
from kvstore.server.access import Access, check_exposure, server_credentials
from kvstore.server.calls import Workers
from kvstore.server.channels import Channels
from kvstore.server.front import SERVICE_NAME, Front
from kvstore.server.listen import check_free
from kvstore.server.peers import peer_calls
from kvstore.service import Service, SessionSource
from kvstore.store import Store

MAX_MESSAGE_BYTES = 4 * PIECE_BYTES + 65536
_HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
_OPTIONS = (
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", -1),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
)


class Server:
    """A running server. `address` is where it listens, with the actual port."""

    def __init__(self, store: SessionSource, config: Config) -> None:
        keep_freed_memory()
        self._config = config.server
        self._access = Access(config)
        check_exposure(self._config, self._access, self._config.listen)
        self._credentials = server_credentials(self._config)
        self._service = Service(store, may_operate=config.may_operate)
        peers = None
        if isinstance(store, Store) and config.peers is not None:
            peers = peer_calls(store.records, store.objects())
        self._channels = Channels(self._config, self._service, self._access, peers)
        self._grace = 0.0
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended = threading.Event()
        started: Future[str] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="kvstore-server", daemon=True)
        self._thread.start()
        self.address = started.result()
        try:
            self._channels.start(self.address)
            if isinstance(store, Store):
                store.advertise(self._channels.bulk, tls=self._config.tls_cert is not None)
        except BaseException:
            self.stop(0.0)
            raise

    @property
    def local(self) -> str:
        """The path of the local channel's socket; empty where it is off."""
        return self._channels.local

    @property
    def bulk(self) -> str:
        """HOST:PORT of the bulk channel; empty where it is off."""
        return self._channels.bulk

    def stop(self, grace: float = 2.0) -> None:
        """Take no more calls, give those under way `grace` seconds, end sessions. A second call does nothing."""
        self._channels.stop()
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None and not self._ended.is_set():
            self._grace = grace
            loop.call_soon_threadsafe(stop.set)
        self._thread.join()

    def wait(self, timeout: float | None = None) -> bool:
        """Return True when the server has stopped, False after `timeout` seconds."""
        return self._ended.wait(timeout)

    def _run(self, started: Future[str]) -> None:
        try:
            asyncio.run(self._serve(started))
        except ConfigError as error:
            started.set_exception(error)
        finally:
            self._service.close()
            self._ended.set()

    async def _serve(self, started: Future[str]) -> None:
        workers = Workers(self._config.max_workers)
        front = Front(self._service, self._access, workers)
        server = grpc.aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers((front.handler(),))
        health = await _add_health(server)
        shown = (SERVICE_NAME, _HEALTH_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(shown, server)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        address = self._bind(server)
        await server.start()
        started.set_result(address)
        await self._stop.wait()
        await health.enter_graceful_shutdown()
        front.end_streams()
        await server.stop(self._grace)
        workers.close()

    def _bind(self, server: Any) -> str:
        listen = self._config.listen
        check_free(listen)
        try:
            if self._credentials is None:
                port = server.add_insecure_port(listen)
            else:
                port = server.add_secure_port(listen, self._credentials)
        except RuntimeError as error:
            raise ConfigError(f"server.listen: cannot listen on {listen} (is the key a bad one?): {error}") from None
        if listen.startswith("unix:"):
            os.chmod(listen.removeprefix("unix:"), 0o600)
            return listen
        return f"{listen.rpartition(':')[0]}:{port}"


def serve(store: SessionSource, config: Config) -> Server:
    """Serve a store as `config.server` says. Raises `ConfigError`."""
    return Server(store, config)


async def _add_health(server: Any) -> Any:
    health = health_aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    for name in ("", SERVICE_NAME):
        await health.set(name, health_pb2.HealthCheckResponse.SERVING)
    return health
