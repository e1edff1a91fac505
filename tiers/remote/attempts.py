"""Calls to a place, tried again while that can help: within the deadline, after pauses drawn at random."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from kvstore.errors import DeadlineExceeded, PermissionDenied, StorageError, Unavailable
from kvstore.tiers.remote.breaker import Breaker
from kvstore.tiers.remote.meter import Meter

Result = TypeVar("Result")
FIRST_PAUSE_S = 0.02
LONGEST_PAUSE_S = 0.5
PATIENCE_S = 0.5  # a call that had less time and ran out of it tells little of the place


class Attempts:
    """Up to `tries` tries of a call; what fails in the end opens the breaker.

    The pause before try n is drawn evenly from 0 to 20 ms × 2ⁿ ("full jitter", Brooker, 2015), 500 ms at most.
    """

    def __init__(self, breaker: Breaker, meter: Meter, tries: int) -> None:
        self._breaker, self._meter, self._tries = breaker, meter, tries

    def run(self, call: Callable[[float], Result], timeout_s: float, *, lookup: bool = False) -> Result:
        """`call`, which is told how many seconds are left. `Unavailable` at once while the breaker is open."""
        deadline, tried = time.monotonic() + timeout_s, 0
        while True:
            self._breaker.check(lookup=lookup)
            left = deadline - time.monotonic()
            try:
                if left <= 0:
                    raise DeadlineExceeded(f"there was no answer within {timeout_s:g} s")
                return call(left)
            except Unavailable as error:
                tried += 1
                self._meter.count("errors")
                pause = random.uniform(0, min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**tried))
                if tried >= self._tries or time.monotonic() + pause >= deadline:
                    self._breaker.failed(error)
                    raise
                self._meter.count("retries")
                time.sleep(pause)
            except DeadlineExceeded as error:
                self._meter.count("timeouts")
                self._breaker.failed(error, suspect=timeout_s < PATIENCE_S)
                raise
            except PermissionDenied as error:
                self._meter.count("errors")
                self._breaker.failed(error)
                raise
            except StorageError:  # the place answers, and refuses this one request
                self._meter.count("errors")
                raise
