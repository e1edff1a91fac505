"""`kvstore bench outage` on a real server that is really killed; that it runs and says what it should, not how fast."""

from __future__ import annotations

from kvstore.bench import outage


def test_it_runs_and_tells_of_known_and_unknown_prompts_and_the_way_back() -> None:
    rows = outage.run(rounds=3)
    assert [(row["case"], row["mode"]) for row in rows] == [
        ("well", "known"), ("down", "known"), ("well", "unknown"), ("down", "unknown"), ("back", "restarted"),
    ]  # fmt: skip
    assert all(row["p50_s"] > 0 for row in rows)
    assert [row["baseline"] for row in rows] == [None, "well", None, "well", None]
