"""How fast bytes come from the server, as the client's gets have shown."""

from __future__ import annotations

import time
from collections.abc import Sequence

from kvstore.api import Want

LEAST_BYTES = 64 << 10  # a get of fewer says nothing of bandwidth
LEARN = 0.05  # weight of a get that was slower than what is believed
FORGET_S = 300.0  # so old that it is not believed any more


class LinkSpeed:
    """Bytes per second of the best gets of late.

    Many gets are slower since the server had to load first, which its plans count apart: so a faster one is believed at
    once, slower ones little by little.
    """

    def __init__(self) -> None:
        self._bytes_per_s = 0.0
        self._at = 0.0

    @property
    def bytes_per_s(self) -> float:
        """What is believed; 0 where nothing is known."""
        return self._bytes_per_s if time.monotonic() - self._at < FORGET_S else 0.0

    def measured(self, wants: Sequence[Want], outcomes: Sequence[Exception | None], seconds: float) -> None:
        """A get took so long."""
        self.seen(sum(want.out.nbytes for want, each in zip(wants, outcomes, strict=True) if each is None), seconds)

    def seen(self, nbytes: int, seconds: float) -> None:
        """So many bytes came in that time."""
        if nbytes < LEAST_BYTES or seconds <= 0:
            return
        rate, known = nbytes / seconds, self.bytes_per_s
        self._bytes_per_s = rate if rate > known else known + LEARN * (rate - known)
        self._at = time.monotonic()
