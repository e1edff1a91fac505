"""How long a client goes on trying."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from kvstore.errors import Closed, Unavailable

T = TypeVar("T")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0


class Hopeless(Unavailable):
    """A server that asking again will not make available: its certificate is not to be trusted."""


class Patience:
    """What is left of one call's time and tries.

    `deadline` is on the clock of `time.monotonic`; left out, it is `timeout` from now.
    """

    def __init__(self, timeout: float, retries: int, closed: Callable[[], bool], deadline: float | None = None) -> None:
        self.deadline = time.monotonic() + timeout if deadline is None else deadline
        self._tries_left = retries
        self._closed = closed
        self._pause = _FIRST_PAUSE_S

    def check(self) -> None:
        """Raise `Closed` where the client is."""
        if self._closed():
            raise Closed("this client is closed")

    def after(self, error: Unavailable) -> None:
        """Pause before the next try; raise `error` where there is none, `Closed` where the client is closed."""
        self.check()
        pause = self._pause * random.uniform(0.5, 1.0)
        if isinstance(error, Hopeless) or not self._tries_left or time.monotonic() + pause >= self.deadline:
            raise error
        self._tries_left -= 1
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
        time.sleep(pause)


def retry(attempt: Callable[[float], T], timeout: float, retries: int, closed: Callable[[], bool]) -> T:
    """`attempt(deadline)`; again after a growing pause where it is `Unavailable`. `Closed` once `closed()`."""
    patience = Patience(timeout, retries, closed)
    while True:
        patience.check()
        try:
            return attempt(patience.deadline)
        except Unavailable as error:
            patience.after(error)
