"""Rows: what each says, and against what."""

from __future__ import annotations

from pathlib import Path

import pytest

from kvstore.errors import InvalidArgument, StorageError
from kvstore.policy import POLICIES
from kvstore.sim.chart import draw, plottable
from kvstore.sim.report import rows_expected, run
from kvstore.sim.setup import Setup, single_tiers, tier_of
from kvstore.sim.trace import mix

from .traces import conversations, linked

TRACE = linked(conversations(300))
SETUP = Setup(single_tiers(["5%", "30%"]))


def test_every_policy_at_every_size_beside_no_cache_belady_and_the_bound() -> None:
    told: list[int] = []
    rows = run([TRACE], SETUP, lambda: told.append(1))
    assert len(told) == rows_expected([TRACE], SETUP)
    each = [*POLICIES, "belady", "bound"]
    assert [(row["case"], row["capacity"]) for row in rows] == [
        ("no-cache", ""), *((name, size) for size in ("5%", "30%") for name in each)
    ]  # fmt: skip
    none = rows[0]
    for row in rows[1:]:
        best = next(r for r in rows if r["case"] == "bound" and r["capacity"] == row["capacity"])
        optimum = next(r for r in rows if r["case"] == "belady" and r["capacity"] == row["capacity"])
        assert 0 < row["hit_ratio"] <= best["hit_ratio"] + 1e-9
        assert 0 < row["flops_saved"] <= best["flops_saved"] * (1 + 1e-9)
        assert row["flops_saved_share"] == pytest.approx(row["flops_saved"] / none["flops"])
        assert row["of_belady"] == pytest.approx(row["hit_ratio"] / optimum["hit_ratio"])
        assert row["input_tokens"] == none["input_tokens"]
        if row["case"] == "bound":
            assert row["ttft_p50_s"] is None
            continue
        assert row["hit_ratio"] == pytest.approx(row["hit_tokens"] / row["input_tokens"])
        assert row["ttft_p50_s"] <= none["ttft_p50_s"]
        assert row["ttft_p99_s"] <= none["ttft_p99_s"]
        assert row["ratio"] == pytest.approx(none["ttft_mean_s"] / row["ttft_mean_s"])
        assert len(row["hit_ratio_over_time"]) == 20
        assert row["events_per_s"] > 0
        assert row["policy_p50_s"] > 0


def test_one_policy_over_two_tiers() -> None:
    rows = run([TRACE], Setup([(tier_of("dram=5%"), tier_of("nvme=30%"))], ("lru",)))
    assert [row["case"] for row in rows] == ["no-cache", "lru", "belady", "bound"]
    assert rows[1]["capacity"] == "dram 5%, nvme 30%"
    above, below = rows[1]["tiers"]
    assert (above["tier"], below["tier"]) == ("dram", "nvme")
    assert above["hit_tokens"] + below["hit_tokens"] == rows[1]["hit_tokens"]
    assert rows[1]["written_bytes"] == above["written_bytes"] + below["written_bytes"]
    alone = run([TRACE], Setup(single_tiers(["5%"]), ("lru",)))[1]
    assert rows[1]["hit_ratio"] > alone["hit_ratio"]


def test_tenants_are_told_apart() -> None:
    rows = run([mix([TRACE, linked(conversations(100, seed=3))])], Setup(single_tiers(["20%"]), ("lru",)))
    assert sorted(rows[1]["tenants"]) == ["by-hand", "by-hand 2"]
    both = mix([TRACE, linked([[1, 2]] * 300)])
    named = type(both)(**{**vars(both), "names": ("many", "same")})
    told = run([named], Setup(single_tiers(["20%"]), ("lru",)))[1]["tenants"]
    assert told["same"] == 1.0
    assert 0 < told["many"] < 1


def test_a_set_up_that_fits_one_trace_only_is_refused_before_any_is_played() -> None:
    called: list[int] = []
    with pytest.raises(InvalidArgument, match="that is no cache"):
        run([TRACE, linked([[1], [2]])], SETUP, lambda: called.append(1))
    assert called == []


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plottable(SETUP.stacks)
    rows = run([TRACE, mix([TRACE, TRACE])], Setup(SETUP.stacks, ("lru",)))
    draw(rows, tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(StorageError, match="cannot be written"):
        draw(rows, tmp_path / "none" / "x.png")
    with pytest.raises(InvalidArgument, match="more than once"):
        plottable(SETUP.stacks[:1])
