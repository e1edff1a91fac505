"""`bench hosts`, small: two hosts that share hit like one store of their size, and better than two alone."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from kvstore.bench.hosts import LEAST_RATIO, Plan, run
from kvstore.bench.redis_server import PROGRAM

TRACES = Path(os.environ.get("KVSTORE_TRACES", Path(__file__).resolve().parents[3] / "shared" / "traces"))


@pytest.fixture(autouse=True)
def _need_redis() -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"no {PROGRAM}")


def test_hosts_that_share_hit_like_one_store_of_their_size() -> None:
    _check(Plan(requests=1000, share=0.3, pause_s=0.002, policy="lru"))


def test_under_the_default_policy_sharing_pays() -> None:
    one, shared, alone = run(Plan(requests=1000, share=0.3, pause_s=0.002))
    assert alone["hit_ratio"] + LEAST_RATIO < shared["hit_ratio"] < one["hit_ratio"] + LEAST_RATIO
    assert shared["lost"] == 0


@pytest.mark.skipif(not TRACES.is_dir(), reason="the traces are not on this machine")
@pytest.mark.timeout(900)
def test_of_a_real_chat_too() -> None:
    """What the hosts do together, under LRU: `value` learns on each from half of the traffic (docs/tiers/peers.md)."""
    _check(Plan(TRACES / "mooncake_conversation.jsonl.gz", requests=1500, share=0.3, pause_s=0.002, policy="lru"))


def _check(plan: Plan) -> None:
    one, shared, alone = run(plan)
    assert shared["met"], (one["hit_ratio"], shared["hit_ratio"])
    assert shared["hit_ratio"] > alone["hit_ratio"] + LEAST_RATIO
    assert shared["from_peers_bytes"] > 0
    assert shared["checked"] > 0
