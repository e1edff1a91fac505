"""A look-up without a call: what a client on the server's host reads of the index in shared memory."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from kvstore import _native
from kvstore.api import Fidelity, Found, Query
from kvstore.errors import InvalidArgument, StorageError
from kvstore.spec import KVSpec, Part


class SharedIndex:
    """The index of one namespace as the server's `Session.open_shared_index` gives it. Any thread may ask."""

    def __init__(self, fd: int, nbytes: int) -> None:
        """Map the index; the descriptor stays the caller's and may be closed at once.

        `InvalidArgument` for a descriptor that is no shared index of `nbytes` bytes, `StorageError` where it
        cannot be mapped.
        """
        try:
            self._reader = _native.SharedTableReader(fd, nbytes)
        except ValueError as error:
            raise InvalidArgument(str(error)) from None
        except OSError as error:
            raise StorageError(f"the shared index cannot be mapped: {error}") from error
        self._parts: dict[bytes, frozenset[Part]] = {}

    def lookup(self, query: Query) -> Found | None:
        """The answer that the server would give, or None where it must be asked.

        That is: a lease, a lossy reader, some of a spec's parts, a sliding window; a server that is closed or was
        not heard of for 2 seconds; a miss while more chunks are stored than the index has room for; refs that are
        malformed. Like every answer without a lease it is a hint. Hits are not counted in the server's statistics.
        """
        spec = query.spec
        if query.lease or query.fidelity is not Fidelity.EXACT:
            return None
        whole = self._parts.get(spec.digest)
        if whole is None:
            whole = self._parts[spec.digest] = _shared_parts(spec)
        if not whole or (query.parts and whole != frozenset(query.parts)):
            return None
        answer = self._reader.lookup(spec.digest, query.refs)
        return None if answer is None else Found(*answer)

    @property
    def reader(self) -> _native.SharedTableReader:
        """The native reader, for hazards."""
        return self._reader

    def close(self) -> None:
        """Unmap the index; every look-up is the server's from now on."""
        self._reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shared_parts(spec: KVSpec) -> frozenset[Part]:
    """The parts of a spec whose chunks are in the shared index; none where it has sliding windows."""
    return frozenset() if any(group.window for group in spec.groups) else frozenset(spec.parts())
