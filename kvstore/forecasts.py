"""What plans said that loads would take, against what they took.

So that a tier is believed to be as slow as it is for those who load: whatever its own meter leaves out (a reader that
asks for one chunk at a time, checksums, a DRAM that has to make room first) is in a factor that is learnt here. Loads
scatter about what is expected of them. How far is measured, and a margin of so many times that stands in front of the
factor: it grows with every load that took longer than recomputing and shrinks a little with every other one, so that it
comes to rest where one in a hundred does.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from kvstore.learnt import Learnt
from kvstore.tiers.base import Speed

MOST = 256  # forecasts that wait for their loads
KEPT_S = 60.0  # and how long: then the lease is over, or as good as that
PROMISED_S = 5.0  # for so long a load that has not begun counts as on its way
PROBE_S = 1.0  # the least time between a load and a probe, and between two probes
FIRST_PROBE_S = 0.1  # of a tier of which little is known yet
PROBE_SHARE = 0.1  # of the time of a tier, from which nothing else is loaded, that probes may take
UNKNOWN = Speed(0.0, 0.0, 0.0)


@dataclass(slots=True)
class Forecast:
    """What was said of one plan. `cold` are bytes by chunk that come from below DRAM, most of them from `tier`.

    `plain_s` is the time for them by what the tier itself measures (`speed`), `other_s` that for all else in the plan.
    It is worth it if both together take less than `recompute_s`. A `probe` is loaded for what it teaches.
    """

    tier: int
    cold: dict[int, int]
    plain_s: float
    other_s: float
    recompute_s: float
    speed: Speed = UNKNOWN
    probe: bool = False
    at: float = 0.0
    began: float = 0.0
    factor: float = 1.0
    left: int = field(init=False)
    running: set[int] = field(init=False, default_factory=set)
    shared: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        self.left = sum(self.cold.values())

    def plain_by(self, now: Speed) -> float:
        """What `plain_s` would be by what the tier measures now."""
        if not (self.speed.read_bytes_per_s and now.read_bytes_per_s):
            return self.plain_s
        moving_s = max(0.0, self.plain_s - self.speed.latency_s)
        return now.latency_s + moving_s * self.speed.read_bytes_per_s / now.read_bytes_per_s


class Forecasts:
    """Forecasts whose loads are awaited, by lease, and what was learnt of each tier.

    Needs the store's lock, but for `factor` and `margin`.
    """

    def __init__(self, tiers: int, counters: Counter[str]) -> None:
        self._counters = counters
        self._learnt = [Learnt() for _ in range(tiers)]
        self._probe_at = [0.0] * tiers
        self._waiting: OrderedDict[tuple[int, bytes], Forecast] = OrderedDict()
        self._of_chunk: dict[int, list[tuple[int, bytes]]] = {}

    def factor(self, tier: int) -> float:
        """How many times longer loads from a tier took of late than its speed says."""
        return self._learnt[tier].factor

    def margin(self, tier: int) -> float:
        """How many times longer than expected a load may take and still be worth it."""
        return self._learnt[tier].margin

    def spread(self, tier: int) -> float:
        """How far loads scatter about what is expected of them: the deviation of the logarithm."""
        return self._learnt[tier].spread

    def promised(self, tier: int) -> tuple[int, int]:
        """Bytes of planned loads from a tier that have begun and not ended, and of those that are about to begin."""
        now, begun, to_begin = time.monotonic(), 0, 0
        for each in self._waiting.values():
            if each.tier == tier and each.began:
                begun += max(0, each.left)
            elif each.tier == tier and now - each.at < PROMISED_S:
                to_begin += each.left
        return begun, to_begin

    def expect(self, lease: tuple[int, bytes], forecast: Forecast) -> None:
        """The chunks of a plan are about to be loaded, by whoever holds this lease; it replaces an earlier one."""
        self.released(lease)
        now = time.monotonic()
        while self._waiting and (len(self._waiting) >= MOST or self._oldest.at < now - KEPT_S):
            self.released(next(iter(self._waiting)))
        forecast.at, forecast.factor = now, self.factor(forecast.tier)
        self._waiting[lease] = forecast
        for chunk in forecast.cold:
            self._of_chunk.setdefault(chunk, []).append(lease)

    def probe_due(self, tier: int) -> bool:
        """Whether a tier that nothing is loaded from has been left alone for long enough; the next time is later."""
        now = time.monotonic()
        if now < max(self._probe_at[tier], self._learnt[tier].at + self._pause_s(tier)):
            return False
        self._probe_at[tier] = now + KEPT_S  # or earlier, once this one has ended
        return True

    def copied(self, tier: int, seconds: float, plain_s: float) -> None:
        """Chunks of a tier that nothing has to be loaded from were read, in some seconds instead of `plain_s`."""
        self._learnt[tier].took(seconds, plain_s * self.factor(tier), plain_s)

    def began(self, chunk: int) -> None:
        """A part of a chunk is being loaded into DRAM."""
        for forecast in self._about(chunk):
            forecast.began = forecast.began or time.monotonic()
            forecast.running.add(chunk)

    def ended(self, chunk: int, nbytes: int, tier: int = 0, speed: Speed = UNKNOWN) -> None:
        """So many stored bytes of a chunk have come to DRAM from a tier, whose own meter now says `speed`."""
        for lease in list(self._of_chunk.get(chunk, ())):
            forecast = self._waiting[lease]
            forecast.left -= nbytes
            forecast.shared |= chunk not in forecast.running  # somebody else had begun with it before
            forecast.running.discard(chunk)
            if forecast.left <= 0 and forecast.began:
                now = speed if tier == forecast.tier else UNKNOWN
                self._judge(forecast, time.monotonic() - forecast.began, now)
                self._forget(lease)

    def released(self, lease: tuple[int, bytes]) -> None:
        """A lease is over: what was not loaded under it will not be.

        Where it was still being loaded, and for longer than computing would have taken, that has been lost.
        """
        forecast = self._waiting.get(lease)
        if forecast is None:
            return
        seconds = time.monotonic() - forecast.began
        if forecast.began and forecast.running and seconds + forecast.other_s > forecast.recompute_s:
            self._counters["loads_given_up"] += 1
            self._judge(forecast, seconds, UNKNOWN)
        self._forget(lease)

    def session_over(self, session: int) -> None:
        """All leases of a session are over."""
        for lease in [each for each in self._waiting if each[0] == session]:
            self.released(lease)

    @property
    def _oldest(self) -> Forecast:
        return next(iter(self._waiting.values()))

    def _about(self, chunk: int) -> Iterable[Forecast]:
        return [self._waiting[lease] for lease in self._of_chunk.get(chunk, ())]

    def _judge(self, forecast: Forecast, seconds: float, now: Speed) -> None:
        """A load has taken so long."""
        learnt, expected_s = self._learnt[forecast.tier], forecast.plain_s * forecast.factor
        if forecast.probe:
            self._counters["probes"] += 1
            learnt.outcome(slower=False)  # nobody has lost anything, and who loads nothing must become less careful
        else:
            slower = seconds + forecast.other_s > forecast.recompute_s
            self._counters["loads_judged"] += 1
            self._counters["loads_slower_than_recomputing"] += slower
            self._counters["loads_forecast_us"] += round(expected_s * 1e6)
            self._counters["loads_took_us"] += round(seconds * 1e6)
            learnt.outcome(slower=slower)
        if not forecast.shared:
            learnt.took(seconds, expected_s, forecast.plain_by(now))
        # One that a stall of this machine made long does not put the next one off for as many times longer.
        probing_s = min(seconds, 2 * expected_s) / PROBE_SHARE if forecast.probe else 0.0
        self._probe_at[forecast.tier] = time.monotonic() + max(self._pause_s(forecast.tier), probing_s)

    def _pause_s(self, tier: int) -> float:
        return PROBE_S if self._learnt[tier].is_known else min(PROBE_S, FIRST_PROBE_S)

    def _forget(self, lease: tuple[int, bytes]) -> None:
        forecast = self._waiting.pop(lease, None)
        for chunk in () if forecast is None else forecast.cold:
            leases = self._of_chunk.get(chunk, [])
            if lease in leases:
                leases.remove(lease)
            if not leases:
                self._of_chunk.pop(chunk, None)
