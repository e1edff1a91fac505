"""What the remote tier asks of an engine: bytes by name, in a place that others share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar

PROBE = "probe"


class Engine(ABC):
    """Bytes by name in a place that others share.

    An object is written whole, once, and is immutable until it is deleted; one that was only half written is never
    seen by anybody. Names are ASCII of `[a-z0-9/._-]`, at most 200 characters. Every call ends within `timeout_s`
    seconds or raises `Unavailable` (nobody there, connection lost) or `DeadlineExceeded`; a call may be repeated
    after either. `PermissionDenied` and `StorageError` are of requests that will not go better when repeated. Safe
    from any thread; nothing but `close` is called after `close`. An engine neither retries nor breaks circuits: the
    tier does. It is opened by its constructor, which raises `ConfigError` for a place that cannot work and
    `Unavailable` where nobody answers.
    """

    kind: ClassVar[str]  # "valkey", "s3", "posix", "peer"

    @abstractmethod
    def put(self, name: str, pieces: Sequence[memoryview], timeout_s: float) -> bool:
        """Keep the concatenation of `pieces` (C-contiguous bytes) under `name`, whole or not at all.

        False: the name is there already and nothing was changed. After an error either may be the case. Raises
        `TierFull` where the place has no room.
        """

    @abstractmethod
    def read_into(self, name: str, offset: int, out: memoryview, timeout_s: float) -> None:
        """Fill `out` (contiguous, writable bytes) from an object, `offset` bytes after its beginning.

        `NotFound` if there is none of that name; `Corrupt` if it is shorter than `offset + out.nbytes`. When this
        has returned or raised, nothing writes into `out` any more.
        """

    @abstractmethod
    def heads(self, names: Sequence[str], nbytes: int, timeout_s: float) -> Sequence[bytes | None]:
        """The first `nbytes` bytes of each object (all of it where it is shorter); None for each that is not there."""

    @abstractmethod
    def delete(self, names: Sequence[str], timeout_s: float) -> None:
        """Remove objects; one that is not there is no error."""

    @abstractmethod
    def list(self, prefix: str) -> Iterator[tuple[str, int]]:
        """(name, bytes) of every object whose name begins with `prefix`, in any order; may be long, may repeat."""

    def probe(self, timeout_s: float) -> None:
        """Return if the place answers; raise as a look-up would."""
        self.heads([PROBE], 1, timeout_s)

    @abstractmethod
    def close(self) -> None:
        """Give everything back. A second call does nothing."""
