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
    _check(Plan(requests=1000, share=0.3, pause_s=0.002))


@pytest.mark.skipif(not TRACES.is_dir(), reason="the traces are not on this machine")
@pytest.mark.timeout(900)
def test_of_a_real_chat_too() -> None:
    """Long enough for `value` to learn: half of the traffic each sees a host (.011 to .021 behind after 1,500 requests,
    .003 after 3,000).
    """
    _check(Plan(TRACES / "mooncake_conversation.jsonl.gz", requests=3000, share=0.3, pause_s=0.002))


def _check(plan: Plan) -> None:
    one, shared, alone = run(plan)
    assert shared["met"], (one["hit_ratio"], shared["hit_ratio"])
    assert shared["hit_ratio"] > alone["hit_ratio"] + LEAST_RATIO
    assert shared["from_peers_bytes"] > 0
    assert shared["checked"] > 0
