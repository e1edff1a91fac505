"""Connections to Valkey and Redis, opened by the client library: addresses, TLS, credentials."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from kvstore.errors import ConfigError, DeadlineExceeded, PermissionDenied, Unavailable
from kvstore.tiers.remote.valkey.nodes import Address

_SCHEMES = {"valkey": False, "redis": False, "valkeys": True, "rediss": True, "unix": False}
_PORT = 6379
_DENIED = ("NOAUTH", "WRONGPASS", "NOPERM", "invalid username-password pair", "AUTH ")


@dataclass(frozen=True)
class Place:
    """What a URL says."""

    address: Address
    tls: bool
    username: str
    password: str
    database: int


def parse(url: str) -> Place:
    """Read `valkey://[user[:password]@]host[:port][/database]`, `valkeys://…` or `unix:///path`. `ConfigError`."""
    parts = urlsplit(url)
    shown = url if "@" not in url else f"{parts.scheme}://…@{url.rpartition('@')[2]}"
    if parts.scheme not in _SCHEMES:
        raise ConfigError(f"{shown!r} is no URL of a Valkey: it begins with {'://, '.join(_SCHEMES)}://")
    try:
        port = parts.port or _PORT
        database = int(parts.path.strip("/") or 0) if parts.scheme != "unix" else 0
    except ValueError:
        raise ConfigError(f"{shown!r} must end in a port, and a database if not 0, that are numbers") from None
    username, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "unix":
        if not parts.path:
            raise ConfigError(f"{shown!r} lacks the path of a socket: unix:///path")
        return Place(Address(parts.path, 0), False, username, password, 0)
    return Place(Address(parts.hostname or "localhost", port), _SCHEMES[parts.scheme], username, password, database)


class Connector:
    """Opens connections to the servers of one place, to any of its addresses alike."""

    def __init__(self, place: Place, username: str, password: str, tls: Mapping[str, Any]) -> None:
        try:
            import valkey.connection as library
            import valkey.exceptions as errors
        except ImportError as error:
            raise ConfigError(f"the client is missing ({error}): pip install 'tiered-kvstore[valkey]'") from None
        self._library, self._errors = library, errors
        self._tls = place.tls
        self._options: dict[str, Any] = {
            "username": username or place.username or None, "password": password or place.password or None,
            "db": place.database, "lib_name": None, "lib_version": None,
        }  # fmt: skip
        if place.tls:
            self._options |= _tls_options(tls)
        elif any(value for name, value in tls.items() if name != "verify"):
            raise ConfigError("ca_file, cert_file and key_file are for TLS: use a valkeys:// URL")

    def __call__(self, address: Address, timeout_s: float) -> Any:
        """A connection that is ready, within the time. `Unavailable`, `DeadlineExceeded`, `PermissionDenied`."""
        library, errors = self._library, self._errors
        options = {**self._options, "socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
        if not address.port:
            connection = library.UnixDomainSocketConnection(path=address.host, **options)
        elif self._tls:
            connection = library.SSLConnection(host=address.host, port=address.port, **options)
        else:
            connection = library.Connection(host=address.host, port=address.port, **options)
        try:
            connection.connect()
        except errors.AuthenticationError as error:
            raise PermissionDenied(f"{address} takes no such username and password ({error})") from error
        except errors.TimeoutError as error:
            raise DeadlineExceeded(f"{address} did not answer in time ({error})") from error
        except errors.ConnectionError as error:
            cause = error.__context__
            if isinstance(cause, ssl.SSLError):
                raise PermissionDenied(f"{address} and its certificate are not trusted ({cause})") from error
            raise Unavailable(f"{address}: {_reason(error)}") from error
        except errors.ValkeyError as error:
            text = str(error)
            if text.startswith(_DENIED):
                raise PermissionDenied(f"{address}: {text}") from error
            raise Unavailable(f"{address}: {text}") from error
        return connection


def _reason(error: Exception) -> str:
    """Why there is no connection: the system's words where it is the system's error."""
    cause = error.__context__
    if isinstance(cause, OSError) and cause.strerror:
        return f"{cause.strerror}; is the server running?"
    return " ".join(str(error).split())


def _tls_options(tls: Mapping[str, Any]) -> dict[str, Any]:
    for name in ("ca_file", "cert_file", "key_file"):
        if tls[name] and not Path(tls[name]).is_file():
            raise ConfigError(f"{name}: there is no file {tls[name]}")
    return {
        "ssl_ca_certs": tls["ca_file"] or None,
        "ssl_certfile": tls["cert_file"] or None,
        "ssl_keyfile": tls["key_file"] or None,
        "ssl_cert_reqs": "required" if tls["verify"] else "none",
        "ssl_check_hostname": bool(tls["verify"]),
    }
