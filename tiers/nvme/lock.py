"""One process at a time: an exclusive `flock` on the folder's `LOCK` file, which holds the owner's pid."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kvstore.errors import StorageError


class FolderInUse(StorageError):
    """Another opening holds the folder."""


class FolderLock:
    """Held from construction to `release`. Raises `FolderInUse` while another opening holds it, `StorageError`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be opened for writing ({error.strerror}); use a folder that this process may write to"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise FolderInUse(
                f"{path.parent} is in use by process {holder}; stop it or choose another folder"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def is_in_place(self) -> bool:
        """Whether the path still leads to the file that is held; not so after an unmount. `OSError`."""
        try:
            return os.path.samestat(os.stat(self._path), os.fstat(self._fd))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let the next process in."""
        os.close(self._fd)
