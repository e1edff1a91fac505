"""What plans said that loads would take, against what they took.

So that a tier is believed to be as slow as it is for those who load: whatever its own meter leaves out (a reader that
asks for one chunk at a time, checksums, a DRAM that has to make room first) is in a factor that is learnt here. Loads
scatter about what is expected of them, so a margin stands in front of it, which grows with every load that took longer
than recomputing and shrinks a little with every other one: it comes to rest where one in a hundred does.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST = 256  # forecasts that wait for their loads
KEPT_S = 60.0  # and how long: then the lease is over, or as good as that
LEARN = 0.4  # weight of the last load in the logarithm of a tier's factor
FORGET_S = 300.0  # half-life of what was learnt, so that a tier left alone for being slow is tried again
BOUNDS = (0.02, 1000.0)
SLOWER_SHARE = 0.01  # of loads that may take longer than recomputing
MARGIN_STEP = 0.7  # what one that did adds to the logarithm of the margin
MARGINS = (0.0, math.log(50.0))
FIRST_MARGIN = math.log(1.5)


@dataclass(slots=True)
class Forecast:
    """What was said of one plan. `cold` are bytes by chunk that come from below DRAM, most of them from `tier`.

    `plain_s` is the time for them by what the tier itself measures, `other_s` that for all else in the plan. It is
    worth it if both together take less than `recompute_s`.
    """

    tier: int
    cold: dict[int, int]
    plain_s: float
    other_s: float
    recompute_s: float
    at: float = 0.0
    began: float = 0.0
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = sum(self.cold.values())


class Forecasts:
    """Forecasts whose loads are awaited, by lease, and what was learnt of each tier.

    Needs the store's lock, but for `factor` and `margin`.
    """

    def __init__(self, tiers: int, counters: Counter[str]) -> None:
        self._counters = counters
        self._logs = [0.0] * tiers  # of the factors
        self._margins = [FIRST_MARGIN] * tiers  # logarithms
        self._learnt = [0.0] * tiers
        self._waiting: OrderedDict[tuple[int, bytes], Forecast] = OrderedDict()
        self._of_chunk: dict[int, list[tuple[int, bytes]]] = {}

    def factor(self, tier: int) -> float:
        """How many times longer loads from a tier took of late than its speed says."""
        return math.exp(self._logs[tier] * self._fade(tier))

    def margin(self, tier: int) -> float:
        """How many times longer than expected a load may take and still be worth it."""
        return math.exp(FIRST_MARGIN + (self._margins[tier] - FIRST_MARGIN) * self._fade(tier))

    def expect(self, lease: tuple[int, bytes], forecast: Forecast) -> None:
        """The chunks of a plan are about to be loaded, by whoever holds this lease; it replaces an earlier one."""
        self._forget(lease)
        while self._waiting and (len(self._waiting) >= MOST or self._oldest.at < time.monotonic() - KEPT_S):
            self._forget(next(iter(self._waiting)))
        forecast.at = time.monotonic()
        self._waiting[lease] = forecast
        for chunk in forecast.cold:
            self._of_chunk.setdefault(chunk, []).append(lease)

    def began(self, chunk: int) -> None:
        """A part of a chunk is being loaded into DRAM."""
        for forecast in self._about(chunk):
            forecast.began = forecast.began or time.monotonic()

    def ended(self, chunk: int, nbytes: int) -> None:
        """So many stored bytes of a chunk have come to DRAM."""
        for lease in list(self._of_chunk.get(chunk, ())):
            forecast = self._waiting[lease]
            forecast.left -= nbytes
            if forecast.left <= 0 and forecast.began:
                self._judge(forecast, time.monotonic() - forecast.began)
                self._forget(lease)

    def released(self, lease: tuple[int, bytes]) -> None:
        """A lease is over: what was not loaded under it will not be."""
        if lease in self._waiting:
            self._forget(lease)

    def session_over(self, session: int) -> None:
        """All leases of a session are over."""
        for lease in [each for each in self._waiting if each[0] == session]:
            self._forget(lease)

    @property
    def _oldest(self) -> Forecast:
        return next(iter(self._waiting.values()))

    def _about(self, chunk: int) -> Iterable[Forecast]:
        return [self._waiting[lease] for lease in self._of_chunk.get(chunk, ())]

    def _fade(self, tier: int) -> float:
        age = time.monotonic() - self._learnt[tier]
        return float(0.5 ** (age / FORGET_S))

    def _judge(self, forecast: Forecast, seconds: float) -> None:
        tier, slower = forecast.tier, seconds + forecast.other_s > forecast.recompute_s
        factor, margin = self.factor(tier), self.margin(tier)
        self._counters["loads_judged"] += 1
        if slower:
            self._counters["loads_slower_than_recomputing"] += 1
        self._counters["loads_forecast_us"] += round(forecast.plain_s * factor * 1e6)
        self._counters["loads_took_us"] += round(seconds * 1e6)
        told = math.log(min(BOUNDS[1], max(BOUNDS[0], seconds / max(forecast.plain_s, 1e-6))))
        self._logs[tier] = math.log(factor) + LEARN * (told - math.log(factor))
        moved = math.log(margin) + MARGIN_STEP * (slower - SLOWER_SHARE)
        self._margins[tier] = min(MARGINS[1], max(MARGINS[0], moved))
        self._learnt[tier] = time.monotonic()

    def _forget(self, lease: tuple[int, bytes]) -> None:
        forecast = self._waiting.pop(lease, None)
        for chunk in () if forecast is None else forecast.cold:
            leases = self._of_chunk.get(chunk, [])
            if lease in leases:
                leases.remove(lease)
            if not leases:
                self._of_chunk.pop(chunk, None)
