"""The baseline: a plain copy from memory of the driver's own into memory of its own."""

from __future__ import annotations

import numpy as np

from .driver import Bytes, Driver
from .loop import main


class Memcpy(Driver):
    """A dictionary of arrays."""

    mode = "numpy.copyto"
    note = "baseline: one thread, from and to memory of one process"

    def open(self) -> None:
        """Make the memory that stands for the store."""
        whole = self.memory(self.job.count + self.job.ring)
        self._free = list(whole)
        self._held: dict[str, Bytes] = {}

    def store(self, key: str, data: Bytes) -> None:
        """Copy in."""
        memory = self._free.pop()
        np.copyto(memory, data)
        self._held[key] = memory

    def load(self, key: str, target: Bytes) -> None:
        """Copy out."""
        np.copyto(target, self._held[key])

    def forget(self, key: str) -> None:
        """Free the memory."""
        self._free.append(self._held.pop(key))


if __name__ == "__main__":
    main(Memcpy)
