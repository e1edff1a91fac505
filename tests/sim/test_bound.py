"""The bound is one: above everything that can be done, and near Belady's rule where that is the best."""

from __future__ import annotations

from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.policy import POLICIES
from kvstore.sim.bound import intervals, upper_bound
from kvstore.sim.replay import Replay
from kvstore.sim.setup import BELADY, Capacity, Setup, Tier
from kvstore.sim.trace import Trace

from .models import BYTES, SPEED
from .traces import BLOCK, REAL, conversations, linked, real, segmented


def bound_of(trace: Trace, first: int, capacity: int, **options: int) -> float:
    found = intervals(trace, first)
    gain = found.gains(trace.chunk_tokens[trace.chunk].astype(float))
    return upper_bound(found, gain, trace.chunk_tokens[found.chunk].astype(float), capacity, **options)


def best_possible(trace: Trace, capacity: int) -> int:
    """By trying every set of intervals: the most tokens that can be hit, were heads not needed."""
    uses: dict[int, list[int]] = {}
    for request in range(trace.requests):
        for chunk in set(trace.chunk[int(trace.starts[request]) : int(trace.starts[request + 1])].tolist()):
            uses.setdefault(chunk, []).append(request)
    kept = [(a, b, int(trace.chunk_tokens[c])) for c, at in uses.items() for a, b in pairwise(at)]
    best = 0
    for count in range(len(kept) + 1):
        for some in combinations(kept, count):
            load = np.zeros(trace.requests, int)
            for a, b, size in some:
                load[a:b] += size
            if load.max(initial=0) <= capacity:
                best = max(best, sum(size for _, _, size in some))
    return best


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=3, unique=True), min_size=1, max_size=6),
    sizes=st.lists(st.integers(1, 5), min_size=5, max_size=5),
    capacity=st.integers(1, 12),
)
def test_it_is_above_the_best_and_never_above_all_reuse(
    prompts: list[list[int]], sizes: list[int], capacity: int
) -> None:
    trace = segmented([[(i, sizes[i]) for i in ids] for ids in prompts])
    bound = bound_of(trace, 0, capacity)
    assert bound >= best_possible(trace, capacity) * (1 - 1e-9)
    assert bound <= sum(trace.chunk_tokens[trace.chunk]) - trace.chunk_tokens.sum() + 1e-9


@pytest.mark.parametrize("warm", [0.0, 0.5])
@pytest.mark.parametrize("blocks", [5, 60, 400])
def test_no_policy_is_above_it(warm: float, blocks: int) -> None:
    trace = linked(conversations(600, seed=blocks))
    replay = Replay(trace, Setup((), warm=warm))
    bound = bound_of(trace, replay.first, blocks * BLOCK)
    tier = (Tier("t", Capacity("", nbytes=blocks * BLOCK * BYTES), SPEED),)
    hits = {name: replay.play(name, tier).hit_tokens[replay.first :].sum() for name in (*POLICIES, BELADY)}
    assert max(hits.values()) <= bound * (1 + 1e-9)
    assert hits[BELADY] >= 0.7 * bound  # and it says something


def test_better_prices_only_lower_it() -> None:
    trace = linked(conversations(600))
    bounds = [bound_of(trace, 300, 60 * BLOCK, steps=steps) for steps in (1, 10, 40)]
    assert bounds[0] > bounds[1] >= bounds[2]


def test_nothing_is_gained_without_reuse_or_without_room() -> None:
    assert bound_of(linked([[1], [2], [3]]), 0, 100) == 0
    assert bound_of(linked([[1], [1]]), 0, BLOCK - 1) == 0  # no chunk fits
    assert bound_of(linked([[1], [1]]), 0, BLOCK) == BLOCK
    assert bound_of(linked([[1], [1], [2]]), 2, BLOCK) == 0  # that use is warming


def test_a_segment_that_a_prompt_has_twice_counts_twice() -> None:
    assert bound_of(segmented([[(1, 10)], [(1, 10), (1, 10)]]), 0, 10) == 20


@pytest.mark.parametrize("name", [*REAL[:2], "rag_segments"])
def test_beladys_rule_comes_near_on_the_real_traces(name: str) -> None:
    trace = real(name)
    replay = Replay(trace, Setup(()))
    for share in (0.01, 0.1):
        tier = (Tier("t", Capacity("", share=share), SPEED),)
        hits = replay.play(BELADY, tier).hit_tokens[replay.first :].sum()
        bound = bound_of(trace, replay.first, int(share * trace.chunk_tokens.sum()))
        assert hits <= bound * (1 + 1e-9)
        assert hits >= 0.9 * bound
