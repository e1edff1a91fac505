"""What is learnt from times that were expected and times that it took: how many times longer, and how far they scatter.

Logarithms throughout, as times scatter by factors. One that is slower than the scatter explains may be a hiccup, so it
moves what is believed in part, and the second in a row all the way: then something has changed. What comes that much
faster is believed at once, since nothing is faster than it can be.
"""

from __future__ import annotations

import math
import time
from collections import deque
from statistics import median

LEARN = 0.2  # weight of the last time in what is expected of the next
KEPT = 64  # errors that the spread is of
FORGET_S = 300.0  # half-life of what was learnt, so that what was left alone for being slow is tried again
BOUNDS = (math.log(0.02), math.log(1000.0))
FIRST_SPREAD, LEAST_SPREAD = 0.2, 0.02  # 0.2: a margin of 1.5 until something is known
ENOUGH = 16  # errors, for the spread to be known
FIRST_COUNTS = 2  # as so many errors
DEVIATION = 1.4826  # of a normal scatter, in medians of the errors without their signs
SURPRISE = 3.0  # deviations
SLOWER_SHARE = 0.01  # of loads that may take longer than recomputing
CARE_STEP = 0.5  # what one that did adds to how many deviations the margin is
FIRST_CARE = 2.0
CARES = (1.0, 4.0)
MOST_MARGIN = math.log(50.0)


class Learnt:
    """Of one kind of loads. `at` is when the last one ended (monotonic seconds). Not locked.

    What was learnt fades, by half in `forget_s`.
    """

    def __init__(self, forget_s: float = FORGET_S) -> None:
        self._forget_s = forget_s
        self._log = 0.0  # of the factor
        self._care = FIRST_CARE
        self._errors = deque[float](maxlen=KEPT)  # without their signs
        self._spread = FIRST_SPREAD
        self._was_slow = self._known = False
        self.at = 0.0

    @property
    def factor(self) -> float:
        """How many times longer it takes than it should."""
        return math.exp(self._log * self._fade)

    @property
    def spread(self) -> float:
        """The deviation of the logarithm of what it takes from that of what is expected."""
        return FIRST_SPREAD + (self._spread - FIRST_SPREAD) * self._fade

    @property
    def is_known(self) -> bool:
        """Whether there were enough times for what is said of their spread."""
        return len(self._errors) >= ENOUGH

    @property
    def margin(self) -> float:
        """How many times longer than expected it may take, to be slower than that once in a hundred."""
        care = FIRST_CARE + (self._care - FIRST_CARE) * self._fade
        return math.exp(min(MOST_MARGIN, care * self.spread))

    def outcome(self, *, slower: bool) -> None:
        """Something was relied on, in vain or not."""
        self._keep()
        self._care = min(CARES[1], max(CARES[0], self._care + CARE_STEP * (slower - SLOWER_SHARE)))

    def took(self, seconds: float, expected_s: float, plain_s: float) -> None:
        """It took so long; `expected_s` is what was said, `plain_s` what would be said now without the factor."""
        self._keep()
        error = _log(seconds / max(expected_s, 1e-9))
        most = SURPRISE * max(self._spread, LEAST_SPREAD)
        fast, slow = error < -most, error > most
        before, now = _log(expected_s / max(plain_s, 1e-9)), _log(seconds / max(plain_s, 1e-9))
        if fast or (slow and self._was_slow):
            self._log = now
        elif slow:  # what has been measured meanwhile may say so, too: it is not made up for
            self._log += LEARN * (now - self._log)
        else:
            self._log = before + LEARN * (now - before)
        self._was_slow = slow
        if self._known:  # else it was expected of nothing
            self._errors.append(abs(error))
            self._spread = DEVIATION * median([*self._errors, *[FIRST_SPREAD / DEVIATION] * FIRST_COUNTS])
        self._known = True

    def _keep(self) -> None:
        """Begin from what is left of what was learnt."""
        fade = self._fade
        self._log *= fade
        self._care = FIRST_CARE + (self._care - FIRST_CARE) * fade
        self._spread = FIRST_SPREAD + (self._spread - FIRST_SPREAD) * fade
        if fade < 0.5:
            self._errors.clear()
        self.at = time.monotonic()

    @property
    def _fade(self) -> float:
        return float(0.5 ** ((time.monotonic() - self.at) / self._forget_s))


def _log(times: float) -> float:
    return min(BOUNDS[1], max(BOUNDS[0], math.log(max(times, 1e-9))))
