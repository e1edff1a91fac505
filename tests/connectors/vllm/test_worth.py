"""Load or recompute in vLLM's scheduler, without vLLM: what is measured, told in look-ups and loaded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from kvstore.connectors.vllm import _prefill
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._prefill import PrefillMeter, fit
from kvstore.connectors.vllm._reports import Took
from kvstore.cost import Plan, Prefill
from kvstore.errors import ConfigError

from .test_scheduler import client, matched, request, scheduler, step, store

__all__ = ["client"]  # a fixture
OVERHEAD, PER_TOKEN, PER_WORK = 4e-3, 1e-4, 2e-8


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


def seconds_of(tokens: int, work: float) -> float:
    return OVERHEAD + PER_TOKEN * tokens + PER_WORK * work


def samples(noise: float = 0.0) -> np.ndarray[Any, Any]:
    """Batches of 32 to 2,048 tokens in prompts of up to 16,000."""
    random = np.random.default_rng(5)
    tokens = random.integers(32, 2048, 64)
    work = tokens * random.integers(0, 16_000, 64)
    seconds = (OVERHEAD + PER_TOKEN * tokens + PER_WORK * work) * (1 + noise * random.standard_normal(64))
    return np.column_stack([tokens, work, seconds])


def test_the_fit_finds_step_token_and_position():
    assert fit(samples()) == pytest.approx((OVERHEAD, PER_TOKEN, PER_WORK), rel=1e-3)
    noisy = fit(samples(0.05))
    assert noisy[1:] == pytest.approx((PER_TOKEN, PER_WORK), rel=0.15)


def test_what_stands_far_out_does_not_count():
    """Every fifth step waits for a compilation."""
    some = samples(0.02)
    some[::5, 2] += 3.0
    assert fit(some)[1:] == pytest.approx((PER_TOKEN, PER_WORK), rel=0.15)


def test_nothing_is_negative_where_samples_say_little():
    """Every batch alike, as with chunked prefill: its time is right, however it is divided."""
    same = np.tile([512.0, 512.0 * 256, 0.08], (16, 1))
    found = np.array(fit(same))
    assert (found >= 0).all()
    assert found @ [1, 512, 512 * 256] == pytest.approx(0.08)
    shrinking = np.column_stack([np.arange(100, 1700, 100), np.zeros(16), np.linspace(0.2, 0.1, 16)])
    assert (np.array(fit(shrinking)) >= 0).all()


def test_a_meter_measures_steps_of_prefill_and_says_nothing_before(monkeypatch):
    clock, meter = Clock(), PrefillMeter()
    monkeypatch.setattr(_prefill, "time", clock)
    for n in range(12):
        at, count = 512 * (n % 4), 256 + 64 * n
        assert (meter.prefill is None) == (n < _prefill.LEAST)
        meter.scheduled(step((request(4096), at, count)))
        clock.now += seconds_of(count, count * (at + count / 2))
        meter.completed()
        clock.now += 5.0  # without requests
        for _ in range(3):  # and some of decoding, which is not prefill, but what a request waits for
            meter.scheduled(step((request(4096), 4096, 1)))
            clock.now += 0.011
            meter.completed()
        for _ in range(5):  # and some without work, which last as long as what is loaded meanwhile
            meter.scheduled(step())
            clock.now += 0.5
            meter.completed()
    prefill = meter.prefill
    assert prefill is not None
    assert prefill.step_s == pytest.approx(0.011)
    # A prompt of 960 tokens at once: its step's overhead is in it.
    assert prefill.seconds(0, 900) == pytest.approx(seconds_of(900, 900 * 450), rel=0.05)
    assert prefill.seconds(900, 1800) > prefill.seconds(0, 900)


def test_steps_that_overlap_are_timed_from_the_end_of_the_one_before(monkeypatch):
    """With asynchronous scheduling the next step is planned while the last one runs."""
    clock, meter = Clock(), PrefillMeter()
    monkeypatch.setattr(_prefill, "time", clock)
    took: list[float] = []
    monkeypatch.setattr(meter, "took", lambda tokens, work, seconds, is_prefill: took.append(seconds))
    meter.scheduled(step((request(900), 0, 256)))
    for n in range(1, 4):
        meter.scheduled(step((request(900), 256 * n, 256)))
        clock.now += 0.1
        meter.completed()
    clock.now += 0.1
    meter.completed()
    meter.completed()  # of nothing that was planned
    assert took == pytest.approx([0.1] * 4)


def test_a_hit_is_loaded_up_to_the_cut(client):
    """DRAM is quicker than this engine, and slower than that one."""
    store(client, 256)
    slow = scheduler(client, prefill_tokens_per_s=1000.0)
    assert matched(slow, request(300)) == (256, True)
    asked = request(300, "told")
    assert matched(slow, asked) == (256, True)
    slow.close()
    quick = scheduler(client, prefill_tokens_per_s=1e12)
    asked = request(300)
    assert matched(quick, asked) == (0, False)
    quick.allocated(asked, ([*range(1, 20)],), 0)
    plan = quick.plan(step((asked, 0, 300)))
    # What is stored is not stored again, though it was computed.
    assert plan.loads == []
    assert [(job.ref.position, job.ref.tokens) for job in plan.saves] == [(256, 32)]
    counts = quick.counts.take()
    assert (counts["lookups_cut"], counts["left_out_tokens"]) == (1, 256)
    quick.close()


def test_it_can_be_switched_off(client):
    store(client, 256)
    side = scheduler(client, prefill_tokens_per_s=1e12, load_or_recompute=False)
    assert matched(side, request(300)) == (256, True)
    assert "lookups_weighed" not in client.stats()["counters"]
    side.close()


def test_nothing_is_weighed_before_the_engine_is_known(client):
    store(client, 256)
    side = scheduler(client)
    assert matched(side, request(300)) == (256, True)
    assert "lookups_weighed" not in client.stats()["counters"]
    for _ in range(_prefill.LEAST):
        side.worth._meter.took(64, 64 * 32, 64e-12, is_prefill=True)
    assert matched(side, request(300, "later")) == (0, False)
    side.close()


def test_what_the_engine_has_itself_lessens_what_a_load_is_worth(client):
    side = scheduler(client, prefill_tokens_per_s=1000.0)
    side.worth._meter.took(1, 1.0, 0.05, is_prefill=False)  # 50 ms a step
    plan = Plan(0, 256, 0.05 + 0.02 + 0.044, 0.3, 2)  # 20 ms to load, 44 tokens to compute after it
    assert side.worth.pays(plan, 300, 0, 256)
    assert side.worth.pays(plan, 300, 128, 256)
    assert not side.worth.pays(plan, 300, 224, 256)  # 32 ms of computing, which is less than a step
    assert side.worth.pays(None, 300, 224, 256)
    side.close()


def test_loads_are_compared_with_computing(client, monkeypatch):
    store(client, 256)
    side = scheduler(client, prefill_tokens_per_s=1000.0)
    for name, slower in (("a", 0), ("b", 1)):
        asked = request(300, name)
        assert matched(side, asked) == (256, True)
        side.allocated(asked, ([*range(1, 20)],), 256)
        if slower:
            load = side.worth._loads[name]
            side.worth._loads[name] = load._replace(began=load.began - 10)
        side.loaded({name})
        counts = side.counts.take()
        assert (counts["loads_weighed"], counts["loads_slower"]) == (1, slower)
    side.close()


@pytest.mark.parametrize("step_s", [0.002, 0.1])
def test_the_way_here_is_learnt_from_what_the_load_itself_took(client, step_s):
    """However long a step is, and whether one was under way: an idle engine's loads end when they end."""
    store(client, 256)
    side = scheduler(client, prefill_tokens_per_s=1000.0)
    for _ in range(20):
        side.worth._meter.took(1, 1.0, step_s, is_prefill=False)
    for number in range(12):
        name = f"r{number}"
        asked = request(300, name)
        assert matched(side, asked) == (256, True)
        side.allocated(asked, ([*range(1, 20)],), 256)
        side.worth.measured({name: Took(100 << 20, 0.2)})
        side.loaded({name})
    told = side.worth.prompt(300)
    assert told is not None
    assert told.link_bytes_per_s == pytest.approx((100 << 20) / 0.2, rel=0.1)
    side.close()


