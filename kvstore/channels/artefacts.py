"""Artefacts on a client's side: fetched from the server by digest, once per process, checked, kept."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from kvstore.codecs import Artefact
from kvstore.codecs.artefact import MAX_BYTES
from kvstore.errors import Corrupt, NotFound

FetchPiece = Callable[[bytes, int], tuple[int, bytes]]  # digest, offset → bytes of the whole file, bytes from there on
_known: dict[bytes, Artefact] = {}
_lock = threading.Lock()


def find(digest: bytes, fetch: FetchPiece) -> Artefact:
    """An artefact by its digest, from this process or the server. `NotFound` where neither has it.

    Several threads that ask at once may each fetch it; one of the results is kept.
    """
    found = _known.get(digest)
    if found is None:
        found = Artefact.from_bytes(fetch_file(digest, fetch))
        with _lock:
            found = _known.setdefault(digest, found)
    return found


def fetch_file(digest: bytes, fetch: FetchPiece) -> bytes:
    """An artefact's file, piece by piece. `Corrupt` where it is not what its digest says."""
    data = bytearray()
    while True:
        total, piece = fetch(digest, len(data))
        data += piece
        if not piece and len(data) < total:
            raise NotFound(f"the artefact {digest.hex()} is not here: the server sent {len(data)} of {total} bytes")
        if total > MAX_BYTES or len(data) > total:
            raise Corrupt(f"the server sent {len(data)} bytes of an artefact of {total}")
        if len(data) == total:
            break
    if hashlib.sha256(data).digest()[: len(digest)] != digest or len(digest) != 16:
        raise Corrupt(f"what the server sent as the artefact {digest.hex()} is something else")
    return bytes(data)
