"""Which blocks of vLLM's own prefix cache were computed after a lossy load, and must not be stored as exact."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class Taint:
    """Hashes of blocks, vLLM's own, in this process alone; the least recently asked for are forgotten first.

    A block is found in vLLM's cache only while it is one of the engine's, so a limit of several times their number
    forgets nothing that can still be hit.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._hashes: OrderedDict[bytes, None] = OrderedDict()

    def mark(self, hashes: Sequence[bytes]) -> None:
        """These blocks are tainted."""
        for each in hashes:
            self._hashes[each] = None
            self._hashes.move_to_end(each)
        while len(self._hashes) > self._limit:
            self._hashes.popitem(last=False)

    def first(self, hashes: Sequence[bytes]) -> int | None:
        """Which of the blocks, in the order of a prompt, is the first tainted one; None if none is."""
        found = [each for each in hashes if each in self._hashes]
        for each in found:
            self._hashes.move_to_end(each)
        return hashes.index(found[0]) if found else None
