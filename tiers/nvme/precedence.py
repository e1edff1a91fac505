"""Reads go ahead of writes: somebody waits for a read, while a write is behind an acknowledgement from DRAM."""

from __future__ import annotations

import time

from kvstore.tiers.meter import Meter

_MOST_S = 0.001  # that one write waits: with reads all the time, writes go on, a millisecond later each
_STEP_S = 0.0002


class Precedence:
    """Lets writes wait for the reads that are under way, for a little."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def give_way(self) -> None:
        """Return when nobody reads, or after a millisecond."""
        if not self._meter.reads.active:
            return
        self._meter.count("gave_way")
        deadline = time.monotonic() + _MOST_S
        while self._meter.reads.active and time.monotonic() < deadline:
            time.sleep(_STEP_S)
