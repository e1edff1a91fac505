"""Bringing the memory of devices into being, piece by piece, ahead of use.

The first touch of a page costs more than a copy into it, and where there is no memory for it the process dies: so
records lie in what is there already.
"""

from __future__ import annotations

import atexit
import threading
from collections import deque
from collections.abc import Callable, Sequence

from kvstore.errors import StorageError
from kvstore.tiers.cxl.regions import Region

STEP = 64 << 20
Range = tuple[int, int, int]  # device, offset among its records, bytes


class Populator:
    """Populates `ranges`, then calls `release` for each piece; the first piece of every device before it returns.

    `data_at` says where each region's records begin. Raises `StorageError` if the first pieces cannot be had.
    """

    def __init__(
        self, regions: Sequence[Region], data_at: Sequence[int], ranges: Sequence[Range],
        release: Callable[[int, int, int], None], name: str,
    ) -> None:  # fmt: skip
        self._regions, self._data_at, self._release = regions, data_at, release
        self.total = sum(nbytes for _, _, nbytes in ranges)
        self.done = 0
        self.lost = 0
        self.error: StorageError | None = None
        self._stopping = False
        self._change = threading.Condition()
        self._queue = _in_turns(ranges, len(regions))
        for _ in range(min(len(regions), len(self._queue))):
            self._step(self._queue.popleft())
        self._thread: threading.Thread | None = None
        if self._queue:
            self._thread = threading.Thread(target=self._run, name=f"kvstore-{name}-populate", daemon=True)
            self._thread.start()
            atexit.register(self.stop)  # a thread that the interpreter's end meets in native code takes it down

    @property
    def running(self) -> bool:
        """Whether there is more to come."""
        return bool(self._queue)

    def wait(self, seconds: float) -> None:
        """Return after the next piece, at once if there is none, or after so many seconds."""
        with self._change:
            if self._queue:
                self._change.wait(seconds)

    def stop(self) -> None:
        """End the work."""
        self._stopping = True
        if self._thread is not None:
            self._thread.join()
            atexit.unregister(self.stop)

    def _run(self) -> None:
        while self._queue and not self._stopping:
            try:
                self._step(self._queue[0])
            except StorageError as error:
                self.error = error
            with self._change:
                if self.error is not None:
                    self.lost = self.total - self.done
                    self._queue.clear()
                else:
                    self._queue.popleft()
                self._change.notify_all()

    def _step(self, piece: Range) -> None:
        device, offset, nbytes = piece
        self._regions[device].populate(self._data_at[device] + offset, nbytes)
        self._release(device, offset, nbytes)
        self.done += nbytes


def _in_turns(ranges: Sequence[Range], devices: int) -> deque[Range]:
    """Pieces of `STEP` bytes at most, one of each device in turn."""
    of_each: list[deque[Range]] = [deque() for _ in range(devices)]
    for device, offset, nbytes in ranges:
        for at in range(0, nbytes, STEP):
            of_each[device].append((device, offset + at, min(STEP, nbytes - at)))
    queue: deque[Range] = deque()
    while any(of_each):
        queue.extend(each.popleft() for each in of_each if each)
    return queue
