"""What has outlived the process: chunks that a policy is told of without having seen them used."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore._native import Policy, ValuePolicy
from kvstore.policy import POLICIES
from tests.policies.prompts import PromptCache

HOUR = 3_600_000


def restore(policy: Policy, rows: range, *, idle_ms: int, first_key: int = 1_000_000) -> None:
    """Prompts of three chunks of 16 tokens each, put a second apart, the last of them `idle_ms` ago."""
    for row in rows:
        place, left = (row - rows.start) % 3, rows.stop - row
        key = first_key + row
        parent = key - 1 if place else 0
        policy.restore(row, key, parent, place * 16, 16, 1, idle_ms + left * 1000, left, 5)


@pytest.mark.parametrize("name", POLICIES)
def test_it_is_ordered_as_what_came(name: str) -> None:
    policy = Policy(name, 100)
    restore(policy, range(30), idle_ms=HOUR)
    assert len(policy) == 30
    assert sorted(policy.victims()) == list(range(30))
    policy.restore(3, 1_000_003, 0, 0, 16, 7, HOUR, 1, 5)  # another part of it
    policy.hit(np.array([3, 4, 5], np.uint32), 6)
    for row in policy.victims():
        policy.remove(row, True, 7)
    assert len(policy) == 0


def test_what_lay_longest_goes_first_and_tails_before_heads() -> None:
    policy = ValuePolicy(1000)
    restore(policy, range(300), idle_ms=HOUR)
    restore(policy, range(300, 330), idle_ms=20)
    order = list(policy.victims())
    place = {row: at for at, row in enumerate(order)}
    assert all(place[row + 1] < place[row] for row in range(330) if row % 3 < 2)
    tails = [row for row in order if row % 3 == 2]
    newest = [row for row in tails if row >= 300]
    assert tails[-len(newest) :] == newest
    eldest = np.array([row for row in tails if row < 300])
    assert np.corrcoef(eldest, np.arange(len(eldest)))[0, 1] > 0.9


def test_a_restored_chunk_is_as_any_other_once_it_is_used() -> None:
    policy = ValuePolicy(100)
    restore(policy, range(30), idle_ms=24 * HOUR)
    policy.hit(np.array([0, 1, 2], np.uint32), 10)
    assert list(policy.victims())[-3:] == [2, 1, 0]


def test_nothing_is_learned_from_what_was_not_seen() -> None:
    """Nobody asks any more for what a restart brings back: it makes room, and all else is learned as without it."""
    loop = [(name,) for name in range(1, 3001)]
    learned = []
    for restored in (0, 2000):
        policy = ValuePolicy(2000)
        cache = PromptCache(policy, 2000, linked=False)
        restore(policy, range(restored), idle_ms=HOUR)
        for row in range(restored):
            cache.free.remove(row)
            cache.names[row] = 1_000_000 + row
            cache.rows[1_000_000 + row] = row
        cache.play(loop * 3)
        learned.append(cache.play(loop * 3))
    assert learned[0] > 0.1
    assert learned[1] > learned[0] - 0.05
