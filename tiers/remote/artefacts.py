"""Artefacts in a place that hosts share: objects named by their digest, which whoever finds one checks.

`artefacts/DIGEST` is 16 bytes (the magic `KVSTART1`, the file's length as u64, little-endian) and the file. No host
deletes one, since none knows which records of all hosts name it: `kvstore remote sweep` reads them all.
"""

from __future__ import annotations

import hashlib
import struct
import threading
import time

from kvstore.errors import Corrupt, NotFound
from kvstore.tiers.remote.attempts import Attempts
from kvstore.tiers.remote.engine import Engine

PREFIX = "artefacts/"
MOST_BYTES = 256 << 20
LOOK_AGAIN_S = 60.0  # whether it is still there: a place may evict what it likes
_HEAD = struct.Struct("<8sQ")
_MAGIC = b"KVSTART1"


class SharedArtefacts:
    """The artefacts in one place. A call may take `deadline_s` and the time that its bytes need."""

    def __init__(self, engine: Engine, attempts: Attempts, deadline_s: float, least_bytes_per_s: float) -> None:
        self._engine, self._attempts = engine, attempts
        self._deadline_s, self._least_bytes_per_s = deadline_s, least_bytes_per_s
        self._seen: dict[bytes, float] = {}
        self._lock = threading.Lock()

    def keep(self, digest: bytes, data: bytes) -> None:
        """See `Tier.keep_artefact`. One that is there already is read once, and replaced where it is damaged."""
        last = self._seen.get(digest)
        if last is not None and time.monotonic() - last < LOOK_AGAIN_S:
            return
        if len(data) > MOST_BYTES:
            raise NotFound(f"the artefact {digest.hex()} has {len(data)} bytes; {MOST_BYTES} at most are shared")
        with self._lock:  # a record waits for it, so others need not write it as well
            last = self._seen.get(digest)
            if last is not None and time.monotonic() - last < LOOK_AGAIN_S:
                return
            if last is None or not self._is_there(digest, len(data)):
                self._write(digest, data)
            self._seen[digest] = time.monotonic()

    def fetch(self, digest: bytes) -> bytes:
        """See `Tier.fetch_artefact`."""
        name = _name(digest)
        nbytes = self._length(digest)
        if nbytes < 0:
            raise NotFound(f"the artefact {digest.hex()} is not in the shared place")
        if nbytes > MOST_BYTES:
            raise NotFound(f"the artefact {digest.hex()} in the shared place says it has {nbytes} bytes: too many")
        data = bytearray(nbytes)
        try:
            self._attempts.run(
                lambda left: self._engine.read_into(name, _HEAD.size, memoryview(data), left), self._timeout(nbytes)
            )
        except Corrupt as error:
            raise NotFound(f"the artefact {digest.hex()} in the shared place is cut off: {error}") from None
        if hashlib.sha256(data).digest()[: len(digest)] != digest:
            raise NotFound(f"the artefact {digest.hex()} in the shared place is damaged, or another")
        return bytes(data)

    def _write(self, digest: bytes, data: bytes) -> None:
        name, pieces = _name(digest), [memoryview(_HEAD.pack(_MAGIC, len(data))), memoryview(data)]
        timeout_s = self._timeout(len(data))
        if self._attempts.run(lambda left: self._engine.put(name, pieces, left), timeout_s):
            return
        try:
            self.fetch(digest)
        except NotFound:
            self._attempts.run(lambda left: self._engine.delete([name], left), self._deadline_s)
            self._attempts.run(lambda left: self._engine.put(name, pieces, left), timeout_s)

    def _is_there(self, digest: bytes, nbytes: int) -> bool:
        return self._length(digest) == nbytes

    def _length(self, digest: bytes) -> int:
        """The length of an artefact's file as its object says; -1 where there is none."""
        (head,) = self._attempts.run(
            lambda left: self._engine.heads([_name(digest)], _HEAD.size, left), self._deadline_s
        )
        if head is None or len(head) < _HEAD.size:
            return -1
        magic, nbytes = _HEAD.unpack(head[: _HEAD.size])
        return int(nbytes) if magic == _MAGIC else -1

    def _timeout(self, nbytes: int) -> float:
        return self._deadline_s + nbytes / self._least_bytes_per_s


def _name(digest: bytes) -> str:
    return PREFIX + digest.hex()
