"""What is told of `value`'s victims to somebody who asks on and on while other things happen."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from kvstore._native import ValuePolicy
from tests.policies.prompts import PromptCache

CAPACITY = 24
COSTS = {
    "flops_per_token": 1.0, "flops_per_token2": 0.0, "prefill_flops_per_s": 1.0, "load_bytes_per_s": 1.0,
    "load_latency_s": 0.0, "decode_bytes_per_s": 0.0,
}  # fmt: skip
prompts = st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 7))
events = st.tuples(
    st.sampled_from(["nothing", "request", "delete", "evict", "end", "await", "wait", "uses", "costs"]),
    prompts, st.integers(0, 30),
)  # fmt: skip


def names(prompt: tuple[int, int, int]) -> list[int]:
    """Two that share a root part ways after two chunks."""
    root, branch, length = prompt
    return [root * 1000 + (0 if place < 2 else branch * 100) + place + 1 for place in range(length)]


class Watched:
    """A walk over what a cache holds, and what it may say next."""

    def __init__(self, cache: PromptCache) -> None:
        self.cache = cache
        self.walk = cache.policy.victims()
        self.stayed = set(cache.rows)  # since it began
        self.told = set[int]()  # that have not left since

    def ask(self) -> bool:
        """One step; False at the end."""
        row = next(self.walk, None)
        if row is None:
            return False
        name = self.cache.names[row]
        assert name not in self.told
        after = {each for each in self.cache.rows if self.cache.parents[each] == name}
        assert after <= self.told
        self.told.add(name)
        return True

    def refresh(self) -> None:
        """Something may have left."""
        self.stayed &= set(self.cache.rows)
        self.told &= set(self.cache.rows)


def do(cache: PromptCache, event: str, prompt: list[int], number: int) -> None:
    """What may happen between two questions."""
    here = [name for name in prompt if name in cache.rows]
    if event == "request":
        cache.request(prompt)
    elif event in ("delete", "evict") and here:
        cache.evict(cache.rows[here[number % len(here)]], evicted=event == "evict")
    elif event == "end":
        cache.ended(prompt)
    elif event == "await":
        cache.awaited(prompt, number)
    elif event == "wait":
        cache.now += number * 100_000
    elif event == "uses":
        for _ in range(40 * number):  # the order is made anew now and then
            cache.policy.hit(cache.here(prompt), cache.now)
    elif event == "costs":
        cache.policy.set_costs(**COSTS)


def filled(begin: list[tuple[int, int, int]]) -> PromptCache:
    cache = PromptCache(ValuePolicy(CAPACITY), CAPACITY)
    for prompt in begin:
        cache.request(names(prompt))
    return cache


@given(st.lists(prompts, max_size=20), st.lists(st.tuples(events, st.integers(0, 3)), max_size=40))
def test_what_stays_is_told_of_once_after_all_that_follow_it(
    begin: list[tuple[int, int, int]], script: list[tuple[tuple[str, tuple[int, int, int], int], int]]
) -> None:
    cache = filled(begin)
    walks = [Watched(cache)]
    for number, ((event, prompt, argument), steps) in enumerate(script):
        before = dict(cache.rows)
        do(cache, event, names(prompt), argument)
        for walk in walks:
            walk.refresh()
            walk.told -= {name for name, row in cache.rows.items() if before.get(name) != row}  # went, and came back
            walk.stayed -= {name for name, row in cache.rows.items() if before.get(name) != row}
            for _ in range(steps):
                walk.ask()
        if number % 10 == 0:
            walks.append(Watched(cache))
    for walk in walks:
        while walk.ask():
            pass
        assert walk.stayed <= walk.told
        assert not walk.ask()


@given(st.lists(prompts, min_size=3, max_size=20), st.lists(st.integers(0, 5), max_size=12))
def test_what_it_has_told_of_may_go_and_the_order_stays(begin: list[tuple[int, int, int]], pieces: list[int]) -> None:
    cache = filled(begin)
    order = list(cache.policy.victims())
    walk, seen = cache.policy.victims(), list[int]()
    for piece in pieces:
        found = list(islice(walk, piece))
        for row in found[::2]:
            cache.evict(row)
        seen += found
    assert [*seen, *walk] == order


def test_a_walk_that_nobody_holds_costs_nothing_more() -> None:
    """What has been let go of is not told of events any more; what is held outlives other walks."""
    cache = filled([(root, 1, 5) for root in (1, 2, 3)])
    held = cache.policy.victims()
    first = next(held)
    for _ in range(1000):
        next(cache.policy.victims())
    cache.request(names((4, 1, 5)))
    assert sorted([first, *held]) == sorted(set(cache.rows.values()) | {first})


def test_a_walk_outlives_the_name_of_its_policy() -> None:
    walk = filled([(1, 1, 6)]).policy.victims()
    assert len(list(walk)) == 6
