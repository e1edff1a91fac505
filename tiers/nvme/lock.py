"""One process at a time: an exclusive `flock` on the folder's `LOCK` file, which holds the owner's pid."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from kvstore.errors import StorageError


class FolderLock:
    """Held from construction to `release`. Raises `StorageError` while another opening holds it."""

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(
                f"{path} cannot be opened for writing ({error.strerror}); give the nvme tier a folder that this "
                "process may write to"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise StorageError(
                f"{path.parent} is in use by process {holder}; stop it or choose another folder"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let the next process in."""
        os.close(self._fd)
