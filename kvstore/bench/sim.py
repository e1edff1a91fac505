"""`kvstore bench sim`: how many events a second the simulator replays, and how much of that each policy takes.

An event is one id of one request. The load is made here, of conversations that go on, begin anew and share system
prompts, and of one-time prompts; a fifth of what is distinct fits. Every policy plays all of it on one core, in turns.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import numpy as np

from kvstore.bench.measure import Bar, Row, percentile
from kvstore.errors import Corrupt
from kvstore.policy import POLICIES
from kvstore.sim.formats import Parsed, Request
from kvstore.sim.replay import Outcome, Replay
from kvstore.sim.report import policy_p50, share_of
from kvstore.sim.setup import BELADY, Setup, single_tiers
from kvstore.sim.trace import Trace, from_parsed

EVENTS = 500_000
BLOCK = 512
ROUNDS = 5
CAPACITY = "20%"
LEAST, LEAST_OF_VALUE = 300_000, 60_000  # events a second
FACTS = ("events", "events_per_s", "policy_p50_s", "hit_ratio")
_USERS, _SYSTEMS, _LONGEST = 300, 8, 120


def run(*, events: int = EVENTS, rounds: int = ROUNDS, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """A row a policy. `Corrupt` if a policy does not do the same every time."""
    trace = load(events)
    replay, stack = Replay(trace, Setup((), warm=0.5)), single_tiers([CAPACITY])[0]
    names = (*POLICIES, BELADY)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    last: dict[str, Outcome] = {}
    for number in range(rounds):
        for offset in range(len(names)):
            name = names[(number + offset) % len(names)]
            told = replay.play(name, stack)
            seconds[name].append(told.elapsed_s)
            if name in last and not np.array_equal(last[name].hit_tokens, told.hit_tokens):
                raise Corrupt(f"{name} hit something else when it played the same trace again")
            last[name] = told
            advance()
    return [_row(replay, name, seconds[name], last[name]) for name in names]


def _row(replay: Replay, name: str, seconds: list[float], told: Outcome) -> Row:
    events, p50 = replay.trace.events, median(seconds)
    row: Row = {
        "case": name, "mode": "replay", "bytes": 0, "p50_s": p50, "p99_s": percentile(seconds, 0.99),
        "gbps": None, "baseline": None, "ratio": None, "p99_ratio": None, "bar": None, "met": None,
        "events": events, "events_per_s": events / p50, "policy_p50_s": policy_p50(replay.trace, told),
        "hit_ratio": share_of(told.hit_tokens[replay.first :].sum(dtype=np.int64), replay.counted.sum()),
        "rounds": len(seconds), "note": "p50: the whole trace on one core; policy_p50_s: of an event",
    }  # fmt: skip
    if name != BELADY:
        least = LEAST_OF_VALUE if name == "value" else LEAST
        Bar(p50_s=events / least).judge(row)
        row["bar"] = f"≥ {least:,} events/s"
    return row


def load(events: int, seed: int = 0) -> Trace:
    """Requests with at least so many ids in all; the same for the same seed."""
    dice = np.random.default_rng(seed)
    systems = [list(range(number * 100, number * 100 + 3 + 2 * number)) for number in range(_SYSTEMS)]
    fresh, made = _SYSTEMS * 100, 0
    talks: dict[int, list[int]] = {}
    requests: list[Request] = []
    while made < events:
        user, anew, grown = int(dice.zipf(1.3)) % _USERS, dice.random(), int(dice.integers(1, 8))
        if user not in talks or anew < 0.05 or len(talks[user]) > _LONGEST:
            talks[user] = list(systems[int(dice.integers(_SYSTEMS))])
        ids = talks[user] if anew < 0.8 else []  # the others ask once, and never again
        ids = [*ids, *range(fresh, fresh + grown)]
        if anew < 0.8:
            talks[user] = ids
        fresh += grown
        made += len(ids)
        requests.append(Request(len(requests) * 50, len(ids) * BLOCK, ids, [BLOCK] * len(ids)))
    return from_parsed(Parsed("conversations", True, BLOCK, requests))
