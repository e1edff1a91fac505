"""What is learnt of loads, on made-up ones: how slow a tier is, and how careful to be."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from kvstore import forecasts, learnt
from kvstore.forecasts import Forecast, Forecasts
from kvstore.tiers.base import Speed

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
    for module in (forecasts, learnt):
        monkeypatch.setattr(module, "time", made)
    return made


def load(
    found: Forecasts, clock: Clock, plain_s: float, took_s: float, recompute_s: float, *, probe: bool = False,
    before: Speed = forecasts.UNKNOWN, after: Speed = forecasts.UNKNOWN,
) -> None:  # fmt: skip
    """One planned load of two chunks. The tier's own meter said `before` when it was planned, and says `after` now."""
    found.expect(LEASE, Forecast(1, {7: 100, 8: 50}, plain_s, 0.0, recompute_s, before, probe))
    found.began(7)
    found.ended(7, 100, 1, before)
    clock.now += took_s
    found.began(8)
    found.ended(8, 50, 1, after)


@pytest.mark.parametrize("times", [0.5, 1.0, 8.0, 300.0])
def test_the_factor_is_what_loads_took(clock, times):
    found = Forecasts(2, Counter())
    for _ in range(20):
        load(found, clock, 0.01, 0.01 * times, 1e9)
    assert found.factor(1) == pytest.approx(times, rel=0.15)
    assert found.factor(0) == 1.0


def expected(found: Forecasts, plain_s: float) -> float:
    """What is expected of a load that should take so long by what the tier says."""
    return plain_s * found.factor(1)


def test_a_change_is_learnt_by_the_second_load_and_nothing_of_it_twice(clock):
    """The tier becomes four times as slow, and its own meter comes to know of it, three tenths more with every load."""
    found, fast, meter = Forecasts(2, Counter()), 0.1, 1e9
    for _ in range(20):
        load(found, clock, fast, fast, 1e9, before=Speed(meter, 0.0, 0.0), after=Speed(meter, 0.0, 0.0))
    forecast = [expected(found, fast)]
    for _ in range(8):
        before, meter = meter, 1 / (1 / meter + 0.3 * (4 / 1e9 - 1 / meter))
        plain_s = fast * 1e9 / before
        load(found, clock, plain_s, 4 * fast, 1e9, before=Speed(before, 0.0, 0.0), after=Speed(meter, 0.0, 0.0))
        forecast.append(expected(found, fast * 1e9 / meter))
    assert forecast[0] == pytest.approx(fast)
    assert forecast[1] > 2 * fast
    assert forecast[2:] == pytest.approx([4 * fast] * 7, rel=0.05)
    # As fast as before, all at once: a load that is so fast is believed.
    load(found, clock, fast * 1e9 / meter, fast, 1e9, before=Speed(meter, 0.0, 0.0), after=Speed(meter, 0.0, 0.0))
    assert expected(found, fast * 1e9 / meter) == pytest.approx(fast, rel=0.05)


def test_loads_that_take_what_is_expected_need_little_margin_and_others_more(clock):
    random, margins = np.random.default_rng(7), []
    for scatter in (0.01, 0.1, 0.3):
        found = Forecasts(2, Counter())
        for _ in range(200):
            load(found, clock, 0.01, 0.01 * math.exp(scatter * random.standard_normal()), 1e9)
        assert found.spread(1) == pytest.approx(scatter, rel=0.5)
        margins.append(found.margin(1))
    assert margins == sorted(margins)
    assert (margins[0] < 1.05, margins[1] < 1.3, margins[2] > 1.2) == (True, True, True)


def test_the_first_load_of_a_tier_says_how_fast_it_is_and_not_how_far_it_scatters(clock):
    """Before it the tier's own speed is a guess."""
    found = Forecasts(2, Counter())
    load(found, clock, 0.01, 0.5, 1e9, before=Speed(50e9, 0.0, 0.0), after=Speed(1e9, 0.0, 0.0))
    assert expected(found, 0.5) == pytest.approx(0.5, rel=0.05)
    assert found.margin(1) == pytest.approx(1.5, rel=0.01)


def test_what_is_planned_and_has_not_come_stands_in_front(clock):
    found = Forecasts(2, Counter())
    found.expect((1, b"a"), Forecast(1, {7: 100}, 0.01, 0.0, 1.0))
    found.expect((1, b"b"), Forecast(1, {8: 30, 9: 20}, 0.01, 0.0, 1.0))
    assert (found.promised(1), found.promised(0)) == ((0, 150), (0, 0))
    found.began(8)
    found.ended(8, 30)
    assert found.promised(1) == (20, 100)
    clock.now += forecasts.PROMISED_S
    assert found.promised(1) == (20, 0)  # who has not begun by then may not need it
    found.released((1, b"b"))
    assert found.promised(1) == (0, 0)


def test_a_load_that_was_given_up_after_more_than_computing_takes_has_been_lost(clock):
    counters = Counter[str]()
    found = Forecasts(2, counters)
    for seconds in (0.5, 3.0):
        found.expect(LEASE, Forecast(1, {7: 100, 8: 100}, 0.01, 0.0, 1.0))
        found.began(7)
        found.ended(7, 100)
        found.began(8)
        clock.now += seconds
        found.released(LEASE)
    told = counters["loads_given_up"], counters["loads_judged"], counters["loads_slower_than_recomputing"]
    assert told == (1, 1, 1)
    assert found.factor(1) > 1
    # One that read a part of it, and wanted no more, has given up nothing.
    found.expect(LEASE, Forecast(1, {7: 100, 8: 100}, 0.01, 0.0, 1.0))
    found.began(7)
    found.ended(7, 100)
    clock.now += 30
    found.released(LEASE)
    assert counters["loads_given_up"] == 1


