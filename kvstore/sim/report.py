"""The rows of `kvstore sim`: every policy over every set-up of tiers, beside no cache, Belady's rule and the bound."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from kvstore.sim.bound import Intervals, intervals, upper_bound
from kvstore.sim.replay import Outcome, Replay
from kvstore.sim.setup import BELADY, BOUND, Setup, Tiers
from kvstore.sim.trace import Column, Trace

Row = dict[str, Any]
NO_CACHE = "no-cache"
SLICES = 20  # of a trace, for the hit ratio over time


def run(traces: Sequence[Trace], setup: Setup, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """Rows of every trace by itself: `no-cache`, then by set-up of tiers the policies, `belady` and `bound`.

    `advance` is called for every row. `InvalidArgument` before anything is played if a set-up does not fit a trace.
    """
    replays = [Replay(trace, setup) for trace in traces]
    for replay in replays:
        for tiers in setup.stacks:
            replay.capacities(tiers)
    rows = []
    for replay in replays:
        rows.append(_without(replay))
        bounds = _Bounds(replay)
        for tiers in setup.stacks:
            made = [_played(replay, policy, tiers, advance) for policy in _policies(setup)]
            made.append(bounds.row(tiers))
            advance()
            _compare(made, rows[-1] if rows[-1]["case"] == NO_CACHE else _first(rows, replay))
            rows += made
    return rows


def rows_expected(traces: Sequence[Trace], setup: Setup) -> int:
    """How often `run` will call `advance`."""
    return len(traces) * len(setup.stacks) * (len(_policies(setup)) + 1)


def share_of(part: Any, whole: Any) -> float:
    """`part / whole`, 0 of nothing."""
    return float(part) / float(whole) if whole else 0.0


def _policies(setup: Setup) -> list[str]:
    """Those asked for, Belady's last, which the others are compared with."""
    return [*(name for name in dict.fromkeys(setup.policies) if name not in (BELADY, BOUND)), BELADY]


def _first(rows: Sequence[Row], replay: Replay) -> Row:
    return next(row for row in rows if row["case"] == NO_CACHE and row["mode"] == replay.trace.name)


def _without(replay: Replay) -> Row:
    """What prefill of everything takes."""
    counted = replay.counted
    return {
        "case": NO_CACHE, "mode": replay.trace.name, "capacity": "", "capacity_bytes": 0,
        "requests": len(counted), "input_tokens": int(counted.sum()), "hit_tokens": 0, "hit_ratio": 0.0,
        "flops": float(replay.prefill.flops(0.0, counted.astype(float)).sum()), "flops_saved": 0.0,
        "flops_saved_share": 0.0, **_times(replay.prefill.seconds(0.0, counted.astype(float))),
    }  # fmt: skip


def _played(replay: Replay, policy: str, tiers: Tiers, advance: Callable[[], None]) -> Row:
    told = replay.play(policy, tiers)
    first, counted = replay.first, replay.counted
    hits, saved = told.hit_tokens[first:].astype(np.int64), float(told.flops_saved[first:].sum())
    flops = float(replay.prefill.flops(0.0, counted.astype(float)).sum())
    row = {
        **_where(replay, policy, tiers), "requests": len(counted), "input_tokens": int(counted.sum()),
        "hit_tokens": int(hits.sum()), "hit_ratio": share_of(hits.sum(), counted.sum()),
        "flops_saved": saved, "flops_saved_share": share_of(saved, flops),
        "loaded_tokens": int(told.loaded_tokens[first:].sum()), **_times(told.ttft_s[first:]),
        "loaded_bytes": sum(each["loaded_bytes"] for each in told.tiers),
        "written_bytes": sum(each["written_bytes"] for each in told.tiers),
        "tiers": [{"tier": tier.name, **each} for tier, each in zip(tiers, told.tiers, strict=True)],
        "hit_ratio_over_time": _over_time(replay.trace, told),
        "tenants": _by_tenant(replay, told),
        "events_per_s": replay.trace.events / told.elapsed_s, "policy_p50_s": policy_p50(replay.trace, told),
    }  # fmt: skip
    advance()
    return row


