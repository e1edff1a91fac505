"""The simulator beside libcachesim 0.3.5, an independent one: ids touched forward, one size for all, default settings.

Both are asked before every request how far its ids reach, and given them one after the other. They agree in every
request. Capacities are multiples of ten objects, since libcachesim counts objects and rounds the tenth that S3-FIFO's
small queue has to whole ones, where we count bytes. Its S3-FIFO differs from the paper in one thing, which we follow:
while the cache fills for the first time, the main queue takes what the small one has no room for.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from kvstore.sim.replay import Replay
from kvstore.sim.setup import BELADY, SPEEDS, Capacity, Setup, Tier
from kvstore.sim.trace import Column, Trace

from .traces import REAL, conversations, head, linked, real

lcs = pytest.importorskip("libcachesim", reason="libcachesim is not installed: pip install 'tiered-kvstore[test]'")
NAMES = {"lru": "LRU", "fifo": "FIFO", "lfu": "LFU", "s3fifo": "S3FIFO", "arc": "ARC", BELADY: "Belady"}
NEVER = 1 << 62
MOST = 1000  # requests of a trace


def reached(trace: Trace, name: str, capacity: int) -> Column:
    """Tokens of every request that libcachesim holds when it comes."""
    cache, request = getattr(lcs, NAMES[name])(cache_size=capacity), lcs.Request()
    request.obj_size = 1
    ids, starts = trace.chunk.tolist(), trace.starts.tolist()
    later, last = [NEVER] * len(ids), dict[int, int]()
    for event in range(len(ids) - 1, -1, -1):
        later[event] = last.get(ids[event], NEVER)
        last[ids[event]] = event + 1
    found = []
    for begin, end in pairwise(starts):
        hit = begin
        while hit < end and _there(cache, request, ids[hit]):
            hit += 1
        found.append(hit - begin)
        for event in range(begin, end):
            request.obj_id, request.next_access_vtime, request.clock_time = ids[event], later[event], event
            cache.get(request)
    return np.minimum(np.array(found) * trace.block, trace.input_tokens)


def _there(cache: Any, request: Any, number: int) -> bool:
    request.obj_id = number
    return cache.find(request, False) is not None


def agree(trace: Trace, name: str, capacity: int) -> None:
    setup = Setup((), touch="forward", whole_blocks=True)
    nbytes = capacity * round(trace.block * setup.model.token_bytes)
    ours = Replay(trace, setup).play(name, (Tier("t", Capacity("", nbytes=nbytes), SPEEDS["dram"]),)).hit_tokens
    theirs = reached(trace, name, capacity)
    assert theirs.sum() > 0
    assert np.flatnonzero(ours != theirs).tolist() == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("capacity", [40, 150, 600])
def test_a_synthetic_trace(name: str, capacity: int) -> None:
    agree(linked(conversations(3000, users=200)), name, capacity)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("trace", REAL)
def test_the_real_traces(trace: str, name: str) -> None:
    some = head(real(trace), MOST)
    chunks = len(np.unique(some.chunk))
    for share in (0.01, 0.1):
        agree(some, name, max(1, int(share * chunks) // 10) * 10)


@pytest.mark.parametrize("name", NAMES)
def test_event_by_event(name: str) -> None:
    """Requests for one object each."""
    ids = np.random.default_rng(2).zipf(1.2, 5000) % 1500
    agree(linked([[number] for number in ids.tolist()]), name, 100)
