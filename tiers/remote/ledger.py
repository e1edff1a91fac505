"""What this host has written to a place that others share, noted on a disk of its own, so that a restart knows it.

    FOLDER/LOCK                  held by the one process that uses the folder
    FOLDER/HOST                  the host that used it last
    FOLDER/catalog/              what the digests in rows mean, and what the store puts aside
    FOLDER/PLACE.own             a slot of 168 bytes for every record of this host's in that place

A slot is a checksum of its row (xxh3-64, little-endian), its state, three zeros, and a row of `RECOVERED_DTYPE` whose
location is not used; the first slot holds the magic. A record is noted as intended before it is written to the place,
and as kept once it is there: killed in between, the next start asks the place whose it is. The state is one byte, and
the checksum does not cover it, so that a change of it is never seen in halves. Slots of records that are gone are used
again: the file is as long as the most records that ever were there at a time, and nothing of it is kept in memory
but which slots are free.

Nothing is flushed before `close`: a power loss may forget what was noted in its last seconds.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
from array import array
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import _native
from kvstore.errors import KVStoreError, StorageError
from kvstore.record import Record
from kvstore.spec import KVSpec
from kvstore.tiers.base import RECOVERED_DTYPE
from kvstore.tiers.nvme.catalog import Catalog
from kvstore.tiers.nvme.durable import as_storage_error
from kvstore.tiers.nvme.lock import FolderLock
from kvstore.tiers.nvme.rows import created_at, pack_row

SLOT_DTYPE = np.dtype([("sum", "<u8"), ("state", "u1"), ("_pad", "u1", (3,)), ("row", RECOVERED_DTYPE)])
SLOT_BYTES = SLOT_DTYPE.itemsize
FREE, INTENDED, KEPT = 0, 1, 2
NO_SLOT = 0
MOST_IN_DOUBT = 4096
_MAGIC = b"KVOWN\x00\x00\x01".ljust(SLOT_BYTES, b"\x00")
_HEAD = struct.Struct("<QB3x")
_STATE_AT = 8


class Noted(NamedTuple):
    """What is noted: numbers of slots, which of them are `kept` (not intended), and their rows."""

    slots: npt.NDArray[np.int64]
    kept: npt.NDArray[np.bool_]
    rows: npt.NDArray[Any]


class Ledger:
    """The records of this host in one place, for one process at a time. Any thread may call.

    A disk that fails takes nothing away from the place: what cannot be noted is a record that the next start does not
    know, and `state` says so.
    """

    def __init__(self, folder: Path, place: str) -> None:
        """`place` is how the configuration names the place; another name is another place.

        The folder is made if it is not there (its parent must be). Raises `StorageError` where it cannot be used:
        `FolderInUse` while another process does.
        """
        self.folder, self.notes = folder, list[str]()
        try:
            for each in (folder, folder / "catalog"):
                each.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise as_storage_error(error, f"cannot make {folder}") from error
        self._folder_lock: FolderLock | None = FolderLock(folder / "LOCK")
        self.path = folder / f"{sha256(place.encode()).hexdigest()[:16]}.own"
        self.catalog = Catalog(folder / "catalog")
        self._lock = threading.Lock()
        self._free, self._slots, self._in_doubt = array("q"), 1, 0
        self._trouble, self._fd = "", -1
        try:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._check_host()
            self._check_magic()
        except OSError as error:
            self.close()
            raise as_storage_error(error, f"cannot open {self.path}") from error
        except KVStoreError:
            self.close()
            raise

    @property
    def state(self) -> str:
        """`ok`, or what went wrong last."""
        return self._trouble or "ok"

    def load(self) -> Noted:
        """What is noted, of which the caller frees what is not there. Called once, before anything is written."""
        try:
            plain = np.fromfile(self.path, np.uint8)
        except OSError as error:
            raise as_storage_error(error, f"cannot read {self.path}") from error
        table = plain[: len(plain) // SLOT_BYTES * SLOT_BYTES].view(SLOT_DTYPE)
        self._slots = max(1, len(table))
        sums, file = table["sum"].tolist(), plain.data
        used = [slot for slot in np.flatnonzero(table["state"]).tolist() if slot and _sum(file, slot) == sums[slot]]
        taken = np.zeros(self._slots, bool)
        taken[[0, *used]] = True
        self._free = array("q", np.flatnonzero(~taken)[::-1].tolist())
        slots = np.array(used, np.int64)
        return Noted(slots, table["state"][slots] == KEPT, np.ascontiguousarray(table["row"][slots]))

    def describe(self, namespace: str, spec: KVSpec) -> None:
        """Have what the digests in rows mean on disk, before the first row that names them. Idempotent."""
        try:
            self.catalog.describe(namespace, spec)
        except KVStoreError as error:
            self._trouble = str(error)

    def intend(self, record: Record, header: bytes | memoryview) -> int:
        """Note a record that is about to be written; its slot, or `NO_SLOT` where that cannot be noted."""
        row = pack_row(record, 0, created_at(header))
        with self._lock:
            slot = self._free.pop() if self._free else self._slots
            self._slots = max(self._slots, slot + 1)
        if self._write(slot, 0, _HEAD.pack(_native.xxh3_64(row), INTENDED) + row):
            return slot
        with self._lock:
            self._free.append(slot)
        return NO_SLOT

    def keep(self, slot: int) -> None:
        """The record is there."""
        if slot != NO_SLOT:
            self._write(slot, _STATE_AT, bytes([KEPT]))

    def free(self, slot: int) -> None:
        """The record is not there any more, or is not this host's."""
        if slot != NO_SLOT:
            self._write(slot, _STATE_AT, bytes([FREE]))
            with self._lock:
                self._free.append(slot)

    def doubt(self, slot: int) -> None:
        """Nobody can tell just now whether the record is there and this host's: the next start asks.

        Of 4096 records at most; what comes on top of that is taken for not there.
        """
        if slot == NO_SLOT:
            return
        with self._lock:
            self._in_doubt += 1
            many = self._in_doubt > MOST_IN_DOUBT
        if many:
            self.free(slot)
        else:
            self._write(slot, _STATE_AT, bytes([INTENDED]))

    def close(self) -> None:
        """Flush, and let the next process in. A second call does nothing."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                self._trouble = f"{self.path}: {error.strerror}"
            fd, self._fd = self._fd, -1
            os.close(fd)
        if self._folder_lock is not None:
            self._folder_lock.release()
            self._folder_lock = None

    def _write(self, slot: int, at: int, data: bytes) -> bool:
        try:
            if os.pwrite(self._fd, data, slot * SLOT_BYTES + at) == len(data):
                return True
            self._trouble = f"{self.path} was written in part: is the file system full?"
        except OSError as error:
            self._trouble = f"{self.path}: {error.strerror}"
        return False

    def _check_magic(self) -> None:
        found = os.pread(self._fd, SLOT_BYTES, 0)
        if not found:
            os.pwrite(self._fd, _MAGIC, 0)
        elif found != _MAGIC:
            raise StorageError(
                f"{self.path} is no ledger of this version; move it away to go on without what it knows: what this "
                "host wrote then stays in the shared place until somebody deletes it"
            )

    def _check_host(self) -> None:
        path, here = self.folder / "HOST", socket.gethostname()
        before = path.read_text(errors="replace").strip() if path.exists() else here
        path.write_text(f"{here}\n")
        if before != here:
            self.notes.append(
                f"{self.folder} was used on {before} before, and this is {here}: no two hosts may use copies of it, "
                "since each would delete what the other has written"
            )


def _sum(file: memoryview, slot: int) -> int:
    """The checksum of a slot's row, as it is now."""
    return _native.xxh3_64(file[slot * SLOT_BYTES + _HEAD.size : (slot + 1) * SLOT_BYTES])
