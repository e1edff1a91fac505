"""An engine of the remote tier in this process, for what a real place cannot be made to do at a chosen moment."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import ClassVar

from kvstore.errors import Corrupt, KVStoreError, NotFound
from kvstore.tiers.remote import Engine


class MemoryEngine(Engine):
    """Objects in a dictionary. `calls` counts, `failure` is raised by every call while it is set."""

    kind: ClassVar[str] = "memory"

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.calls: Counter[str] = Counter()
        self.failure: KVStoreError | None = None
        self.closed = False
        self._lock = threading.Lock()

    def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
        self.called("put")
        with self._lock:
            return self.objects.setdefault(name, data := b"".join(pieces)) is data

    def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
        self.called("read")
        data = self.objects.get(name)
        if data is None:
            raise NotFound(name)
        if offset + len(out) > len(data):
            raise Corrupt(f"{name} is short")
        out[:] = data[offset : offset + len(out)]

    def heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        self.called("heads")
        found = [self.objects.get(name) for name in names]
        return [None if data is None else data[:nbytes] for data in found]

    def delete(self, names: Sequence[str], timeout_s: float) -> None:
        self.called("delete")
        for name in names:
            self.objects.pop(name, None)

    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        self.called("list")
        for name, data in list(self.objects.items()):
            if name.startswith(prefix):
                yield name, len(data)

    def probe(self, timeout_s: float) -> None:
        self.called("probe")

    def close(self) -> None:
        self.closed = True

    def called(self, what: str) -> None:
        """Count a call, and fail it while calls are to fail."""
        self.calls[what] += 1
        if self.failure is not None:
            raise self.failure
