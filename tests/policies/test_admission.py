"""The filter in front of a tier against one in plain Python, and what it promises whatever is offered."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore._native import Admission, entry_names

from .filters import DAY_MS, Filter

CAPACITY = 1600
KEYS = st.integers(1, 60)
SIZES = st.integers(1, 300)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), KEYS, st.booleans(), SIZES),
        st.tuples(st.just("leave"), KEYS, SIZES),
        st.tuples(st.just("lose"), SIZES),
        st.tuples(st.just("full")),
        st.tuples(st.just("wait"), st.integers(-1000, 6 * DAY_MS // 24)),
        st.tuples(st.just("clean"), SIZES),
        st.tuples(st.just("hold"), SIZES),
    ),
    max_size=150,
)


def take(filter_: Admission | Filter, step: tuple[Any, ...], written: int, now: int) -> tuple[int, int]:
    """One step of one filter; what was written in all and the time after it."""
    kind, *what = step
    if kind == "offer":
        key, used, nbytes = what
        verdict = filter_.judge(key, used)
        if verdict != "open":
            filter_.refuse(verdict, nbytes)
            return written, now
        filter_.begin(nbytes)
        filter_.end(nbytes)
        filter_.came(nbytes)
        written += nbytes
    elif kind == "wait":
        now += what[0]
    elif kind == "clean":  # the tier copies by itself
        written += what[0]
    else:
        {"leave": filter_.remember, "lose": filter_.left, "full": filter_.was_full, "hold": filter_.begin}[kind](*what)
        if kind == "hold":  # as long as it takes to look at the other
            filter_.end(what[0])
        return written, now
    filter_.settle(written, now)
    return written, now


@settings(max_examples=200, deadline=None)
@given(steps=STEPS, second_touch=st.booleans(), per_day=st.sampled_from([0, 1, 40, 4000, DAY_MS]))
def test_it_is_the_references(steps: list[tuple[Any, ...]], second_touch: bool, per_day: int) -> None:
    native, model = Admission(second_touch, per_day, CAPACITY, 1 << 10), Filter(second_touch, per_day, CAPACITY)
    after = (0, 1_000_000)
    for step in steps:
        expected = take(model, step, *after)
        after = take(native, step, *after)
        assert after == expected
        assert native.budget_left == pytest.approx(float(model.left_bytes - model.promised), abs=1e-3)
        assert native.ghosts == len(model.ghosts)
        for key, used in itertools.product(range(1, 61, 7), (False, True)):
            assert native.judge(key, used) == model.judge(key, used)


@settings(max_examples=60, deadline=None)
@given(
    offers=st.lists(st.tuples(st.integers(0, DAY_MS // 12), st.integers(1, 4000), st.booleans()), max_size=200),
    per_day=st.integers(1, 200_000),
)
def test_no_stretch_of_time_sees_more_than_its_share(offers: list[tuple[int, int, bool]], per_day: int) -> None:
    """What is written between two moments, but for the last chunk, is the time's share and a quarter day's at most."""
    filter_, written, now = Admission(False, per_day, CAPACITY, 1 << 10), 0, 0
    before: list[tuple[int, int]] = [(0, 0)]
    for wait, nbytes, used in offers:
        now += wait
        filter_.settle(written, now)
        if filter_.judge(7, used) == "open":
            for then, had in before:
                assert written - had <= per_day * ((now - then) / DAY_MS + 0.25) + 1e-3
            filter_.begin(nbytes)
            written += nbytes
            filter_.end(nbytes)
            filter_.settle(written, now)
        before.append((now, written))


def test_what_is_under_way_counts_at_once() -> None:
    filter_ = Admission(False, 4000, CAPACITY, 16)
    filter_.begin(999)
    assert filter_.judge(1, True) == "open"
    filter_.begin(1)
    assert filter_.judge(1, True) == "budget_spent"
    filter_.end(999)
    filter_.end(1)
    filter_.settle(0, 0)  # both failed
    assert filter_.budget_left == filter_.budget_most == 1000
    assert (filter_.judge(1, True), filter_.state) == ("open", "open")


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(SIZES, min_size=100, max_size=400))
def test_what_never_comes_back_is_let_in_now_and_then(sizes: list[int]) -> None:
    """A sixteenth of it, within one filling of what is let in at once; and one after the other."""
    filter_, came, run, runs = Admission(True, 0, CAPACITY, 1 << 10), 0, 0, []
    filter_.was_full()
    for key, nbytes in enumerate(sizes, 1):
        verdict = filter_.judge(key, False)
        if verdict == "open":
            filter_.begin(nbytes)
            filter_.end(nbytes)
            came, run = came + nbytes, run + nbytes
            continue
        assert verdict == "used_once"
        filter_.refuse(verdict, nbytes)
        filter_.remember(key, nbytes)
        runs += [run] if run else []
        run = 0
    kept_out = sum(sizes) - came
    assert came >= (kept_out // (CAPACITY + max(sizes))) * (CAPACITY // 16) - CAPACITY // 16
    assert came <= (kept_out / CAPACITY + 1) * (CAPACITY // 16 + max(sizes))
    assert all(each >= CAPACITY // 16 for each in runs)


@given(offers=st.lists(st.tuples(KEYS, SIZES), max_size=100), freed=st.integers(0, 2000))
def test_a_tier_with_room_takes_everything(offers: list[tuple[int, int]], freed: int) -> None:
    filter_ = Admission(True, 0, CAPACITY, 1 << 10)
    assert all(filter_.judge(key, False) == "open" for key, _ in offers)
    filter_.was_full()
    filter_.left(freed)
    for key, nbytes in offers:
        assert (filter_.judge(key, False) == "open") == (freed > 0) == filter_.has_room
        filter_.came(nbytes)
        freed = max(0, freed - nbytes)


def test_a_chunk_is_known_for_four_turns_of_the_tier_and_no_longer() -> None:
    filter_ = Admission(True, 0, CAPACITY, 1 << 10)
    filter_.was_full()
    for key in range(1, 66):
        filter_.remember(key, 100)
    assert filter_.ghosts == 64
    assert [filter_.judge(key, False) for key in (1, 2, 65)] == ["used_once", "open", "open"]
    filter_.set_capacity(400)
    assert [filter_.judge(key, False) for key in (49, 50)] == ["used_once", "open"]


def test_used_twice_comes_first_when_little_is_left() -> None:
    filter_ = Admission(False, 4000, CAPACITY, 16)  # 1000 at once
    filter_.was_full()
    filter_.settle(0, 0)
    filter_.settle(501, 0)
    assert (filter_.judge(1, False), filter_.judge(1, True), filter_.state) == ("budget_low", "open", "budget_low")
    filter_.settle(501, int(0.03 * DAY_MS))  # 619 are left: it opens at 625
    assert filter_.judge(1, False) == "budget_low"
    filter_.settle(501, int(0.032 * DAY_MS))
    assert filter_.judge(1, False) == "open"
    filter_.settle(1200, int(0.032 * DAY_MS))
    assert filter_.judge(1, True) == "budget_spent"
    filter_.settle(1200, int(0.07 * DAY_MS))  # 79 are left: it opens at 125
    assert filter_.judge(1, True) == "budget_spent"
    filter_.settle(1200, int(0.082 * DAY_MS))
    assert (filter_.judge(1, True), filter_.judge(1, False)) == ("open", "budget_low")


def test_a_budget_that_was_put_aside_goes_on() -> None:
    filter_ = Admission(False, 4000, CAPACITY, 16)
    filter_.restore(-100.0, 0)
    assert filter_.judge(1, True) == "budget_spent"
    filter_.settle(0, DAY_MS // 10)
    assert filter_.budget_left == pytest.approx(300)
    filter_.restore(5000.0, 0)  # of a larger budget
    assert filter_.budget_left == 1000


def test_nothing_is_refused_for_no_reason() -> None:
    filter_ = Admission(True, 0, CAPACITY, 16)
    assert entry_names()[0] == "open"
    for why in ("open", "dislike"):
        with pytest.raises(ValueError, match=why):
            filter_.refuse(why, 1)
