"""What a look-up has found, and the lease that holds it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from kvstore.api import Backend
from kvstore.cost import Plan
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec


@dataclass
class Hit:
    """The longest prefix that can be loaded.

    `tokens` is its length, `refs` its chunks in order. While the lease lasts nothing of it goes away; `release`
    it (or leave the `with` block) as soon as it is read. `cold` are those of `refs` that were not, or not wholly, in
    the store's DRAM when it was asked; without a lease none are told.

    Of a look-up with a `prompt` it is what is worth loading of that prefix, and `plan` says why; `left_out` tokens
    after it are stored as well, and computed more quickly than loaded.
    """

    spec: KVSpec
    tokens: int
    refs: tuple[ChunkRef, ...]
    lease: bytes = b""
    cold: tuple[ChunkRef, ...] = ()
    plan: Plan | None = None
    left_out: int = 0
    _backend: Backend | None = field(default=None, repr=False)

    def refs_for(self, group: int) -> tuple[ChunkRef, ...]:
        """The chunks that a KV group needs: all of them, or those that a sliding window still reaches."""
        first = self.spec.groups[group].first_needed(self.tokens)
        return tuple(ref for ref in self.refs if ref.end > first)

    def release(self) -> None:
        """End the lease. A second call does nothing."""
        backend, self._backend = self._backend, None
        if backend is not None and self.lease:
            backend.release([self.lease])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