class _Bounds:
    """What no policy exceeds in one trace."""

    def __init__(self, replay: Replay) -> None:
        trace, self._replay = replay.trace, replay
        self._found: Intervals = intervals(trace, replay.first)
        tokens = trace.chunk_tokens[trace.chunk].astype(float)
        self._tokens = self._found.gains(tokens)
        position = trace.position.astype(float)
        self._flops = self._found.gains(replay.prefill.flops(position, position + tokens))

    def row(self, tiers: Tiers) -> Row:
        """Two bounds, each by prices of its own: of tokens hit and of FLOPs saved. Tiers count as one, of raw bytes."""
        replay, counted = self._replay, self._replay.counted
        capacity = sum(int(nbytes * tier.smaller) for nbytes, tier in zip(replay.capacities(tiers), tiers, strict=True))
        size = replay.chunk_bytes[self._found.chunk].astype(float)
        tokens = upper_bound(self._found, self._tokens, size, capacity)
        saved = upper_bound(self._found, self._flops, size, capacity)
        flops = float(replay.prefill.flops(0.0, counted.astype(float)).sum())
        return {
            **_where(replay, BOUND, tiers), "requests": len(counted), "input_tokens": int(counted.sum()),
            "hit_tokens": int(np.ceil(tokens)), "hit_ratio": share_of(tokens, counted.sum()),
            "flops_saved": saved, "flops_saved_share": share_of(saved, flops),
            "ttft_p50_s": None, "ttft_p99_s": None, "ttft_mean_s": None,
        }  # fmt: skip


def _where(replay: Replay, case: str, tiers: Tiers) -> Row:
    named = [tier.capacity.text if len(tiers) == 1 else f"{tier.name} {tier.capacity.text}" for tier in tiers]
    return {
        "case": case, "mode": replay.trace.name, "capacity": ", ".join(named),
        "capacity_bytes": sum(replay.capacities(tiers)),
    }  # fmt: skip


def _compare(rows: Iterable[Row], without: Row) -> None:
    """How far each is from Belady's rule, and how much sooner the first token comes than without a cache."""
    rows = list(rows)
    optimum = next(row for row in rows if row["case"] == BELADY)
    for row in rows:
        row["of_belady"] = share_of(row["hit_ratio"], optimum["hit_ratio"])
        row["baseline"] = NO_CACHE
        row["ratio"] = share_of(without["ttft_mean_s"], row["ttft_mean_s"]) or None


def _times(seconds: Column) -> Row:
    if not len(seconds):
        return {"ttft_p50_s": None, "ttft_p99_s": None, "ttft_mean_s": None}
    p50, p99 = np.quantile(seconds, [0.5, 0.99], method="inverted_cdf")
    return {"ttft_p50_s": float(p50), "ttft_p99_s": float(p99), "ttft_mean_s": float(seconds.mean())}


def _over_time(trace: Trace, told: Outcome) -> list[float]:
    """The hit ratio of every twentieth of the requests, from the first one on."""
    cuts = np.linspace(0, trace.requests, SLICES + 1).astype(int)
    return [
        share_of(told.hit_tokens[a:b].sum(dtype=np.int64), trace.input_tokens[a:b].sum(dtype=np.int64))
        for a, b in pairwise(cuts.tolist())
    ]


def _by_tenant(replay: Replay, told: Outcome) -> dict[str, float]:
    """The hit ratio of each tenant, where there are several."""
    trace, first = replay.trace, replay.first
    if len(trace.names) < 2:
        return {}
    of, hits = trace.tenants[first:], told.hit_tokens[first:].astype(np.int64)
    return {name: share_of(hits[of == n].sum(), replay.counted[of == n].sum()) for n, name in enumerate(trace.names)}


def policy_p50(trace: Trace, told: Outcome) -> float:
    """Seconds an event in the policy and in what moves chunks at its word: the median over requests."""
    events = trace.counts
    some = events > 0
    return float(np.median(told.policy_s[some] / events[some])) if some.any() else 0.0
