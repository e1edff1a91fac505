"""What `value` learns, and what it keeps to whatever it has learned."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice, permutations

import numpy as np
import pytest

from kvstore._native import Policy, ValuePolicy
from tests.policies.prompts import TOKENS, Prompt, PromptCache

COSTS = {
    "flops_per_token": 1e10, "flops_per_token2": 0.0, "prefill_flops_per_s": 1e15, "load_latency_s": 0.0,
    "decode_bytes_per_s": 0.0,
}  # fmt: skip


def value(capacity: int, *, linked: bool = True) -> tuple[ValuePolicy, PromptCache]:
    policy = ValuePolicy(capacity)
    return policy, PromptCache(policy, capacity, linked=linked)


def popular(seed: int, count: int, first: int = 0) -> Iterator[Prompt]:
    """Prompts of 4 to 8 chunks of which few are asked for often, over names from `first` on."""
    rng = np.random.default_rng(seed)
    for each in rng.zipf(1.3, count) % 400:
        begin = first + int(each) * 10 + 1
        yield range(begin, begin + 4 + int(each) % 5)


def once(count: int, first: int) -> Iterator[Prompt]:
    for each in range(count):
        yield range(first + each * 10, first + each * 10 + 6)


def test_it_is_the_policy_of_that_name() -> None:
    policy = Policy("value", 10)
    assert isinstance(policy, ValuePolicy)
    assert policy.ghosts == 0


def test_it_learns_a_loop_larger_than_the_cache() -> None:
    loop = [(name,) for name in range(1, 1001)]
    _, cache = value(500, linked=False)
    cache.play(loop * 20)
    learned = cache.play(loop * 5)
    lru = PromptCache(Policy("lru", 500), 500, linked=False)
    assert lru.play(loop * 3) == 0
    assert learned > 0.35


def test_a_scan_of_prompts_that_never_come_back_costs_little() -> None:
    _, undisturbed = value(400)
    _, scanned = value(400)
    warm = list(popular(1, 3000))
    for cache in (undisturbed, scanned):
        cache.play(warm)
    scanned.play(once(2 * 400 // 6, 1_000_000))
    after = list(popular(2, 500))
    assert scanned.play(after) > undisturbed.play(after) - 0.02


def test_it_recovers_from_a_shift() -> None:
    behind = []
    for seed in range(0, 30, 6):
        _, shifted = value(400)
        _, settled = value(400)
        shifted.play(popular(seed + 1, 3000))
        settled.play(popular(seed + 4, 3000, first=100_000))
        shifted.play(popular(seed + 3, 600, first=100_000))  # a tenth of the trace
        after = list(popular(seed + 5, 1000, first=100_000))
        behind.append(settled.play(after) - shifted.play(after))
    assert sum(behind) / len(behind) < 0.025


def test_think_time_is_learned_whatever_else_is_asked() -> None:
    """Each second a session begins, comes back after a minute, and never again; what else is asked comes once, at one
    request a second or at twenty. Told of the time it finds what it cannot where time stands still, and uses count.
    """

    def hits(*, timed: bool) -> float:
        _, cache = value(1600)
        hit = asked = 0
        for second in range(2400):
            others = 20 if second // 300 % 2 else 1
            cache.now = second * 1000 if timed else -1000
            cache.request(range(second * 10 + 1, second * 10 + 5))
            if second >= 60:
                cache.now = second * 1000 + 10 if timed else -1000
                found = cache.request(range(second * 10 - 599, second * 10 - 594))
                hit, asked = hit + found * (second >= 1200), asked + 4 * (second >= 1200)
            for each in range(others):
                cache.now = second * 1000 + 20 + each * 40 if timed else -1000
                first = 10_000_000 + second * 200 + each * 10
                cache.request(range(first, first + 4))
        return hit / asked

    assert hits(timed=True) > hits(timed=False) + 0.05


@pytest.mark.parametrize("positions", [(256, 256), (256, 512), (512, 256), (0, 256), (256, 0)])
def test_chunks_that_follow_each_other_go_all_the_same(positions: tuple[int, int]) -> None:
    policy = ValuePolicy(8)
    for row, position in enumerate(positions):
        policy.admit(row, 1 + row, 2 - row, position, TOKENS, 1, 0)
    policy.admit(2, 3, 2, 768, TOKENS, 1, 0)
    assert sorted(policy.victims()) == [0, 1, 2]


def test_a_circle_of_three_goes_all_the_same() -> None:
    for positions in permutations((256, 512, 768)):
        policy = ValuePolicy(8)
        for row, position in enumerate(positions):
            policy.admit(row, 1 + row, 1 + (row + 1) % 3, position, TOKENS, 1, 0)
        assert sorted(policy.victims()) == [0, 1, 2]


def test_a_chunk_that_others_follow_is_no_victim() -> None:
    policy, cache = value(120)
    rng = np.random.default_rng(7)
    for step in range(3000):
        root, branch, length = int(rng.integers(12)), int(rng.integers(5)), int(rng.integers(2, 9))
        prompt = [root * 1000 + 1] + [root * 1000 + branch * 100 + place + 2 for place in range(length)]
        cache.request(prompt)
        if step % 50 == 0:
            cache.evict(int(rng.choice(list(cache.names))), evicted=False)
        if cache.names and step % 10 == 0:
            parents = {cache.parents[name] for name in cache.rows}
            assert cache.names[policy.victim()] not in parents
    assert len(policy) == len(cache.rows)


@pytest.mark.parametrize("remove", [False, True])
def test_a_walk_goes_from_tails_to_heads_and_names_each_row_once(remove: bool) -> None:
    _, cache = value(200)
    cache.play(popular(9, 500))
    rows, children = dict(cache.rows), dict(cache.parents)
    named: list[int] = []
    for row in cache.policy.victims():
        name = cache.names[row]
        assert not [child for child in rows if children[child] == name and child not in named]
        named.append(name)
        if remove and len(named) % 3:
            cache.evict(row)
    assert sorted(named) == sorted(rows)
    again = cache.order()
    assert sorted(again) == sorted(cache.rows)
    assert again == [name for name in named if name in cache.rows] or remove


def test_asking_changes_nothing() -> None:
    _, cache = value(100)
    cache.play(popular(11, 300))
    first = cache.order()
    for ahead in (1, 5, 40):
        walk = cache.policy.victims()
        assert [cache.names[next(walk)] for _ in range(ahead)] == first[:ahead]
    assert cache.order() == first


@pytest.mark.parametrize("piece", [1, 2, 7, 33])
def test_a_walk_in_pieces_names_each_row_once(piece: int) -> None:
    """As the mover walks when it writes down all that a store has, some at a time, while others walk too."""
    _, cache = value(100)
    cache.play(popular(11, 300))
    order = list(cache.policy.victims())
    walk, seen = cache.policy.victims(), list[int]()
    while found := list(islice(walk, piece)):
        seen += found
        assert list(islice(cache.policy.victims(), piece)) == order[:piece]
    assert seen == order


def test_a_walk_gets_on_whatever_happens_meanwhile() -> None:
    """Nobody may go, and something is used between any two questions, as in a store that makes room under load."""
    _, cache = value(100)
    cache.play(popular(11, 300))
    busy = cache.here(next(popular(11, 1)))
    seen = []
    for row in cache.policy.victims():
        seen.append(row)
        cache.policy.hit(busy, cache.now)
    assert sorted(seen) == sorted(cache.names)


def test_ghosts_are_bounded() -> None:
    policy, cache = value(50)
    most = 0
    for prompt in once(3000, 1):
        cache.request(prompt)
        most = max(most, policy.ghosts)
    assert 40 <= most <= 50  # never more than rows
    small = ValuePolicy(10_000)
    cache = PromptCache(small, 20)
    for prompt in once(3000, 1):
        cache.request(prompt)
    assert small.ghosts <= 8 * 20


def test_the_same_events_give_the_same_order() -> None:
    orders = []
    for _run in range(2):
        _, cache = value(150)
        share = cache.play(popular(13, 1500))
        orders.append((share, cache.order()))
    assert orders[0] == orders[1]


def test_what_is_deleted_is_forgotten() -> None:
    policy, cache = value(20)
    cache.request(range(1, 11))
    for row in list(policy.victims()):
        cache.evict(row, evicted=False)
    assert policy.ghosts == 0
    assert len(policy) == 0


def test_two_chunks_of_one_hash() -> None:
    policy = ValuePolicy(10)
    for row in range(3):
        policy.admit(row, 5, 0, 0, 256, 1, row)
    assert sorted(policy.victims()) == [0, 1, 2]
    policy.remove(1, True, 5)
    policy.hit(np.array([0, 2], np.uint32), 6)
    assert sorted(policy.victims()) == [0, 2]


def test_what_is_slower_to_load_than_to_compute_goes_first() -> None:
    policy = ValuePolicy(10)
    policy.set_costs(load_bytes_per_s=1e9, **COSTS)  # 256 tokens: 2.56 ms of prefill, 2.56 MB of load
    policy.admit(0, 1, 0, 0, 256, 1_000_000, 0)
    policy.admit(1, 2, 0, 0, 256, 5_000_000, 1)
    policy.hit(np.array([1], np.uint32), 2)
    assert list(policy.victims()) == [1, 0]
    policy.admit(1, 2, 0, 0, 256, 1_000_000, 3)  # stored smaller now
    policy.hit(np.array([1], np.uint32), 4)
    assert policy.victim() == 0


def test_what_takes_more_room_for_its_tokens_goes_first() -> None:
    policy = ValuePolicy(10)
    for row in range(6):  # every other one encoded, to a quarter
        policy.admit(row, row + 1, 0, 0, 256, 1_000_000 if row % 2 else 250_000, row)
    assert list(policy.victims()) == [1, 3, 5, 0, 2, 4]
    policy.admit(4, 5, 0, 0, 256, 1_000_000, 6)  # as large as the others now
    assert list(policy.victims()) == [1, 3, 5, 4, 0, 2]


def test_what_is_dearer_to_compute_goes_later() -> None:
    costs = {**COSTS, "flops_per_token2": 1e6, "load_bytes_per_s": 1e12}  # twice as dear from token 10,000 on
    told, untold = ValuePolicy(10), ValuePolicy(10)
    told.set_costs(**costs)
    for policy in (told, untold):
        for row, position in enumerate((80_000, 1000, 40_000, 1)):
            policy.admit(row, row + 1, 0, position, 256, 1000, row)
    assert list(untold.victims()) == [0, 1, 2, 3]
    assert list(told.victims()) == [1, 3, 2, 0]
    untold.set_costs(**costs)
    untold.hit(np.array([0], np.uint32), 4)  # what is used is reckoned anew
    assert list(untold.victims()) == [1, 2, 3, 0]


def test_a_partial_chunk_is_no_measure_of_the_others() -> None:
    policy = ValuePolicy(10)
    policy.admit(0, 1, 0, 0, 1, 1_000_000, 0)
    for row in range(1, 5):
        policy.admit(row, row + 1, 0, 0, 256, 1_000_000 if row % 2 else 250_000, row)
    assert list(policy.victims()) == [0, 1, 3, 2, 4]
