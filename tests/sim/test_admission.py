"""The filter before lower tiers in the replay: against a model, and what it does on real traffic."""

from __future__ import annotations

from dataclasses import replace

import pytest

from kvstore.config import ALL, SECOND_TOUCH
from kvstore.errors import InvalidArgument
from kvstore.sim.replay import Outcome, Replay
from kvstore.sim.setup import BELADY, Setup, Tiers, tier_of, with_filter
from kvstore.sim.trace import Trace
from tests.policies.filters import DAY_MS, Filter

from .models import BYTES, PLAIN, ModelLru, tiers
from .traces import BLOCK, conversations, linked, real, segmented

CHUNK = BLOCK * BYTES


class FilteredLru(ModelLru):
    """Tiers of LRU, a filter before each but the first. A request comes every second."""

    def __init__(self, capacities: list[int], admit: str, per_day: int) -> None:
        super().__init__(capacities)
        self.filters = [Filter(admit == SECOND_TOUCH, per_day, blocks * CHUNK) for blocks in capacities[1:]]
        self.used: set[int] = set()
        self.refused: list[str] = []
        self.now_ms = -1000

    def request(self, ids: list[int], touch: str) -> int:
        self.now_ms += 1000
        return super().request(ids, touch)

    def _touch(self, each: int) -> None:
        super()._touch(each)
        if any(each in tier for tier in self.tiers):
            self.used.add(each)

    def _evicted(self, victim: int, at: int, held: set[int]) -> None:
        if at:
            self.filters[at - 1].was_full()
        super()._evicted(victim, at, held)
        if not any(victim in each for each in self.tiers):
            self.used.discard(victim)
            for filter_ in self.filters:
                filter_.remember(victim, CHUNK)

    def _enters(self, each: int, at: int) -> bool:
        filter_ = self.filters[at - 1]
        filter_.settle(self.written[at] * CHUNK, self.now_ms)
        verdict = filter_.judge(each, each in self.used)
        if verdict == "open":
            filter_.begin(CHUNK)
            filter_.end(CHUNK)
            return True
        filter_.refuse(verdict, CHUNK)
        self.refused.append(verdict)
        return False


def filtered(below: Tiers, admit: str, per_day: int = 0) -> Tiers:
    return with_filter(below, admit, per_day)


def refusals(told: Outcome) -> dict[str, int]:
    return {why: sum(tier[why] for tier in told.tiers) for why in ("used_once", "budget_low", "budget_spent")}


@pytest.mark.parametrize("touch", ["leaf", "put"])
@pytest.mark.parametrize("sizes", [[6, 15], [5, 9, 30]])
@pytest.mark.parametrize(("admit", "hourly"), [(SECOND_TOUCH, 0), (ALL, 60), (SECOND_TOUCH, 30)])
def test_it_is_the_models(touch: str, sizes: list[int], admit: str, hourly: int) -> None:
    per_day = hourly * 24 * CHUNK
    prompts = conversations(1500, seed=len(sizes))
    model = FilteredLru(sizes, admit, per_day)
    expected = [model.request(ids, touch) * BLOCK for ids in prompts]
    told = Replay(linked(prompts), replace(PLAIN, touch=touch)).play("lru", filtered(tiers(*sizes), admit, per_day))
    assert told.hit_tokens.tolist() == expected
    assert [tier["written_bytes"] for tier in told.tiers] == [blocks * CHUNK for blocks in model.written]
    assert refusals(told) == {why: model.refused.count(why) for why in ("used_once", "budget_low", "budget_spent")}
    assert len(model.refused) > 100
    for tier, blocks in zip(told.tiers, sizes, strict=True):
        assert tier["peak_bytes"] <= blocks * CHUNK


def test_a_tier_that_never_fills_takes_what_it_would_take_without_a_filter() -> None:
    trace = linked(conversations(300))
    replay, below = Replay(trace, PLAIN), tiers(8, trace.chunks)
    without, behind = replay.play("lru", below), replay.play("lru", filtered(below, SECOND_TOUCH))
    assert behind.hit_tokens.tolist() == without.hit_tokens.tolist()
    assert behind.tiers == without.tiers
    assert sum(refusals(behind).values()) == 0


def test_a_scan_does_not_wash_out_what_is_used_twice() -> None:
    regulars, scan = [[(n, BLOCK)] for n in range(20)], [[(1000 + n, BLOCK)] for n in range(150)]
    replay, below = Replay(segmented([*regulars, *regulars, *scan, *reversed(regulars)]), PLAIN), tiers(2, 30)
    kept = replay.play("lru", filtered(below, SECOND_TOUCH)).hit_tokens[-20:]
    lost = replay.play("lru", below).hit_tokens[-20:]
    assert (kept > 0).sum() >= 10  # some of a scan is let in: it may come back later than is remembered
    assert (lost > 0).sum() == 0


def test_belady_needs_no_filter() -> None:
    replay, below = Replay(linked(conversations(300)), PLAIN), tiers(5, 20)
    told = replay.play(BELADY, filtered(below, SECOND_TOUCH, 1))
    assert told.hit_tokens.tolist() == replay.play(BELADY, below).hit_tokens.tolist()


def test_a_filter_needs_something_below_the_first_tier() -> None:
    with pytest.raises(InvalidArgument, match="two or more with --tier"):
        with_filter((tier_of("dram=1%"),), SECOND_TOUCH, 0)


@pytest.mark.parametrize("name", ["mooncake_conversation", "mooncake_synthetic"])
def test_on_real_traffic_it_halves_what_is_written(name: str) -> None:
    trace: Trace = real(name)
    replay = Replay(trace, Setup((), touch="put", whole_blocks=True))
    below = (tier_of("dram=1%"), tier_of("nvme=5%"))
    without, behind = replay.play("lru", below), replay.play("lru", filtered(below, SECOND_TOUCH))
    assert behind.tiers[1]["written_bytes"] < 0.5 * without.tiers[1]["written_bytes"]
    assert behind.hit_tokens[replay.first :].sum() > 0.98 * without.hit_tokens[replay.first :].sum()


def test_a_budget_holds_on_real_traffic() -> None:
    trace = real("rag_segments")
    replay = Replay(trace, Setup((), touch="put", warm=0.0))
    per_day = int(replay.chunk_bytes.sum()) // 20
    told = replay.play("lru", filtered((tier_of("dram=1%"), tier_of("nvme=5%")), ALL, per_day))
    days = (int(trace.times_ms[-1]) - int(trace.times_ms[0])) / DAY_MS
    most = per_day * (days + 0.25)
    assert 0.8 * most < told.tiers[1]["written_bytes"] <= most + int(replay.chunk_bytes.max())
    assert refusals(told)["budget_spent"] > 0
