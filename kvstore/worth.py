"""What of a hit is worth loading, from what the tiers do just now: `kvstore.cost.plan`, fed with live figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore import cost
from kvstore.catalog import Scope
from kvstore.core import DRAM, Core
from kvstore.cost import Plan, Prompt, TierSpeed
from kvstore.forecasts import Forecast
from kvstore.policy import Rows
from kvstore.record import RAW
from kvstore.spec import Part
from kvstore.tiers.base import Speed
from kvstore.walk import Flags, Reach, reach_of

PROBE_BYTES = 8 << 20
_ALL, _CUT = 2, 3  # reasons of `kvstore.cost.REASONS`
LEFT_OUT = ("", "left_out_slower", "", "left_out_cut", "left_out_met")  # counters of tokens, by reason


class _Stored(NamedTuple):
    """A run of chunks as it is stored, a row each; `reach` says which refs they are of."""

    tokens: npt.NDArray[np.uint32]
    nbytes: npt.NDArray[np.uint64]
    tiers: npt.NDArray[np.uint8]
    forms: npt.NDArray[np.uint16]
    ends: npt.NDArray[np.int64]


class Asked(NamedTuple):
    """A look-up with a prompt, and what the index says: `rows` are the chunks of its packed references.

    `parts` is what it needs of them, `packed` and `headers` as the index takes that; `present`, `whole` and
    `first_valid` are as in `kvstore.walk.reach_of`.
    """

    scope: Scope
    refs: npt.NDArray[Any]
    rows: Rows
    parts: Sequence[Part]
    packed: bytes
    headers: bytes
    present: Flags
    whole: Flags
    first_valid: Any
    exact: bool
    prompt: Prompt

    def up_to(self, token: int) -> Reach:
        """How far the chunks that end at a token or before it reach by themselves."""
        near = (self.refs["position"] + self.refs["tokens"] <= token).view(np.uint8)
        return reach_of(self.scope, self.refs, self.parts, self.present * near, self.whole * near, self.first_valid)


class Choice(NamedTuple):
    """What is to be loaded, why, and what to expect of it if some has to come from below DRAM.

    `probe` is a forecast of chunks that are left out and are to be loaded beside, to see how fast their tier is now:
    nobody waits for them.
    """

    reach: Reach
    plan: Plan
    forecast: Forecast | None
    probe: Forecast | None = None


class Worth:
    """Weighs hits. `speeds` is called without the store's lock, `choose` with it."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def speeds(self) -> list[Speed]:
        """What each tier measures; nothing comes from one that is not to be used just now."""
        nothing = Speed(0.0, 0.0, 0.0)
        return [tier.speed if tier.state == "ok" else nothing for tier in self._core.tiers]

    def choose(self, asked: Asked, reach: Reach, measured: Sequence[Speed], *, leased: bool) -> Choice:
        """What of a hit to load. Only what is `leased` will be, and is worth a probe."""
        start, counters, whole = _start(asked.refs), self._core.counters, reach
        while True:
            stored = self._stored(asked, reach, start)
            speeds = self._speeds(stored, measured, asked)
            overlap = asked.prompt.overlap and not asked.scope.windowed
            plan = cost.plan(
                stored.tokens, stored.nbytes, stored.tiers, prefill=asked.prompt.prefill, speeds=speeds,
                prompt=max(asked.prompt.tokens, reach.tokens), start=start, overlap=overlap,
            )  # fmt: skip
            if plan.end >= reach.tokens or not plan.tokens:
                break
            reach = asked.up_to(plan.end)  # of a sliding window the whole, which may not end just there
        counters["lookups_weighed"] += 1
        if plan.reason == _ALL and reach.tokens < whole.tokens:
            plan = plan._replace(reason=_CUT)
        left = whole.tokens - start - plan.tokens
        probe = None
        if left:
            counters["lookups_cut"] += 1
            counters[LEFT_OUT[plan.reason] or "left_out_cut"] += left
            probe = self._probe(asked, whole, start, measured) if leased else None
        if not plan.tokens:
            return Choice(Reach(start, range(0)), plan, None, probe)
        kept = stored.ends > plan.start
        forecast = self._forecast(asked, reach, plan, stored, speeds, measured, kept) if stored.tiers.any() else None
        if plan.start > start:
            reach = Reach(reach.tokens, np.asarray(reach.used, np.uint32)[kept])
        return Choice(reach, plan, forecast, probe)

    def _probe(self, asked: Asked, whole: Reach, start: int, measured: Sequence[Speed]) -> Forecast | None:
        """Chunks at the end of a run that was cut, if nothing has come from their tier for a while."""
        stored = self._stored(asked, whole, start)
        tier = int(stored.tiers[-1])
        if tier == DRAM or not measured[tier].read_bytes_per_s or not self._core.forecasts.probe_due(tier):
            return None
        rows, cold, nbytes = whole.take(asked.rows), dict[int, int](), 0
        for n in range(len(rows) - 1, -1, -1):
            if nbytes >= PROBE_BYTES or stored.tiers[n] != tier:
                break
            cold[int(rows[n])] = int(stored.nbytes[n])
            nbytes += int(stored.nbytes[n])
        speed = measured[tier]
        plain_s = speed.latency_s + (nbytes + self._queued(tier)) / speed.read_bytes_per_s
        return Forecast(tier, cold, plain_s, 0.0, float("inf"), speed, probe=True)

    def _stored(self, asked: Asked, reach: Reach, start: int) -> _Stored:
        """The run as it is stored. What a chunk is preceded by and needs not be loaded counts as its own tokens."""
        core, groups = self._core, asked.scope.spec.groups
        needed = np.array([groups[part.group].first_needed(reach.tokens) for part in asked.parts], np.uint32)
        _, nbytes, tiers, forms = core.index.stored(
            reach.take(asked.rows), asked.packed, asked.headers, needed, asked.exact, core.order, core.bad_rows()
        )
        used = reach.take(asked.refs)
        ends = used["position"].astype(np.int64) + used["tokens"]
        tokens = cost.tokens_between(start, ends)
        return _Stored(tokens, nbytes, tiers, forms, ends)

    def _speeds(self, stored: _Stored, measured: Sequence[Speed], asked: Asked) -> list[TierSpeed]:
        """What each tier does for this run: what is read is then decoded, and crosses the link."""
        found, encoded = list[TierSpeed](), stored.forms.any()
        link = asked.prompt.link_bytes_per_s or measured[DRAM].read_bytes_per_s / self._caution(DRAM)
        for tier, speed in enumerate(measured):
            decode_s = self._decode_s(stored, tier) if encoded else 0.0
            if tier == DRAM:
                found.append(TierSpeed(speed.latency_s, link, 1 / decode_s if decode_s else 0.0))
                continue
            factor = self._caution(tier)
            rate = speed.read_bytes_per_s / factor
            queue = self._queued(tier) / rate if rate else 0.0
            found.append(TierSpeed(speed.latency_s * factor, rate, 1 / (decode_s + 1 / link), queue))
        return found

    def _queued(self, tier: int) -> int:
        """Bytes that others wait for from a tier, or will: what was planned a moment ago may not have begun."""
        begun, to_begin = self._core.forecasts.promised(tier)
        return max(self._core.backlog[tier], begun) + to_begin

    def _decode_s(self, stored: _Stored, tier: int) -> float:
        """Seconds that decoding takes for each stored byte of the run in a tier, over the forms that are there."""
        there = stored.tiers == tier
        nbytes, seconds = float(stored.nbytes[there].sum()), 0.0
        for form in np.unique(stored.forms[there]).tolist():
            if form != RAW:
                some = float(stored.nbytes[there & (stored.forms == form)].sum())
                seconds += some / self._core.coder.decoding_bytes_per_s(form)
        return seconds / nbytes if nbytes else 0.0

    def _forecast(
        self, asked: Asked, reach: Reach, plan: Plan, stored: _Stored, speeds: Sequence[TierSpeed],
        measured: Sequence[Speed], kept: Any,
    ) -> Forecast | None:  # fmt: skip
        """What to expect of the loads from below DRAM; the slowest of their tiers answers for it."""
        cold = kept & (stored.tiers != DRAM)
        if not cold.any():
            return None
        tiers = stored.tiers[cold]
        times = {tier: self._cold_s(stored, cold, tier, speeds[tier]) for tier in np.unique(tiers).tolist()}
        tier = max(times, key=lambda each: times[each])
        nbytes = dict(zip(reach.take(asked.rows)[cold].tolist(), stored.nbytes[cold].tolist(), strict=True))
        other_s = max(0.0, plan.seconds - times[tier])
        plain_s = times[tier] / self._caution(tier)
        return Forecast(tier, nbytes, plain_s, other_s, plan.recompute_s, measured[tier])

    def _caution(self, tier: int) -> float:
        """How many times longer than its speed says a load from a tier is taken to last."""
        return self._core.forecasts.factor(tier) * self._core.forecasts.margin(tier)

    @staticmethod
    def _cold_s(stored: _Stored, cold: Any, tier: int, speed: TierSpeed) -> float:
        nbytes = float(stored.nbytes[cold & (stored.tiers == tier)].sum())
        return speed.queue_s + speed.latency_s + nbytes / speed.bytes_per_s


def _start(refs: npt.NDArray[Any]) -> int:
    return int(refs["position"][0]) if len(refs) else 0
