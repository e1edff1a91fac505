"""How long a client goes on trying."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from kvstore.errors import Closed, Unavailable

T = TypeVar("T")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


def retry(attempt: Callable[[float], T], timeout: float, retries: int, closed: Callable[[], bool]) -> T:
    """`attempt(deadline)`, on the clock of `time.monotonic`; again after a growing pause where it is `Unavailable`.

    `Closed` once `closed()`.
    """
    deadline = time.monotonic() + timeout
    tries = 0
    while True:
        if closed():
            raise Closed("this client is closed")
        try:
            return attempt(deadline)
        except Unavailable:
            pause = min(_FIRST_PAUSE_S * 2**tries, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.0)
            tries += 1
            if tries > retries or time.monotonic() + pause >= deadline:
                raise
        time.sleep(pause)
