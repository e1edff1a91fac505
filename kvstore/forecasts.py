"""What plans said that loads would take, against what they took.

So that a tier is believed to be as slow as it is for those who load: whatever its own meter leaves out (a reader that asks
for one chunk at a time, checksums, a DRAM that has to make room first) is in a factor that is learnt here.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

MOST = 256  # forecasts that wait for their loads
LEARN = 0.4  # weight of the last load in the logarithm of a tier's factor: one hiccup does not condemn it
FORGET_S = 300.0  # half-life of what was learnt, so that a tier left alone for being slow is tried again
BOUNDS = (0.02, 1000.0)


@dataclass(slots=True)
class Forecast:
    """What was said of one plan. `cold` are bytes by chunk that come from below DRAM, all in `cold_s` from `tier`.

    `plain_s` is that time without the factor; with `other_s` for all else it is what the plan says, to be compared with
    `recompute_s`.
    """

    tier: int
    cold: dict[int, int]
    cold_s: float
    plain_s: float
    other_s: float
    recompute_s: float
    began: float = 0.0
    left: int = field(init=False)

    def __post_init__(self) -> None:
        self.left = sum(self.cold.values())


class Forecasts:
    """Forecasts whose loads are awaited, by lease, and each tier's factor. Needs the store's lock, but for `factor`."""

    def __init__(self, tiers: int, counters: Counter[str]) -> None:
        self._counters = counters
        self._logs = [0.0] * tiers  # of the factors
        self._learnt = [0.0] * tiers
        self._waiting: OrderedDict[tuple[int, bytes], Forecast] = OrderedDict()
        self._of_chunk: dict[int, list[tuple[int, bytes]]] = {}

    def factor(self, tier: int) -> float:
        """How many times longer loads from a tier took of late than its speed says."""
        age = time.monotonic() - self._learnt[tier]
        return math.exp(self._logs[tier] * 0.5 ** (age / FORGET_S))

    def expect(self, lease: tuple[int, bytes], forecast: Forecast) -> None:
        """The chunks of a plan are about to be loaded, by whoever holds this lease; it replaces an earlier one."""
        self._forget(lease)
        while len(self._waiting) >= MOST:
            self._forget(next(iter(self._waiting)))
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

    def _about(self, chunk: int) -> Iterable[Forecast]:
        return [self._waiting[lease] for lease in self._of_chunk.get(chunk, ())]

    def _judge(self, forecast: Forecast, seconds: float) -> None:
        self._counters["loads_judged"] += 1
        if seconds + forecast.other_s > forecast.recompute_s:
            self._counters["loads_slower_than_recomputing"] += 1
        self._counters["loads_forecast_us"] += round(forecast.cold_s * 1e6)
        self._counters["loads_took_us"] += round(seconds * 1e6)
        low, high = BOUNDS
        known = math.log(self.factor(forecast.tier))
        told = math.log(min(high, max(low, seconds / max(forecast.plain_s, 1e-6))))
        self._logs[forecast.tier] = known + LEARN * (told - known)
        self._learnt[forecast.tier] = time.monotonic()

    def _forget(self, lease: tuple[int, bytes]) -> None:
        forecast = self._waiting.pop(lease, None)
        for chunk in () if forecast is None else forecast.cold:
            leases = self._of_chunk.get(chunk, [])
            if lease in leases:
                leases.remove(lease)
            if not leases:
                self._of_chunk.pop(chunk, None)
