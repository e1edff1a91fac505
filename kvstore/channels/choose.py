"""`kvstore.connect`: which way to a server a client takes.

The scheme of the URL forces one. Without a scheme the client asks the server over gRPC what it offers, at its first
call, and takes the best: the local channel where both are on one host, then the bulk channel, then gRPC.
"""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from kvstore.api import Backend
from kvstore.channels.lines import Lines, hello_message
from kvstore.channels.options import Options, tls_context
from kvstore.channels.stream import Stream
from kvstore.client import Client
from kvstore.errors import Closed, InvalidArgument, KVStoreError

SESSION_BYTES = 16
PROBE_S = 1.0  # for a channel that a firewall may swallow


def connect_remote(url: str, **options: Any) -> Client:
    """A client of the server at `url`.

    `HOST:PORT` takes the best channel that the server there offers to this host. `local:PATH` forces the local
    channel, `bulk://HOST:PORT` and `bulks://…` (TLS) the bulk channel, `grpc://HOST:PORT`, `grpcs://…` (TLS) and
    `unix:PATH` gRPC.

    `ca` (a path or PEM bytes) is the authority that signed the server's certificate and turns TLS on; `cert` and
    `key` are the client's own, for mutual TLS. The token decides the namespace; `namespace` counts on servers
    without tokens. Every call ends within `timeout` seconds; those that find the server unavailable are made up to
    `retries` times more, after growing pauses. A batch of many MiB comes over up to `streams` connections of the bulk
    channel at once (0: as suits this host's cores). Nothing is sent before the first call.
    """
    given = Options(**options)
    scheme, mark, rest = url.partition("://")
    if url.startswith("local:"):
        return Client(local_backend(url.removeprefix("local:").removeprefix("//"), given))
    if mark and scheme in ("bulk", "bulks"):
        return Client(bulk_backend(rest.rstrip("/"), given, secure=scheme == "bulks" or given.secure))
    if mark or url.startswith("unix:"):
        return Client(grpc_backend(url, given))
    chosen = Chosen(url, given)
    client = Client(cast(Backend, chosen))
    chosen.tell = client.use
    return client


def grpc_backend(url: str, options: Options) -> Backend:
    """gRPC at an address."""
    from kvstore.channels.grpc import GrpcBackend
    from kvstore.channels.link import Address, Link, client_credentials

    address, session = Address.parse(url), os.urandom(SESSION_BYTES)
    metadata = [("kvstore-session", session.hex())]
    if options.token:
        metadata.append(("authorization", f"Bearer {options.token}"))
    if options.asked:
        metadata.append(("kvstore-namespace", options.asked))
    secure = address.secure or options.secure
    credentials = client_credentials(options.ca, options.cert, options.key) if secure else None
    return GrpcBackend(Link(address, tuple(metadata), credentials, options.timeout, options.retries))


def bulk_backend(address: str, options: Options, *, secure: bool) -> Backend:
    """The bulk channel at HOST:PORT."""
    from kvstore.channels.bulk import BulkBackend, dial_tcp

    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise InvalidArgument(f"{address!r} is no bulk channel; use bulk://HOST:PORT")
    name = f"bulk://{address}"
    dial = dial_tcp(host, int(port), tls_context(options) if secure else None, name)
    return BulkBackend(open_lines(dial, options, name), options.connections)


def local_backend(path: str, options: Options) -> Backend:
    """The local channel at a socket's path."""
    from kvstore.channels.local import LocalBackend

    if not path:
        raise InvalidArgument("local: wants the path of a server's socket; use local:/run/kvstore.sock")
    return LocalBackend(path, options)


def open_lines(dial: Callable[[float], Stream], options: Options, name: str, **more: Any) -> Lines:
    """Connections in a session of their own."""
    hello = hello_message(os.urandom(SESSION_BYTES), options.token, options.asked)
    return Lines(dial, hello, name=name, timeout=options.timeout, retries=options.retries, **more)


class Chosen:
    """Stands in for the backend until the first call, which finds out what the server offers.

    `tell` is given the backend that it comes to.
    """

    def __init__(self, url: str, options: Options) -> None:
        self.tell: Callable[[Backend], None] = lambda backend: None
        self._url = url
        self._options = options
        self._asked = grpc_backend(url, options)
        self._found: Backend | None = None
        self._closed = False
        self._lock = threading.Lock()

    def resolve(self) -> Backend:
        """The backend; asks the server the first time."""
        with self._lock:
            if self._closed:
                raise Closed("this client is closed")
            if self._found is None:
                self._found = self._choose()
                if self._found is not self._asked:
                    self._asked.close()
                self.tell(self._found)
            return self._found

    def close(self) -> None:
        """Close whatever is open."""
        with self._lock:
            self._closed = True
            (self._found or self._asked).close()

    def __getattr__(self, name: str) -> Any:
        if not hasattr(Backend, name):
            raise AttributeError(name)

        def later(*args: Any, **kwargs: Any) -> Any:
            return getattr(self.resolve(), name)(*args, **kwargs)

        return later

    def _choose(self) -> Backend:
        told = self._asked.describe().extra
        instance, path, bulk = told.get("instance", ""), told.get("local", ""), told.get("bulk", "")
        quick = replace(self._options, timeout=min(self._options.timeout, PROBE_S), retries=0)
        if path and Path(path).is_socket() and _reaches(instance, local_backend(path, quick)):
            return local_backend(path, self._options)
        for address in _bulk_addresses(self._url, bulk):
            secure = self._options.secure
            if _reaches(instance, bulk_backend(address, quick, secure=secure)):
                return bulk_backend(address, self._options, secure=secure)
        return self._asked


def _bulk_addresses(url: str, bulk: str) -> list[str]:
    """Where a bulk channel may be reached that the server at `url` listens on as `bulk` (empty: it has none).

    Under the name by which the server is known here, which is also in its certificate; or where it says, if that is
    another place than all of its host's.
    """
    if not bulk:
        return []
    host, _, port = bulk.rpartition(":")
    here = f"{url.rpartition(':')[0]}:{port}"
    try:
        told = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return [here]
    return [here] if told.is_unspecified or told.is_loopback or bulk == here else [here, bulk]


def _reaches(instance: str, backend: Backend) -> bool:
    """Whether a backend of another channel reaches the server of this instance; another may have its old address."""
    try:
        return bool(instance) and backend.describe().extra.get("instance") == instance
    except KVStoreError:  # a firewall, another user, a socket that is gone
        return False
    finally:
        backend.close()
