"""Files that appear whole or not at all, and what an `OSError` means to a tier."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from kvstore.errors import KVStoreError, StorageError
from kvstore.tiers.base import TierFull

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive power loss."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_all(fd: int, data: memoryview | bytes, offset: int) -> None:
    """`pwrite` until every byte is written; `OSError` as the system gives it."""
    done = os.pwrite(fd, data, offset)
    view, offset = memoryview(data)[done:], offset + done
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


def replace_file(path: Path, pieces: Iterable[memoryview | bytes]) -> None:
    """Write `path` so that a crash leaves the old content or the new: temporary file, fsync, rename, fsync."""
    temporary = path.with_name(path.name + ".tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        offset = 0
        for piece in pieces:
            write_all(fd, piece, offset)
            offset += len(piece)
        os.fsync(fd)
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
    os.rename(temporary, path)
    sync_folder(path.parent)


def as_storage_error(error: OSError, action: str) -> KVStoreError:
    """`TierFull` where the file system has no room, `StorageError` for everything else."""
    if error.errno in _FULL:
        return TierFull(f"{action}: the file system has no room left ({error.strerror})")
    return StorageError(f"{action}: {error.strerror or error}; check the disk and the system's log")


def why_unusable(folder: Path, is_in_place: Callable[[], bool], *, write: bool) -> str:
    """What is wrong with a folder that was fine: unmounted, read-only, failing. Empty if nothing is, or it is full.

    With `write` a block is written, flushed and read back.
    """
    try:
        if not is_in_place():
            return "the folder was unmounted or replaced"
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return "the file system is read-only"
        if write:
            _write_and_read(folder)
    except OSError as error:
        return "" if error.errno in _FULL else str(error.strerror or error)
    return ""


def _write_and_read(folder: Path) -> None:
    path = folder / f".probe-{os.getpid()}-{threading.get_ident()}"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with mmap.mmap(-1, 4096) as block:
            block[:] = os.urandom(4096)
            if os.pwrite(fd, block, 0) != 4096:
                raise OSError(errno.EIO, "a block was written in part")
            os.fsync(fd)
            os.posix_fadvise(fd, 0, 4096, os.POSIX_FADV_DONTNEED)
            if os.pread(fd, 4096, 0) != block[:]:
                raise OSError(errno.EIO, "a block reads otherwise than it was written")
    finally:
        os.close(fd)
        os.unlink(path)
