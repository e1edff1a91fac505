"""Objects as files in a folder that several hosts have mounted: NFS, Lustre, CephFS, or a disk.

    ROOT/~~tmp/HOST-PID-RANDOM-NUMBER    what is being written
    ROOT/3f/namespace/spec/~key-part     the object `3f/namespace/spec/key-part`

A `~` is in no name, so that `a` and `a/b` can both be there. Names spread themselves over folders (the tier's begin
with a byte of a digest). A file is written elsewhere, and then given its name by a hard link, which fails where the
name exists: on NFS as well, where renaming does not tell. Files are immutable, so readers need no lock.

Every call to the file system runs in a thread of a native crew (`FileCrew`), which the caller leaves at its
deadline: a hung server holds threads, at most `threads` + `spare`, and no caller.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TypeVar

from kvstore import _native
from kvstore.errors import (
    Closed,
    ConfigError,
    Corrupt,
    DeadlineExceeded,
    InvalidArgument,
    KVStoreError,
    NotFound,
    PermissionDenied,
    StorageError,
    Unavailable,
)
from kvstore.tiers.base import TierFull
from kvstore.tiers.remote.engine import Engine
from kvstore.tiers.remote.object_names import check_name

T = TypeVar("T")
TEMPORARY = "~~tmp"
STALE_S = 3600.0
_LIST_S = 30.0
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ESTALE})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_DENIED = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})
_AWAY = frozenset({
    errno.EIO, errno.ENOTCONN, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ESHUTDOWN,
    errno.ECONNREFUSED, errno.ECONNRESET, errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
})  # fmt: skip


class PosixEngine(Engine):
    """A folder on a shared file system, which must exist (an empty mount point is easily taken for the mount).

    `synced` flushes each file and its folder before `put` returns: then it survives power loss of this host; without,
    the process's death. `threads` calls are in the file system at once; `spare` more may take the place of those that
    hang. `stale_s`: files in `~~tmp` that were last written so long ago, by the file system's own clock, are deleted
    when the engine is opened. `ConfigError` where the folder is missing, not to be written to or without hard links;
    `Unavailable` where it does not answer within `start_timeout_s`.
    """

    kind: ClassVar[str] = "posix"

    def __init__(
        self,
        root: Path,
        *,
        synced: bool = False,
        threads: int = 8,
        spare: int = 8,
        stale_s: float = STALE_S,
        start_timeout_s: float = 10.0,
    ) -> None:
        if threads < 1 or spare < 0 or stale_s <= 0:
            raise InvalidArgument("threads and stale_s are positive, and spare is not negative")
        self.root = Path(root)
        self.swept = 0
        self._synced, self._stale_s = synced, stale_s
        self._most_hung = threads + spare
        self._crew = _native.FileCrew(threads, spare)
        self._closed = False
        self._root = os.fsencode(self.root)
        host = "".join(c if c.isalnum() or c in "-." else "-" for c in socket.gethostname())
        self._own = os.fsencode(f"{TEMPORARY}/{host}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self._numbers = itertools.count()
        try:
            _within(start_timeout_s, self._open, f"{self.root} did not answer within {start_timeout_s:g} s")
        except BaseException:
            self._closed = True
            raise

    @property
    def hung(self) -> int:
        """Calls that were given up and have not returned from the file system."""
        return self._crew.hung

    def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
        path, doing = self._path(name), f"putting {name}"
        beside = self._root + b"/" + self._own + b"-%d" % next(self._numbers)
        try:
            return self._ask(lambda: self._crew.write(beside, path, pieces, self._synced, timeout_s), doing)
        except NotFound as error:  # of a folder that was made when the engine was opened
            raise Unavailable(f"{doing}: {self.root} has no {TEMPORARY} any more: is it mounted?") from error

    def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
        path = self._path(name)
        found = self._ask(lambda: self._crew.read(path, offset, out, timeout_s), f"reading {name}")
        if found != out.nbytes:
            raise Corrupt(f"{name} in {self.root} ends {out.nbytes - found} bytes before {offset + out.nbytes}")

    def heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        if nbytes < 1:
            raise InvalidArgument("the head of an object has one byte at least")
        paths = [self._path(name) for name in names]
        return self._ask(lambda: self._crew.heads(paths, nbytes, timeout_s), f"reading {len(paths)} heads")

    def delete(self, names: Sequence[str], timeout_s: float) -> None:
        paths = [self._path(name) for name in names]
        self._ask(lambda: self._crew.unlink(paths, timeout_s), f"deleting {len(paths)} objects")

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        folder = prefix.rpartition("/")[0]
        waiting = [f"{folder}/" if folder else ""]
        while waiting:
            under = waiting.pop()
            for entry, nbytes in self._entries(under):
                if nbytes >= 0 and entry.startswith("~"):
                    name = under + entry[1:]
                    if name.startswith(prefix):
                        yield name, nbytes
                elif nbytes < 0 and not entry.startswith("~"):
                    deeper = f"{under}{entry}/"
                    if deeper.startswith(prefix) or prefix.startswith(deeper):
                        waiting.append(deeper)

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._crew.close()

    def _entries(self, folder: str) -> Sequence[tuple[str, int]]:
        path = os.path.join(self._root, os.fsencode(folder))
        try:
            entries = self._ask(lambda: self._crew.entries(path, _LIST_S), f"listing {folder or 'everything'}")
        except NotFound:
            return []
        return [(os.fsdecode(name), nbytes) for name, nbytes in entries]

    def _path(self, name: str) -> bytes:
        folder, slash, leaf = check_name(name).rpartition("/")
        return self._root + f"/{folder}{slash}~{leaf}".encode()

    def _ask(self, call: Callable[[], T | None], doing: str) -> T:
        """What a call of the crew came to, with errors in this package's classes."""
        if self._closed:
            raise Closed("the POSIX engine is closed")
        if self._crew.hung >= self._most_hung:
            raise Unavailable(f"{doing}: {self._crew.hung} calls hang in the file system of {self.root}")
        try:
            outcome = call()
        except OSError as error:
            raise self._explained(error, doing) from error
        if outcome is None:
            raise DeadlineExceeded(f"{doing}: the file system of {self.root} did not answer in time")
        return outcome

    def _explained(self, error: OSError, doing: str) -> KVStoreError:
        said = f"{doing}: {error.strerror} ({self.root})"
        if error.errno in _GONE:
            return NotFound(said)
        if error.errno in _FULL:
            return TierFull(said)
        if error.errno in _DENIED:
            return PermissionDenied(said)
        return Unavailable(said) if error.errno in _AWAY else StorageError(said)

    def _open(self) -> None:
        """Find out whether the folder does what is needed. Runs in a thread that may hang."""
        temporary = self.root / TEMPORARY
        try:
            if not self.root.is_dir():
                raise ConfigError(f"{self.root} is no folder: mount the file system there, or make the folder")
            temporary.mkdir(exist_ok=True)
            probe = self.root / os.fsdecode(self._own)
            probe.write_bytes(b"probe")
            try:
                now = probe.stat().st_mtime
                _try_links(probe)
            finally:
                probe.unlink()
            self._sweep(temporary, now)
        except OSError as error:
            raise ConfigError(f"{self.root} cannot be used: {error.strerror}: {error.filename}") from error

    def _sweep(self, temporary: Path, now: float) -> None:
        for path in temporary.iterdir():
            with suppress(FileNotFoundError):
                if now - path.stat().st_mtime > self._stale_s:
                    path.unlink()
                    self.swept += 1


def _try_links(probe: Path) -> None:
    second = probe.with_name(f"{probe.name}-link")
    try:
        os.link(probe, second)
    except OSError as error:
        raise ConfigError(
            f"{probe.parent} has no hard links ({error.strerror}), with which an object is put in place without "
            "replacing another: use NFS, Lustre, CephFS or a local file system"
        ) from error
    try:
        os.link(probe, second)
    except FileExistsError:
        return
    finally:
        second.unlink()
    raise ConfigError(f"{probe.parent} lets a hard link replace a file: two writers of one object would collide")


def _within(seconds: float, work: Callable[[], None], late: str) -> None:
    """Run `work` in a thread that is left when it takes too long: then `Unavailable`."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller
            raised.append(error)

    thread = threading.Thread(target=run, name="kvstore-posix-open", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Unavailable(f"{late}: is the file system mounted, and its server up?")
    if raised:
        raise raised[0]
