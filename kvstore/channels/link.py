"""A gRPC connection: where to, with which certificates and metadata, and what its failures mean."""

from __future__ import annotations

import errno
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import grpc

from kvstore import wire
from kvstore.channels.options import Pem, pem_bytes
from kvstore.channels.patience import retry
from kvstore.errors import (
    Closed,
    DeadlineExceeded,
    InvalidArgument,
    KVStoreError,
    PermissionDenied,
    Shed,
    TooLarge,
    Unavailable,
)

SERVICE = "/kvstore.v1.KVStore/"
_NOBODY = (os.strerror(errno.ECONNREFUSED), os.strerror(errno.ENOENT))  # where nobody listens
T = TypeVar("T")
_PROBE_S = 0.3
_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 20_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
# A get is read in the caller's thread, which is 5-10% faster; such a stream cannot be cancelled from another one.
_CALL_OPTIONS = (*_OPTIONS, ("SingleThreadedUnaryStream", 1))
_BY_CODE: dict[str, type[KVStoreError]] = {
    "UNAVAILABLE": Unavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
    "CANCELLED": Closed,
    "UNAUTHENTICATED": PermissionDenied,
    "PERMISSION_DENIED": PermissionDenied,
    "RESOURCE_EXHAUSTED": TooLarge,
    "INVALID_ARGUMENT": InvalidArgument,
}


@dataclass(frozen=True)
class Address:
    """A server's address as gRPC takes it, and whether it is spoken to over TLS."""

    target: str
    secure: bool

    @classmethod
    def parse(cls, url: str) -> Address:
        """From `HOST:PORT`, `grpc://HOST:PORT`, `grpcs://HOST:PORT` or `unix:PATH`."""
        if url.startswith("unix:") and len(url) > 5:
            return cls(url, False)
        scheme, mark, rest = url.rpartition("://")
        host, _, port = rest.rstrip("/").rpartition(":")
        if scheme not in ("", "grpc", "grpcs") or bool(mark) != bool(scheme) or not host or not port.isdecimal():
            raise InvalidArgument(
                f"{url!r} is no server; use HOST:PORT, or to force a way local:PATH, bulk://HOST:PORT, "
                "bulks://HOST:PORT, grpc://HOST:PORT, grpcs://HOST:PORT or unix:PATH"
            )
        return cls(rest.rstrip("/"), scheme == "grpcs")


def _reason(details: str) -> str:
    """What gRPC says of a failure; of a connection that did not come about only why, which it has last."""
    if not details.startswith(("failed to connect to all addresses", "errors resolving")):
        return details
    reason = details.rpartition(": ")[2].rstrip("]")
    return f"{reason}; is the server running?" if reason in _NOBODY else reason


class Link:
    """A channel with retries. A call that ends in UNAVAILABLE is made again until its time is over."""

    def __init__(
        self, address: Address, metadata: tuple[tuple[str, str], ...], credentials: Any, timeout: float, retries: int
    ) -> None:
        self.address = address.target
        self.timeout = timeout
        self.metadata = metadata
        self._retries = retries
        self._channel = _channel(address.target, credentials, _CALL_OPTIONS)
        self._lasting = _channel(address.target, credentials, _OPTIONS)
        self._closed = False
        # One callable per method, made once, that takes and gives encoded messages.
        self.unary = cache(lambda method: self._channel.unary_unary(SERVICE + method))
        self.download = cache(lambda method: self._channel.unary_stream(SERVICE + method))
        self.stream = cache(lambda method: self._lasting.unary_stream(SERVICE + method))
        self.upload = cache(lambda method: self._channel.stream_unary(SERVICE + method))

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed

    def run(self, attempt: Callable[[float], T]) -> T:
        """`attempt(seconds left)`, again after a pause while the server is unavailable."""

        def act(deadline: float) -> T:
            try:
                return attempt(max(0.001, deadline - time.monotonic()))
            except grpc.RpcError as error:
                raise self.meaning(error) from None

        return retry(act, self.timeout, self._retries, lambda: self._closed)

    def opened(self, call: Any, first: Callable[[], T], seconds: float) -> T:
        """What `first` waits for on a stream without a deadline of its own, for so many seconds at most."""
        late = threading.Event()

        def give_up() -> None:
            late.set()
            call.cancel()

        timer = threading.Timer(seconds, give_up)
        timer.start()
        try:
            found = first()
        except grpc.RpcError:
            if not late.is_set():
                raise
        finally:
            timer.cancel()
        if late.is_set():
            raise Unavailable(f"{self.address} did not answer within {self.timeout:g} s; is the server running?")
        return found

    def meaning(self, error: Any) -> KVStoreError:
        """The exception that a failed call stands for."""
        code, details = error.code().name, error.details() or ""
        trailing = dict(error.trailing_metadata() or ())
        kind = wire.error_classes().get(trailing.get("kvstore-error", ""))
        if kind is not None:
            return Shed(details, trailing.get("kvstore-reason", "pressure")) if kind is Shed else kind(details)
        if code == "DEADLINE_EXCEEDED" and not self._connected():
            return Unavailable(f"{self.address} did not answer within {self.timeout:g} s; is the server running?")
        if code == "DEADLINE_EXCEEDED":
            return DeadlineExceeded(f"{self.address} did not finish within {self.timeout:g} s")
        return _BY_CODE.get(code, KVStoreError)(f"{self.address}: {_reason(details) or code}")

    def close(self) -> None:
        """End every call and the connection."""
        self._closed = True
        self._lasting.close()
        self._channel.close()

    def _connected(self) -> bool:
        ready = threading.Event()

        def see(state: Any) -> None:
            if state is grpc.ChannelConnectivity.READY:
                ready.set()

        try:
            self._channel.subscribe(see)
            return ready.wait(_PROBE_S)
        finally:
            self._channel.unsubscribe(see)


def _channel(target: str, credentials: Any, options: Any) -> Any:
    if credentials is None:
        return grpc.insecure_channel(target, options)
    return grpc.secure_channel(target, credentials, options)


def client_credentials(ca: Pem, cert: Pem, key: Pem) -> Any:
    """TLS credentials; `ca` None trusts the system's roots, `cert` and `key` are for mutual TLS."""
    return grpc.ssl_channel_credentials(pem_bytes(ca), pem_bytes(key), pem_bytes(cert))
