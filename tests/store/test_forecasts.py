"""What is learnt of loads, on made-up ones: how slow a tier is, and how careful to be."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from kvstore import forecasts
from kvstore.forecasts import Forecast, Forecasts

LEASE = (1, bytes(16))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(forecasts, "time", made)
    return made


def load(learnt: Forecasts, clock: Clock, plain_s: float, took_s: float, recompute_s: float) -> None:
    """One planned load of two chunks."""
    learnt.expect(LEASE, Forecast(1, {7: 100, 8: 50}, plain_s, 0.0, recompute_s))
    learnt.began(7)
    learnt.ended(7, 100)
    clock.now += took_s
    learnt.began(8)
    learnt.ended(8, 50)


@pytest.mark.parametrize("times", [0.5, 1.0, 8.0, 300.0])
def test_the_factor_is_what_loads_took(clock, times):
    learnt = Forecasts(2, Counter())
    for _ in range(20):
        load(learnt, clock, 0.01, 0.01 * times, 1e9)
    assert learnt.factor(1) == pytest.approx(times, rel=0.15)
    assert learnt.factor(0) == 1.0


def test_one_hiccup_does_not_condemn_a_tier(clock):
    learnt = Forecasts(2, Counter())
    for took in [0.01] * 20 + [10.0] + [0.01] * 5:
        load(learnt, clock, 0.01, took, 1e9)
    assert learnt.factor(1) < 2


def test_what_was_learnt_fades(clock):
    learnt = Forecasts(2, Counter())
    for _ in range(20):
        load(learnt, clock, 0.01, 1.0, 0.1)
    slow, careful = learnt.factor(1), learnt.margin(1)
    clock.now += forecasts.FORGET_S
    assert learnt.factor(1) == pytest.approx(math.sqrt(slow))
    assert 1.5 < learnt.margin(1) < careful
    clock.now += 100 * forecasts.FORGET_S
    assert (learnt.factor(1), learnt.margin(1)) == pytest.approx((1.0, 1.5))


@pytest.mark.parametrize(("scatter", "least"), [(0.1, 0.9), (0.5, 0.75), (1.0, 0.5)])
def test_one_load_in_a_hundred_is_slower_and_most_that_pay_are_made(clock, scatter, least):
    """A tier three times as slow as it says, whose times scatter; computing takes .1 to 100 times as long."""
    random, counters = np.random.default_rng(3), Counter[str]()
    learnt, made, paying = Forecasts(2, counters), 0, 0
    for number in range(6000):
        took, recompute = 0.03 * math.exp(scatter * random.standard_normal()), 0.03 * 10 ** random.uniform(-1, 2)
        weighs = number >= 1000  # the first teach
        if number == 1000:
            counters.clear()
        if 0.01 * learnt.factor(1) * learnt.margin(1) < recompute:
            load(learnt, clock, 0.01, took, recompute)
            made += weighs and took < recompute
        paying += weighs and took < recompute
    assert counters["loads_slower_than_recomputing"] <= 0.02 * counters["loads_judged"]
    assert made >= least * paying


def test_a_load_that_is_given_up_is_not_judged(clock):
    counters = Counter[str]()
    learnt = Forecasts(2, counters)
    learnt.expect(LEASE, Forecast(1, {7: 100}, 0.01, 0.0, 1.0))
    learnt.began(7)
    learnt.released(LEASE)
    learnt.ended(7, 100)
    assert not counters
    learnt.expect(LEASE, Forecast(1, {7: 100}, 0.01, 0.0, 1.0))
    learnt.expect(LEASE, Forecast(1, {8: 100}, 0.01, 0.0, 1.0))  # the same lease, renewed for other chunks
    learnt.began(8)
    learnt.ended(8, 100)
    assert counters["loads_judged"] == 1


def test_what_is_not_loaded_in_time_is_not_judged(clock):
    counters = Counter[str]()
    learnt = Forecasts(2, counters)
    learnt.expect(LEASE, Forecast(1, {7: 100}, 0.01, 0.0, 1.0))
    clock.now += forecasts.KEPT_S + 1
    learnt.expect((2, bytes(16)), Forecast(1, {8: 100}, 0.01, 0.0, 1.0))
    learnt.session_over(2)
    for chunk in (7, 8):  # another chunk may have the row by now
        learnt.began(chunk)
        learnt.ended(chunk, 100)
    assert not counters


def test_no_more_are_kept_than_were_promised():
    learnt = Forecasts(2, Counter())
    for number in range(2 * forecasts.MOST):
        learnt.expect((number, bytes(16)), Forecast(1, {number: 1, number + 1: 1}, 0.01, 0.0, 1.0))
    assert len(learnt._waiting) == forecasts.MOST
    assert len(learnt._of_chunk) == forecasts.MOST + 1