def test_a_load_from_below_dram_says_nothing_of_the_way_here(client):
    side = scheduler(client, prefill_tokens_per_s=1000.0)
    side.worth.began("a", 0, 256, warm=False)
    side.worth.measured({"a": Took(1 << 20, 1.0), "never heard of": Took(1 << 20, 1.0)})
    assert side.worth.prompt(300).link_bytes_per_s == 0
    side.worth.began("b", 0, 256, warm=True)
    side.worth.forget("b")
    side.worth.measured({"b": Took(1 << 20, 1.0)})
    assert side.worth.prompt(300).link_bytes_per_s == 0
    assert not side.worth._warm
    side.close()


def test_a_store_is_told_in_lookups(client, monkeypatch):
    told: list[Any] = []
    look = client.lookup
    monkeypatch.setattr(client, "lookup", lambda *args, **more: told.append(more.get("prompt")) or look(*args, **more))
    store(client, 256)
    side = scheduler(client, prefill_tokens_per_s=1000.0)
    matched(side, request(300))
    assert [(each.tokens, each.prefill) for each in told] == [(300, Prefill.of_rate(1000.0))]
    side.close()


@pytest.mark.parametrize(
    "given",
    [{"load_or_recompute": 1}, {"load_or_recompute": "yes"}, {"prefill_tokens_per_s": True},
     {"prefill_tokens_per_s": -1.0}, {"prefill_tokens_per_s": float("nan")}],
)  # fmt: skip
def test_options_that_are_wrong_are_told(given):
    with pytest.raises(ConfigError, match="kv_connector_extra_config"):
        Options.of(given)
