"""Hints of clients: what `value` makes of them, that they end, and that no number of them does harm."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kvstore._native import Policy, ValuePolicy
from kvstore.policy import POLICIES
from tests.policies.prompts import Prompt, PromptCache
from tests.policies.test_value import popular


def value(capacity: int) -> tuple[ValuePolicy, PromptCache]:
    policy = ValuePolicy(capacity)
    return policy, PromptCache(policy, capacity)


@pytest.mark.parametrize("name", [name for name in POLICIES if name != "value"])
def test_policies_that_learn_nothing_from_hints_ignore_them(name: str) -> None:
    told, alone = (PromptCache(Policy(name, 60), 60) for _ in range(2))
    for number, prompt in enumerate(popular(3, 400)):
        assert told.request(prompt) == alone.request(prompt)
        told.ended(prompt) if number % 2 else told.awaited(prompt, 1000)
        assert told.order() == alone.order()


def test_a_conversation_that_has_ended_goes_first_from_its_tail_on() -> None:
    _, cache = value(12)
    cache.request([1, 2, 3, 4])
    cache.request([7, 8])
    cache.ended([1, 2, 3, 4])
    assert cache.order() == [4, 3, 2, 1, 8, 7]


def test_what_another_conversation_shares_stays_behind_that_and_its_use_ends_the_hint() -> None:
    _, told = value(12)
    _, alone = value(12)
    for cache in (told, alone):
        cache.request([7, 8])
        cache.request([1, 2, 3, 4])
        cache.request([1, 2, 5, 6])
    told.ended([1, 2, 5, 6])
    order = told.order()
    assert order[:2] == [6, 5]
    assert order.index(2) > order.index(3)
    for cache in (told, alone):
        cache.request([1, 2, 3, 4])  # the other one goes on
        for name in (6, 5, 4, 3):
            cache.evict(cache.rows[name])
    assert told.order() == alone.order()


def test_the_partial_ends_of_earlier_turns_do_not_keep_what_has_ended() -> None:
    _, cache = value(20)
    for _turn in range(3):
        cache.request([20, 21, 22])  # is used often
    cache.request([1, 2, 13])
    cache.request([1, 2, 3, 14])
    cache.request([1, 2, 3, 4])
    cache.ended([1, 2, 3, 4])
    for name in (14, 13):
        cache.evict(cache.rows[name])
    assert cache.order()[:4] == [4, 3, 2, 1]


def test_a_hint_ends_with_the_next_use() -> None:
    _, told = value(12)
    _, alone = value(12)
    for cache in (told, alone):
        cache.request([1, 2])
        cache.request([7, 8])
    told.ended([7, 8])
    assert told.order() != alone.order()
    for cache in (told, alone):
        cache.request([7, 8])
    assert told.order() == alone.order()
    told.awaited([1, 2], 1000)
    for cache in (told, alone):
        cache.request([1, 2])
        cache.now += 2_000_000
        cache.request([7, 8])
    assert told.order() == alone.order()


def test_a_prompt_that_awaits_a_tool_stays_until_then_and_goes_first_afterwards() -> None:
    _, cache = value(8)
    cache.request([1, 2])
    cache.awaited([1, 2], 5)
    for first in range(100, 140, 10):
        cache.request([first, first + 1, first + 2])
    assert cache.order()[-2:] == [2, 1]
    cache.now += 1000
    cache.policy.hit(cache.here([130]), cache.now + 1000)  # whatever happens then
    assert cache.order()[:2] == [2, 1]


def test_the_latest_hint_counts() -> None:
    _, cache = value(8)
    cache.request([5, 6])
    cache.request([1, 2])
    cache.awaited([1, 2], 5)
    cache.awaited([1, 2], 500)
    cache.now += 6_000
    cache.request([7])
    assert cache.order()[-2:] == [2, 1]
    cache.ended([1, 2])
    assert cache.order()[:2] == [2, 1]
    cache.awaited([1, 2], 500)
    assert cache.order()[-2:] == [2, 1]


def test_a_hint_speaks_of_what_is_left_of_a_prompt() -> None:
    _, cache = value(8)
    cache.request([5, 6])
    cache.request([1, 2, 3])
    rows = cache.here([1, 2, 3])
    cache.evict(cache.rows[3])
    cache.policy.ended(rows, cache.now)
    assert cache.order()[:2] == [2, 1]


def test_what_has_ended_is_all_of_a_prompt_whatever_is_missing_of_it() -> None:
    _, cache = value(8)
    cache.request([5, 6])
    cache.request([1, 2, 3, 4])
    cache.evict(cache.rows[3], evicted=False)
    cache.ended([1, 2, 3, 4])
    assert cache.order() == [4, 2, 1, 6, 5]


def test_hints_for_rows_that_are_not_here() -> None:
    policy = ValuePolicy(4)
    for rows in ([], [2], [7, 1 << 40], [-1]):
        policy.ended(np.array(rows, np.int64), 0)
        policy.awaited(np.array(rows, np.int64), 0, 100)
    assert policy.waits == 0
    assert policy.victim() == -1
    with pytest.raises(TypeError, match="rows must be an array"):
        policy.ended(np.zeros(2, np.float64), 0)


def test_parents_that_follow_each_other_end_no_worse() -> None:
    """A client names what keys and parents it likes."""
    policy = ValuePolicy(4)
    for row, (key, parent) in enumerate([(11, 12), (12, 11), (13, 11)]):
        policy.admit(row, key, parent, 256 * row, 256, 1, 0)
    policy.ended(np.array([1, 0, 2], np.uint32), 1)
    assert policy.victim() == 2


def test_a_flood_of_hints_takes_no_more_room_than_the_chunks() -> None:
    policy, cache = value(50)
    prompts = [(name, name + 1) for name in range(1, 101, 2)]
    for prompt in prompts:
        cache.request(prompt)
    for number in range(20_000):
        cache.awaited(prompts[number % 50], number % 977)
        assert policy.waits <= 25
    assert policy.waits == 25
    for prompt in prompts:
        cache.request(prompt)  # used, or gone
    assert policy.waits == 0


def test_no_more_than_half_is_held_for_who_is_awaited_and_the_latest_give_way() -> None:
    policy, cache = value(40)
    prompts = [(name, name + 1) for name in range(1, 41, 2)]
    for number, prompt in enumerate(prompts):
        cache.request(prompt)
        cache.awaited(prompt, 10_000 if number % 2 else 1000)
    assert policy.waits == 20  # there was room for all
    for name in range(100, 200):
        cache.request((name,))
    assert policy.waits == 9
    assert sum(prompt[1] in cache.rows for prompt in prompts[::2]) == 9
    assert not any(prompt[1] in cache.rows for prompt in prompts[1::2])
    assert sorted(cache.order()) == sorted(cache.rows)


class Hinted(RuleBasedStateMachine):
    """Prompts of one tree come, are used, hinted at, go. `value` must keep what it was told of, each chunk once."""

    def __init__(self) -> None:
        super().__init__()
        self.policy, self.cache = value(24)
        self.prompts: list[Prompt] = [(1,)]

    names = st.integers(0, 7)

    def prompt(self, at: int) -> Prompt:
        return self.prompts[at % len(self.prompts)]

    @rule(of=names, more=st.integers(1, 5))
    def branch(self, of: int, more: int) -> None:
        stem = self.prompt(of)[:12]
        first = 10 * len(self.prompts) + 100
        self.prompts.append((*stem, *range(first, first + more)))
        self.cache.request(self.prompts[-1])

    @rule(at=st.integers(0, 50))
    def use(self, at: int) -> None:
        self.cache.request(self.prompt(at))

    @rule(at=st.integers(0, 50), length=st.integers(1, 12))
    def ended(self, at: int, length: int) -> None:
        self.cache.ended(self.prompt(at)[:length])

    @rule(at=st.integers(0, 50), length=st.integers(1, 12), seconds=st.floats(-5, 30))
    def awaited(self, at: int, length: int, seconds: float) -> None:
        self.cache.awaited(self.prompt(at)[:length], seconds)

    @rule(seconds=st.integers(0, 20))
    def wait(self, seconds: int) -> None:
        self.cache.now += seconds * 1000

    @precondition(lambda self: self.cache.rows)
    @rule(at=names, evicted=st.booleans())
    def go(self, at: int, evicted: bool) -> None:
        order = [self.cache.rows[name] for name in self.cache.order()]
        self.cache.evict(order[at % len(order)], evicted=evicted)

    @precondition(lambda self: len(self.cache.rows) > 2)
    @rule(held=st.integers(0, 2))
    def make_room_around_what_is_held(self, held: int) -> None:
        """What is pinned or leased is passed over, as the store does it."""
        kept = {self.cache.rows[name] for name in list(self.cache.rows)[:held]}
        for row in self.policy.victims():
            if row not in kept:
                self.cache.evict(row)
                break
        assert kept <= set(self.cache.names)

    @invariant()
    def every_chunk_is_there_once_and_tails_go_before_heads(self) -> None:
        order = self.cache.order()
        assert sorted(order) == sorted(self.cache.rows)
        assert len(self.policy) == len(order)
        place = {name: number for number, name in enumerate(order)}
        parents = self.cache.parents
        assert all(place[name] < place[parents[name]] for name in order if parents[name] in place)
        assert self.policy.waits <= len(order)


TestHinted = Hinted.TestCase
TestHinted.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
