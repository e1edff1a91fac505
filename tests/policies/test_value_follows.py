"""`value` follows a simpler policy where that does better, and lets a prompt be its own victim."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from kvstore._native import Policy, ValuePolicy
from tests.policies.prompts import TOKENS, Prompt, PromptCache

CAPACITY = 200


def chats(count: int) -> Iterator[Prompt]:
    """Twelve conversations at a time, each of which comes back longer, until new ones take their place."""
    rng = np.random.default_rng(3)
    running: list[list[int]] = []
    for number in range(count):
        if not running or rng.random() < 0.15:
            running.append([(number + 1) * 1000])
            running = running[-12:]
        chat = running[rng.integers(len(running))]
        chat.extend(range(chat[-1] + 1, chat[-1] + 2 + int(rng.integers(4))))
        yield list(chat)


def played(cache: PromptCache, policy: ValuePolicy, ended: Callable[[int], bool]) -> dict[str | None, float]:
    """The share of chunks that were hit, by the policy that was followed.

    Of a prompt `ended` says, by its number, whether the client tells that it will not go on.
    """
    hits: dict[str | None, int] = {}
    asked: dict[str | None, int] = {}
    for number, prompt in enumerate(chats(12_000)):
        followed = policy.followed
        hits[followed] = hits.get(followed, 0) + cache.request(prompt)
        asked[followed] = asked.get(followed, 0) + len(prompt)
        if ended(number):
            cache.ended(prompt)
    return {followed: hits[followed] / asked[followed] for followed in hits}


def goes_on() -> set[int]:
    """The numbers of the prompts that another one goes on with."""
    last: dict[int, int] = {}
    numbers = set()
    for number, prompt in enumerate(chats(12_000)):
        if prompt[0] in last:
            numbers.add(last[prompt[0]])
        last[prompt[0]] = number
    return numbers


def test_hints_that_are_all_wrong_are_found_out() -> None:
    """Those that end are said to go on, and those that go on to have ended."""
    policy = ValuePolicy(CAPACITY)
    shares = played(PromptCache(policy, CAPACITY), policy, goes_on().__contains__)
    lru = PromptCache(Policy("lru", CAPACITY), CAPACITY).play(chats(12_000))
    assert shares.pop(None) < lru - 0.1
    assert shares
    assert all(share > lru - 0.02 for share in shares.values()), (shares, lru)


def test_where_every_prompt_is_said_to_have_ended_they_go_as_under_lru() -> None:
    policy = ValuePolicy(CAPACITY)
    shares = played(PromptCache(policy, CAPACITY), policy, lambda number: True)
    lru = PromptCache(Policy("lru", CAPACITY), CAPACITY).play(chats(12_000))
    assert shares == {None: pytest.approx(lru, abs=0.002)}


def test_hints_that_are_right_are_worth_something() -> None:
    told, alone, going_on = ValuePolicy(120), ValuePolicy(120), goes_on()
    with_hints = played(PromptCache(told, 120), told, lambda number: number not in going_on)
    without = played(PromptCache(alone, 120), alone, lambda number: False)
    assert with_hints[None] > without[None] + 0.05


def test_nothing_is_followed_that_is_no_better() -> None:
    policy = ValuePolicy(CAPACITY)
    shares = played(PromptCache(policy, CAPACITY), policy, lambda number: False)
    lru = PromptCache(Policy("lru", CAPACITY), CAPACITY).play(chats(12_000))
    assert shares.keys() == {None}
    assert shares[None] > lru - 0.02


def test_while_another_policy_is_followed_all_rows_are_victims_in_its_order() -> None:
    policy, wrong = ValuePolicy(CAPACITY), goes_on()
    cache = PromptCache(policy, CAPACITY)
    for number, prompt in enumerate(chats(12_000)):
        cache.request(prompt)
        if policy.followed is not None:
            break
        if number in wrong:
            cache.ended(prompt)
    assert policy.followed is not None
    order = cache.order()
    assert sorted(order) == sorted(cache.rows)
    gone = cache.rows[order[0]]
    cache.evict(gone)
    assert gone not in policy
    assert cache.order() == order[1:]


def test_what_follows_a_chunk_that_had_to_go_meanwhile_goes_next() -> None:
    policy = ValuePolicy(10)
    for row, name in enumerate((1, 2, 3)):
        policy.admit(row, name, 0, 0, TOKENS, 1, 0)
    policy.admit(3, 10, 0, 0, TOKENS, 1, 0)
    policy.remove(3, True, 0)  # its prompt was still on its way
    policy.admit(3, 11, 10, TOKENS, TOKENS, 1, 0)
    assert policy.victim() == 3
    policy.remove(3, True, 0)
    policy.admit(3, 12, 11, 2 * TOKENS, TOKENS, 1, 0)
    assert policy.victim() == 3


def test_what_follows_a_chunk_that_is_back_does_not_go_next() -> None:
    policy = ValuePolicy(10)
    policy.admit(0, 1, 0, 0, TOKENS, 1, 0)
    policy.admit(1, 10, 0, 0, TOKENS, 1, 0)
    policy.remove(1, True, 0)
    policy.admit(1, 10, 0, 0, TOKENS, 1, 0)
    policy.admit(2, 11, 10, TOKENS, TOKENS, 1, 0)
    assert policy.victim() == 0


class Recorded(PromptCache):
    """Knows in which order its chunks were used."""

    def __init__(self, policy: ValuePolicy, capacity: int) -> None:
        super().__init__(policy, capacity)
        self.used: dict[int, int] = {}

    def request(self, prompt: Prompt) -> int:
        here = [name for name in prompt if name in self.rows]
        hit = super().request(prompt)
        for name in [*(each for each in reversed(prompt) if each not in here), *reversed(here)]:
            if name in self.rows:
                self.used[name] = self.used.pop(name, 0) + 1  # to the end
        return hit


def test_the_order_that_is_followed_is_made_piece_by_piece() -> None:
    policy, wrong = ValuePolicy(CAPACITY), goes_on()
    cache = Recorded(policy, CAPACITY)
    exact: list[bool] = []
    for number, prompt in enumerate(chats(12_000)):
        cache.request(prompt)
        if policy.followed is not None:
            assert policy.followed == "lru"
            exact.append(cache.order() == [name for name in cache.used if name in cache.rows])
        elif number in wrong:
            cache.ended(prompt)
        if len(exact) == 200:
            break
    assert not exact[0]  # it is `value`'s own until the other one is whole
    assert all(exact[50:])
