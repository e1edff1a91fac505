"""What readers wait for: bytes that are to come from each tier, before anybody who asks now is served."""

from __future__ import annotations

import threading


class Backlog:
    """Bytes asked of each tier and not come yet. Any thread may call."""

    def __init__(self, tiers: int) -> None:
        self._lock = threading.Lock()
        self._nbytes = [0] * tiers

    def __getitem__(self, tier: int) -> int:
        return self._nbytes[tier]

    def enter(self, tier: int, nbytes: int) -> Waiting:
        """So many bytes are waited for, until `Waiting.leave`."""
        self._add(tier, nbytes)
        return Waiting(self, tier, nbytes)

    def _add(self, tier: int, nbytes: int) -> None:
        with self._lock:
            self._nbytes[tier] += nbytes


class Waiting:
    """One entry of a backlog."""

    __slots__ = ("_backlog", "_nbytes", "_tier")

    def __init__(self, backlog: Backlog, tier: int, nbytes: int) -> None:
        self._backlog, self._tier, self._nbytes = backlog, tier, nbytes

    def leave(self) -> None:
        """It has come, or will not. A second call does nothing; calls must not run at once."""
        nbytes, self._nbytes = self._nbytes, 0
        if nbytes:
            self._backlog._add(self._tier, -nbytes)
