"""Parts in device memory, where they lie: what a reader on the device gets."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

from kvstore.errors import Closed


class DeviceViews:
    """Parts of some chunks as uint8 tensors in the store's own device memory, under a lease, until `close`.

    Close it when everything that reads the tensors is done, on the device, too. They are in the order in which they
    were asked for, None for what does not lie there. After `close`, and once `over` holds, the memory may have been
    given to other chunks of the namespace. Nobody verifies what is read in place.
    """

    def __init__(
        self, tensors: Sequence[Any], release: Callable[[], None], over: Callable[[], bool], deadline: float = math.inf
    ) -> None:
        """`release` ends the lease, and is called once; `over` says whether it has ended without that.

        `deadline`, on the clock of `time.monotonic`, is when the lease ends by itself.
        """
        self._tensors: tuple[Any, ...] = tuple(tensors)
        self._release, self._over, self._deadline = release, over, deadline
        self._open = True

    @property
    def tensors(self) -> tuple[Any, ...]:
        """A torch tensor for each part that lies there, else None."""
        if not self._open:
            raise Closed("these views were closed already")
        return self._tensors

    @property
    def found(self) -> int:
        """How many parts lie there."""
        return sum(each is not None for each in self.tensors)

    @property
    def over(self) -> bool:
        """Whether the promise has ended: what was read since may be another chunk's."""
        return not self._open or time.monotonic() >= self._deadline or self._over()

    def close(self) -> None:
        """Give the lease back. A second call does nothing."""
        was_open, self._open, self._tensors = self._open, False, ()
        if was_open:
            self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
