"""What stays: a policy orders chunks and names the next victim.

A policy sees chunk rows of the index, admissions and hits; it never touches bytes. One instance serves one
namespace in one tier, since memory freed for one tenant is of no use to another. The simulator and the store run
the same classes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore import _native

Rows: TypeAlias = npt.NDArray[np.uint32] | npt.NDArray[np.int64]


class Policy(ABC):
    """An order of chunk rows by what should go first."""

    @abstractmethod
    def admit(self, row: int) -> None:
        """A chunk has come, or has been written again."""

    @abstractmethod
    def hit(self, rows: Rows) -> None:
        """Chunks of one prefix were used, root first.

        They are touched leaf to root, so that the tail of a prefix goes before its head: a chunk without its
        parent is worthless.
        """

    @abstractmethod
    def remove(self, row: int) -> None:
        """A chunk is gone. One that is not here is ignored."""

    @abstractmethod
    def victims(self, after: int = -1) -> Iterator[int]:
        """Rows from the one that should go first, or from the one that follows `after` if that is still here.

        The current row may be removed while iterating.
        """

    @property
    def order(self) -> _native.LruList | None:
        """The list that `admit` pushes to, if it does nothing else: then native code may do it."""
        return None

    @abstractmethod
    def __len__(self) -> int: ...


class Lru(Policy):
    """Least recently used first."""

    def __init__(self, max_rows: int) -> None:
        self._list = _native.LruList(max_rows)

    @property
    def order(self) -> _native.LruList:
        return self._list

    def admit(self, row: int) -> None:
        self._list.push(row)

    def hit(self, rows: Rows) -> None:
        self._list.touch_many(rows, True)

    def remove(self, row: int) -> None:
        self._list.remove(row)

    def victims(self, after: int = -1) -> Iterator[int]:
        row = self._list.newer(after) if after >= 0 and after in self._list else self._list.oldest()
        while row >= 0:
            following = self._list.newer(row)
            yield row
            row = following

    def __len__(self) -> int:
        return len(self._list)
