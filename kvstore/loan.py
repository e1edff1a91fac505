"""Memory of the arena in somebody's hands, and whether it still is."""

from __future__ import annotations

import contextlib
import weakref

import numpy as np


class Loan:
    """Lends memory out as `data` and knows when nothing stands on it any more.

    Arrays and slices made from `data` (`np.frombuffer(view.data)`) outlive it. Each of them keeps the exporter
    behind it alive, and nothing else does: memory may go to another chunk when the exporter is gone.
    """

    def __init__(self, memory: memoryview, *, readonly: bool = False) -> None:
        exporter = np.frombuffer(memory, np.uint8)
        exporter.flags.writeable = not readonly
        self.data = exporter.data
        self._exporter = weakref.ref(exporter)

    def end(self) -> bool:
        """Take `data` back; False while arrays or slices made from it are still there."""
        with contextlib.suppress(BufferError):
            self.data.release()
        return self._exporter() is None
