"""A trace of a live server: its look-ups, in the format that `kvstore.sim.formats` reads.

An id is a hash of the chunk's key with a salt that is forgotten at the end, so that a trace says which prefixes were
alike, how long prompts were and when they came, and nothing of what is stored.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.api import Event
from kvstore.client import Client
from kvstore.errors import StorageError
from kvstore.rows import REF_DTYPE

HELD_BACK = 1000  # prompts of one chunk that wait for a longer one, which shows how long a whole chunk is
Chain: TypeAlias = list[tuple[bytes, int]]


@dataclass
class Recorded:
    """What became of the look-ups seen: written, or left out since they begin inside a prompt or have other chunks.

    `lost` counts the times that the server had to drop some since this reader was too slow.
    """

    requests: int = 0
    left_out: int = 0
    lost: int = 0
    chunk_tokens: int = 0


class Recorder:
    """Writes look-ups to a file, one line each."""

    def __init__(self, path: Path) -> None:
        """`StorageError` where the file cannot be made."""
        self._path = path
        with self._told_of():
            # Not buffered: what was recorded outlives this process, and where there is no room nothing is left over.
            raw = path.open("wb", buffering=0)
            self._file: FileIO | gzip.GzipFile = gzip.GzipFile(fileobj=raw, mode="wb") if path.suffix == ".gz" else raw
            self._raw = raw
        self._salt = secrets.token_bytes(32)
        self._begun_ms = 0
        self._held_back: list[tuple[int, list[tuple[int, int]]]] = []
        self.told = Recorded()

    def take(self, event: Event) -> None:
        """One event. `StorageError` where it cannot be written."""
        if event.kind == "lost":
            self.told.lost += 1
            return
        chain = _chain(np.frombuffer(event.refs, REF_DTYPE))
        self._begun_ms = self._begun_ms or event.at_ms
        hashed = [(self._hashed(event.spec + key), n) for key, n in chain]
        self._held_back.append((event.at_ms - self._begun_ms, hashed))
        if not self.told.chunk_tokens and len(chain) > 1:
            self.told.chunk_tokens = chain[0][1]
        if self.told.chunk_tokens or len(self._held_back) >= HELD_BACK:
            self._write()

    def close(self) -> None:
        """Write what is left."""
        self._write()
        with self._told_of():
            self._file.close()
            self._raw.close()  # which a GzipFile leaves open

    @contextmanager
    def _told_of(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"the trace cannot be written to {self._path}: {error.strerror}") from error

    def _write(self) -> None:
        chains, self._held_back = self._held_back, []
        block = self.told.chunk_tokens or max((n for _, chain in chains for _, n in chain), default=0)
        self.told.chunk_tokens = block
        for at_ms, chain in chains:
            # The format has one block length, of which only the last block of a prompt may have less.
            if not chain or any(n != block for _, n in chain[:-1]) or chain[-1][1] > block:
                self.told.left_out += 1
                continue
            line = {
                "timestamp": at_ms, "input_length": sum(n for _, n in chain), "output_length": 0,
                "block_tokens": block, "hash_ids": [number for number, _ in chain],
            }  # fmt: skip
            self._put(json.dumps(line).encode() + b"\n")
            self.told.requests += 1

    def _put(self, data: bytes) -> None:
        with self._told_of():
            while data:
                data = data[self._file.write(data) :]

    def _hashed(self, key: bytes) -> int:
        return int.from_bytes(hashlib.blake2b(key, digest_size=8, key=self._salt).digest(), "little") >> 1


def record(
    client: Client, path: Path, *, ready: Callable[[Callable[[], None]], None], seconds: float = 0.0
) -> Recorded:
    """Record the look-ups of a client's namespace, for some seconds (0: without end) or until it is stopped.

    `ready` is called when every look-up from now on is seen, with what stops the recording from any thread.
    """
    recorder = Recorder(path)
    try:
        events = client.watch(lookups=True)
        stop: Callable[[], None] = events.close  # type: ignore[attr-defined]
        timer = threading.Timer(seconds, stop)
        try:
            ready(stop)
            if seconds:
                timer.start()
            for event in events:
                recorder.take(event)
        finally:
            timer.cancel()
            stop()
    finally:
        recorder.close()
    return recorder.told


def _chain(refs: npt.NDArray[np.void]) -> Chain:
    """Key and tokens of a prompt's chunks, the longest of several at one position. Nothing for what begins later."""
    longest: dict[int, tuple[bytes, int]] = {}
    for ref in refs:
        at, tokens = int(ref["position"]), int(ref["tokens"])
        if tokens > longest.get(at, (b"", 0))[1]:
            longest[at] = (ref["key"].tobytes(), tokens)
    found, at = [], 0
    while at in longest:
        found.append(longest[at])
        at += longest[at][1]
    return found
