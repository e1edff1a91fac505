"""Which tiers and drives are being drained, or are drained, for the store that is opened next.

Kept on every tier that survives the process and has a place for it; what was written last counts, since a drive that is
drained is closed and no longer written to.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import NamedTuple

from kvstore.core import Core
from kvstore.errors import KVStoreError

FILE = "drains"
VERSION = 1


class Mark(NamedTuple):
    """A tier by its name, and the path of one drive of it (empty: all of it)."""

    tier: str
    path: str


class DrainMarks:
    """The marks of one store. For one thread at a time."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._number = 0  # of what was written last

    def recall(self) -> Sequence[Mark]:
        """What was kept last."""
        found = [told for told in map(_parsed, self._kept()) if told is not None]
        if not found:
            return ()
        self._number, marks = max(found)
        return marks

    def keep(self, marks: Collection[Mark]) -> bool:
        """Have these marks and no others from now on; whether any tier keeps them."""
        self._number += 1
        data = json.dumps({"version": VERSION, "number": self._number, "drains": sorted(marks)}).encode()
        for tier in self._core.below:
            if tier.persistent:
                try:
                    tier.put_aside(FILE, data)
                except KVStoreError:
                    continue  # another one may keep it
        return data in self._kept()

    def _kept(self) -> Sequence[bytes]:
        found = list[bytes]()
        for tier in self._core.below:
            if tier.persistent:
                try:
                    found += tier.recall(FILE)
                except KVStoreError:
                    continue
        return found


def _parsed(data: bytes) -> tuple[int, list[Mark]] | None:
    """What `keep` wrote; None for anything else."""
    try:
        told = json.loads(data)
        if told["version"] != VERSION:
            return None
        return int(told["number"]), [Mark(str(tier), str(path)) for tier, path in told["drains"]]
    except (ValueError, KeyError, TypeError):
        return None
