"""A part where it lies in the arena, seen through this process's own mapping of it."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self

from kvstore.errors import Closed
from kvstore.loan import Loan
from kvstore.record import Record, unpack


class LocalView:
    """See `kvstore.api.View`. `close` gives the lease back once no array stands on `data`.

    What is left of it after the client is closed is mapped memory without a promise: the server may put another
    chunk there.
    """

    def __init__(self, memory: memoryview, header: int, release: Callable[[LocalView], None]) -> None:
        """`memory` is the whole record; `release` is called once, when the view is closed."""
        self._header = memory[:header]
        self._loan = Loan(memory[header:], readonly=True)
        self._release = release
        self._open = True

    @property
    def data(self) -> memoryview:
        """The part's bytes, until the view is closed."""
        return self._loan.data

    @property
    def record(self) -> Record:
        """The header of what is viewed."""
        if not self._open:
            raise Closed("this view was closed already")
        return unpack(self._header)

    def over(self) -> bool:
        """Whether nothing stands on the bytes any more."""
        return self._loan.end()

    def close(self) -> None:
        """Let the bytes go, as soon as no array stands on them. A second call does nothing."""
        was_open, self._open = self._open, False
        if was_open:
            self._release(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
