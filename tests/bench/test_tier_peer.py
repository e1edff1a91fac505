"""`bench tier peer` on small batches: its rows are whole, and what it reads is what was written."""

from __future__ import annotations

import pytest

from kvstore.bench import tier_peer

from .conftest import assert_rows

CASES = ["put", "write", "get", "read-record", "read", "lookup-100", "find"]


def test_rows_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tier_peer, "_BATCH", 4 << 20)
    rows = tier_peer.run(sizes=(256 << 10, 1 << 20), threads=(2,), rounds=2)
    assert [row["case"] for row in rows] == CASES * 2
    assert_rows(rows)
    for row in rows:
        if row["bar"]:
            assert row["met"] == (row["ratio"] >= 0.9)
