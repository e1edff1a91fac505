"""How fast bytes come from the server, as the client's gets have shown."""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from kvstore.api import Want
from kvstore.learnt import Learnt

LEAST_BYTES = 64 << 10  # a get of fewer says nothing of bandwidth
TELLING_BYTES = 1 << 20  # and one of fewer that was slow may have been so for other reasons
PLAIN_BYTES_PER_S = 1e9  # what times are compared with
FORGET_S = 300.0  # so old that it is not believed any more
MOST_WARM = 4096


class LinkSpeed:
    """Bytes per second that gets may be relied on to come with: what they take of late, and a margin for its scatter.

    What came of a plan is not known here, so that the margin is always twice the spread.

    A get of what was not in the server's DRAM is slower since that has to load first, which its plans count apart. So
    slow ones count only of chunks that a look-up has just told to be there (`warm`); of any other one it is known that
    the link is no slower than that.
    """

    def __init__(self) -> None:
        self._learnt = Learnt(forget_s=math.inf)
        self._known = False
        self._lock = threading.Lock()
        self._warm = OrderedDict[bytes, None]()  # keys

    @property
    def bytes_per_s(self) -> float:
        """What is believed; 0 where nothing is known."""
        if not self._known or time.monotonic() - self._learnt.at >= FORGET_S:
            return 0.0
        return PLAIN_BYTES_PER_S / (self._learnt.factor * self._learnt.margin)

    def told(self, warm: Iterable[bytes]) -> None:
        """A look-up has told that these chunks are in the server's DRAM, and holds them there."""
        for key in warm:
            self._warm[key] = None
        while len(self._warm) > MOST_WARM:
            self._warm.popitem(last=False)

    def measured(self, wants: Sequence[Want], outcomes: Sequence[Exception | None], seconds: float) -> None:
        """A get took so long."""
        came = [want for want, each in zip(wants, outcomes, strict=True) if each is None]
        warm = [self._warm.pop(want.ref.key, self) is None for want in wants]
        self.seen(sum(want.out.nbytes for want in came), seconds, warm=all(warm))

    def seen(self, nbytes: int, seconds: float, *, warm: bool) -> None:
        """So many bytes came in that time; `warm` if nothing had to be loaded first."""
        if nbytes < LEAST_BYTES or seconds <= 0:
            return
        with self._lock:
            if self._known and time.monotonic() - self._learnt.at >= FORGET_S:
                self._learnt, self._known = Learnt(forget_s=math.inf), False
            plain_s = nbytes / PLAIN_BYTES_PER_S
            expected_s = plain_s * self._learnt.factor if self._known else seconds
            if self._known and seconds > expected_s and not (warm and nbytes >= TELLING_BYTES):
                return
            self._learnt.took(seconds, expected_s, plain_s)
            self._known = True
