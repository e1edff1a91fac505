"""Where the local and the bulk channel listen."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import tempfile
import time
from pathlib import Path

from kvstore.config import ServerConfig
from kvstore.errors import ConfigError

AUTO, OFF = "auto", "off"
BACKLOG = 1024
FRESH_S = 60.0  # a server that starts has bound its socket and does not listen yet
PROBE_S = 0.1
_LONGEST_PATH = 107  # of a Unix socket


def check_free(listen: str) -> None:
    """Raise `ConfigError` that says why nothing can listen on an address: gRPC would say only that it is so.

    The socket that a killed server has left at a `unix:` path is removed.
    """
    try:
        if listen.startswith("unix:"):
            path = Path(listen.removeprefix("unix:"))
            _clear(path)
            if not path.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, f"there is no folder {path.parent}")
            return
        host, _, port = listen.rpartition(":")
        _try_to_bind(host.removeprefix("[").removesuffix("]"), int(port))
    except (OSError, OverflowError) as error:
        what = getattr(error, "strerror", None) or error
        raise ConfigError(f"server.listen: cannot listen on {listen}: {what}") from None


def _try_to_bind(host: str, port: int) -> None:
    """`OSError` unless one of a host's addresses can be bound, which is enough for gRPC.

    Of a host without IPv6 that is left to gRPC, which listens on `[::]` by IPv4 there.
    """
    failed: OSError | None = None
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                return
        except OSError as error:
            failed = error
    if failed is not None and (failed.errno in (errno.EADDRINUSE, errno.EACCES) or host not in ("", "::")):
        raise failed


def local_listener(config: ServerConfig, address: str) -> socket.socket | None:
    """A Unix socket that only this user can connect to; None where the channel is off.

    `address` is where gRPC listens: the automatic path is named after it.
    """
    if config.local == OFF:
        return None
    if config.local == AUTO:
        folder = _own_folder()
        _sweep(folder)
        path = folder / f"{_plain(address)}.sock"
    else:
        path = Path(config.local).absolute()
    if len(os.fsencode(path)) > _LONGEST_PATH:
        if config.local == AUTO:  # a test's or container's deep temporary folder: do without
            return None
        raise ConfigError(f"server.local: {path} is longer than the {_LONGEST_PATH} bytes of a Unix socket's path")
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _clear(path)
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(f"server.local: cannot listen on {path}: {error.strerror}") from None
    return listener


def bulk_listener(config: ServerConfig, address: str) -> socket.socket | None:
    """A TCP socket; None where the channel is off.

    The automatic port is the one after gRPC's, or where that is taken any other: clients are told over gRPC.
    """
    if config.bulk == OFF or (config.bulk == AUTO and config.listen.startswith("unix:")):
        return None
    host, port = _split(address if config.bulk == AUTO else config.bulk)
    if config.bulk == AUTO:
        port = 0 if config.listen.rpartition(":")[2] == "0" else port + 1
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        if config.bulk == AUTO and port:
            return socket.create_server((host, 0), family=family, backlog=BACKLOG)
        what = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"server.bulk: cannot listen on {host}:{port}: {what}; set server.bulk to another HOST:PORT or to {OFF!r}"
        ) from None


def bulk_address(listener: socket.socket) -> str:
    """HOST:PORT of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal():
        raise ConfigError(f"server.bulk must be HOST:PORT, {AUTO!r} or {OFF!r}, not {address!r}")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _plain(address: str) -> str:
    return "".join(each if each.isalnum() else "-" for each in address.removeprefix("unix:")).strip("-")


def _own_folder() -> Path:
    """A folder that belongs to this user alone."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    parent = Path(runtime) if runtime and Path(runtime).is_dir() else Path(tempfile.gettempdir())
    folder = parent / f"kvstore-{os.geteuid()}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise ConfigError(f"server.local: {folder} is not a folder that only this user can enter; set server.local")
    return folder


def _clear(path: Path) -> None:
    """Remove the socket of a server that is gone; `OSError` where one still listens or another file is in the way."""
    if not path.is_socket():
        if path.exists():
            raise FileExistsError(errno.EEXIST, "there is a file of another kind", str(path))
        return
    if not _is_deserted(path, 1.0):
        raise OSError(errno.EADDRINUSE, "another server listens there", str(path))
    path.unlink(missing_ok=True)


def _sweep(folder: Path) -> None:
    """Remove the sockets that killed servers have left behind, but none that is being made just now."""
    for path in folder.glob("*.sock"):
        with contextlib.suppress(OSError):
            found = path.lstat()
            if stat.S_ISSOCK(found.st_mode) and time.time() - found.st_mtime > FRESH_S and _is_deserted(path, PROBE_S):
                path.unlink(missing_ok=True)


def _is_deserted(path: Path, patience_s: float) -> bool:
    """Whether nobody listens on a socket. `OSError` where that cannot be told in time."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(patience_s)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return True
    return False
