"""`bench tier valkey` on small batches: its rows are whole, and what it reads is what was written."""

from __future__ import annotations

import shutil

import pytest

from kvstore.bench import tier_valkey
from kvstore.bench.redis_server import PROGRAM


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason=f"no {PROGRAM}")
@pytest.mark.parametrize("hedge", [False, True])
def test_rows_are_whole(monkeypatch: pytest.MonkeyPatch, hedge: bool) -> None:
    monkeypatch.setattr(tier_valkey, "_BATCH", 4 << 20)
    rows = tier_valkey.run(sizes=(256 << 10, 1 << 20), threads=(2,), rounds=2, hedge=hedge)
    assert [row["case"] for row in rows] == ["raw-write", "write", "raw-read", "read"] * 2
    for row in rows:
        assert row["p50_s"] > 0
        assert (row["baseline"] is None) == row["case"].startswith("raw-")
        assert row["server_cpu_s_per_gb"] > 0
        if row["baseline"]:
            assert row["met"] == (row["ratio"] >= 0.9)
