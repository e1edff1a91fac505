"""What a serving process does to itself."""

from __future__ import annotations

import ctypes
import os

from kvstore.errors import StorageError

_PR_SET_DUMPABLE = 4  # linux/prctl.h


def forbid_inspection() -> None:
    """Make this process non-dumpable: other processes of its user can no longer open its memory or descriptors.

    Its own threads still can, and root or whoever holds CAP_SYS_PTRACE is never stopped. It leaves no core dumps.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        raise StorageError(f"this process cannot be made non-dumpable: {os.strerror(ctypes.get_errno())}")