def test_a_load_of_which_others_brought_a_part_says_nothing_of_the_tier(clock):
    counters = Counter[str]()
    found = Forecasts(2, counters)
    found.expect(LEASE, Forecast(1, {7: 100, 8: 100}, 1.0, 0.0, 10.0))
    found.began(8)
    found.ended(7, 100)  # was on its way before
    clock.now += 0.01
    found.ended(8, 100)
    assert (counters["loads_judged"], found.factor(1)) == (1, 1.0)


def test_a_tier_that_nothing_is_loaded_from_is_probed_now_and_then(clock):
    counters = Counter[str]()
    found = Forecasts(2, counters)
    load(found, clock, 0.01, 0.5, 0.1)
    assert not found.probe_due(1)
    clock.now += forecasts.FIRST_PROBE_S  # little is known yet
    assert found.probe_due(1)
    for _ in range(20):
        load(found, clock, 0.01, 0.5, 0.1)
    clock.now += forecasts.PROBE_S - 0.1
    assert not found.probe_due(1)
    clock.now += 0.2
    assert found.probe_due(1)
    assert not found.probe_due(1)  # one is under way
    load(found, clock, 0.01, 0.4, math.inf, probe=True)
    clock.now += 0.4 / forecasts.PROBE_SHARE - 0.1
    assert not found.probe_due(1)  # a tenth of the time is what they may take
    clock.now += 0.2
    assert found.probe_due(1)
    load(found, clock, 0.01, 0.01, math.inf, probe=True)
    assert found.factor(1) == pytest.approx(1.0)  # it is fast again
    assert (counters["probes"], counters["loads_judged"]) == (2, 21)


def test_one_hiccup_does_not_condemn_a_tier(clock):
    found = Forecasts(2, Counter())
    for took in [0.01] * 20 + [10.0] + [0.01] * 5:
        load(found, clock, 0.01, took, 1e9)
    assert found.factor(1) < 2


def test_what_was_learnt_fades(clock):
    found = Forecasts(2, Counter())
    for _ in range(20):
        load(found, clock, 0.01, 1.0, 0.1)
    slow, careful = found.factor(1), found.margin(1)
    clock.now += learnt.FORGET_S
    assert found.factor(1) == pytest.approx(math.sqrt(slow))
    assert found.margin(1) != pytest.approx(careful)
    clock.now += 100 * learnt.FORGET_S
    assert (found.factor(1), found.margin(1)) == pytest.approx((1.0, 1.5), rel=0.01)


@pytest.mark.parametrize(("scatter", "least"), [(0.1, 0.9), (0.5, 0.75), (1.0, 0.5)])
def test_one_load_in_a_hundred_is_slower_and_most_that_pay_are_made(clock, scatter, least):
    """A tier three times as slow as it says, whose times scatter; computing takes .1 to 100 times as long."""
    random, counters = np.random.default_rng(3), Counter[str]()
    found, made, paying = Forecasts(2, counters), 0, 0
    for number in range(6000):
        took, recompute = 0.03 * math.exp(scatter * random.standard_normal()), 0.03 * 10 ** random.uniform(-1, 2)
        weighs = number >= 1000  # the first teach
        if number == 1000:
            counters.clear()
        clock.now += 0.05
        if 0.01 * found.factor(1) * found.margin(1) < recompute:
            load(found, clock, 0.01, took, recompute)
            made += weighs and took < recompute
        elif found.probe_due(1):
            load(found, clock, 0.01, took, math.inf, probe=True)
        paying += weighs and took < recompute
    assert counters["loads_slower_than_recomputing"] <= 0.02 * counters["loads_judged"]
    assert made >= least * paying


def test_a_load_that_is_given_up_is_not_judged(clock):
    counters = Counter[str]()
    found = Forecasts(2, counters)
    found.expect(LEASE, Forecast(1, {7: 100}, 0.01, 0.0, 1.0))
    found.began(7)
    found.released(LEASE)
    found.ended(7, 100)
    assert not counters
    found.expect(LEASE, Forecast(1, {7: 100}, 0.01, 0.0, 1.0))
    found.expect(LEASE, Forecast(1, {8: 100}, 0.01, 0.0, 1.0))  # the same lease, renewed for other chunks
    found.began(8)
    found.ended(8, 100)
    assert counters["loads_judged"] == 1


def test_what_is_not_loaded_in_time_is_not_judged(clock):
    counters = Counter[str]()
    found = Forecasts(2, counters)
    found.expect(LEASE, Forecast(1, {7: 100}, 0.01, 0.0, 1.0))
    clock.now += forecasts.KEPT_S + 1
    found.expect((2, bytes(16)), Forecast(1, {8: 100}, 0.01, 0.0, 1.0))
    found.session_over(2)
    for chunk in (7, 8):  # another chunk may have the row by now
        found.began(chunk)
        found.ended(chunk, 100)
    assert not counters


def test_no_more_are_kept_than_were_promised():
    found = Forecasts(2, Counter())
    for number in range(2 * forecasts.MOST):
        found.expect((number, bytes(16)), Forecast(1, {number: 1, number + 1: 1}, 0.01, 0.0, 1.0))
    assert len(found._waiting) == forecasts.MOST
    assert len(found._of_chunk) == forecasts.MOST + 1
