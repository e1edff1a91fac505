"""`kvstore bench worth`: that it runs, checks what it loads and says what it should, not how fast."""

from __future__ import annotations

from kvstore.bench import worth


def test_it_runs_and_tells_of_both_ways(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(worth, "PROMPTS", 4)
    rows = worth.run(rounds=8, path=tmp_path)
    assert [(row["case"], row["baseline"]) for row in rows] == [("always", "recompute"), ("weighed", "recompute")]
    always, weighed = rows
    assert always["loads"] == always["rounds"] == 8
    assert 0 <= weighed["loads"] <= 8
    assert weighed["tokens_loaded"] <= always["tokens_loaded"]
    assert all(row["slower"] <= row["loads"] and row["p50_s"] > 0 for row in rows)
