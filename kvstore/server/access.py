"""Who may come in: listen addresses, certificates, and tokens that are bound to namespaces."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import grpc

from kvstore.config import Config, ServerConfig
from kvstore.errors import ConfigError, InvalidArgument, PermissionDenied, UnknownNamespace
from kvstore.namespace import DEFAULT, check_name

_SCHEME = "Bearer "


@dataclass(frozen=True)
class Caller:
    """Who a request is from: the namespace and the session (empty: none) that its metadata name."""

    namespace: str
    session: bytes


class Access:
    """Tells callers' namespaces by their tokens; where no token is configured, by what they ask for."""

    def __init__(self, config: Config) -> None:
        self._names = frozenset(each.name for each in config.namespaces)
        self._tokens: dict[bytes, str] = {}
        for namespace in config.namespaces:
            for token in namespace.tokens:
                owner = self._tokens.setdefault(_digest(token), namespace.name)
                if not token or owner != namespace.name:
                    raise ConfigError(
                        f"a token of namespace {namespace.name!r} is empty or belongs to {owner!r} too; "
                        "every token opens one namespace"
                    )

        peers = config.peers.token if config.peers is not None else None
        if peers and _digest(peers) in self._tokens:
            raise ConfigError("peers.token is a namespace's token too; other servers need one of their own")
        self._peer = _digest(peers) if peers else b""

    @property
    def guarded(self) -> bool:
        """Whether callers need a token."""
        return bool(self._tokens)

    def caller(self, metadata: Mapping[str, str]) -> Caller:
        """Who asks. Raises `PermissionDenied`, `UnknownNamespace`, `InvalidArgument`."""
        given = metadata.get("authorization", "")
        token = given[len(_SCHEME) :] if given.startswith(_SCHEME) else ""
        return Caller(self.namespace(token, metadata.get("kvstore-namespace", "")), _session_id(metadata))

    def namespace(self, token: str, asked: str) -> str:
        """The namespace that a token (empty: none) opens. Raises `PermissionDenied`, `UnknownNamespace`."""
        namespace = self._by_token(token, asked) if self._tokens else check_name(asked or DEFAULT)
        if namespace not in self._names:
            raise UnknownNamespace(f"there is no namespace {namespace!r} here; add it to the server's configuration")
        return namespace

    def check_peer(self, token: str) -> None:
        """Raise `PermissionDenied` unless this is the token of peers, which opens every namespace to other servers."""
        if not self._peer:
            raise PermissionDenied("this server takes no peers: give it a token in [peers]")
        if not hmac.compare_digest(self._peer, _digest(token)):
            raise PermissionDenied("this is not the token of peers here; a tenant's opens no other way")

    def _by_token(self, token: str, asked: str) -> str:
        if not token:
            raise PermissionDenied("this server wants a token: send the metadata `authorization: Bearer TOKEN`")
        mine, found = _digest(token), ""
        for digest, namespace in self._tokens.items():
            if hmac.compare_digest(digest, mine):
                found = namespace
        if not found:
            raise PermissionDenied("this token is not known here")
        if asked not in ("", found):
            raise UnknownNamespace(f"this token does not open the namespace {asked!r}")
        return found


def check_exposure(config: ServerConfig, access: Access, listen: str) -> None:
    """Refuse to listen beyond this host without certificate and tokens."""
    if _on_host(listen) or (config.tls_cert and access.guarded):
        return
    missing = [name for name, there in (("TLS", config.tls_cert), ("tokens", access.guarded)) if not there]
    raise ConfigError(
        f"listening on {listen!r} opens the store beyond this host, without {' and '.join(missing)}; set "
        "server.tls_cert and server.tls_key and give every namespace a token, or listen on 127.0.0.1 or unix:PATH"
    )


def server_credentials(config: ServerConfig) -> Any:
    """gRPC credentials from the configured files; None for plain text."""
    if config.tls_cert is None and config.tls_key is None:
        if config.client_ca is not None:
            raise ConfigError("server.client_ca needs server.tls_cert and server.tls_key")
        return None
    if config.tls_cert is None or config.tls_key is None:
        raise ConfigError("server.tls_cert and server.tls_key go together; one of them is missing")
    pair = (_read(config.tls_key, "tls_key"), _read(config.tls_cert, "tls_cert"))
    roots = None if config.client_ca is None else _read(config.client_ca, "client_ca")
    return grpc.ssl_server_credentials([pair], roots, require_client_auth=roots is not None)


def _on_host(listen: str) -> bool:
    if listen.startswith("unix:"):
        return True
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isdecimal() or int(port) > 65535:
        raise ConfigError(f"server.listen must be HOST:PORT or unix:PATH, not {listen!r}")
    host = host.removeprefix("[").removesuffix("]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _session_id(metadata: Mapping[str, str]) -> bytes:
    try:
        return bytes.fromhex(metadata.get("kvstore-session", ""))
    except ValueError:
        raise InvalidArgument("the metadata `kvstore-session` must be 32 hexadecimal digits") from None


def _read(path: Path, setting: str) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"server.{setting}: {path} cannot be read: {error.strerror}") from None
    if b"-----BEGIN" not in data:
        raise ConfigError(f"server.{setting}: {path} is not a PEM file")
    return data


def _digest(token: str) -> bytes:
    return sha256(token.encode()).digest()
