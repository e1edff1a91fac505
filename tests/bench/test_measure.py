"""The framework: what a row holds, how a ratio comes about, that wrong content ends a run."""

from __future__ import annotations

import json
import time

import pytest

from kvstore.bench import measure as m
from kvstore.errors import Corrupt


def sleeper(seconds: float) -> m.Step:
    return lambda slot: time.sleep(seconds)


def test_a_row_has_the_fields_that_programs_rely_on() -> None:
    cases = [m.Case("base", sleeper(0.0001), 1000), m.Case("twice", sleeper(0.0001), 2000, "base", "some mode")]
    base, twice = m.measure(cases, rounds=5, slots=3)
    assert {"case", "mode", "bytes", "p50_s", "p99_s", "gbps", "baseline", "ratio"} <= base.keys()
    assert (base["baseline"], base["ratio"]) == (None, None)
    assert (twice["case"], twice["mode"], twice["bytes"], twice["baseline"]) == ("twice", "some mode", 2000, "base")
    assert twice["ratio"] == pytest.approx(2 * base["p50_s"] / twice["p50_s"])
    assert twice["gbps"] == pytest.approx(2000 / twice["p50_s"] / 1e9)
    assert twice["p50_s"] <= twice["p99_s"]
    shown = json.loads(json.dumps(m.report("x", [base, twice])))
    assert list(shown) == ["bench", "machine", "rows"]


def test_cases_are_interleaved_and_every_step_runs() -> None:
    steps: list[tuple[str, int]] = []

    def log(name: str) -> m.Step:
        return lambda slot: steps.append((name, slot))

    cases = [m.Case(name, log(name), before=log("before"), after=log("after")) for name in "ab"]
    m.measure(cases, rounds=2, slots=4)
    timed = [name for name, _ in steps if name in "ab"][8:12]
    assert timed == ["a", "b", "b", "a"]
    names = [name for name, _ in steps]
    assert names.count("before") == names.count("after") == names.count("a") + names.count("b")


def test_wrong_content_is_an_error() -> None:
    def check(slot: int) -> None:
        m.expect(slot < 2, "get", slot)

    with pytest.raises(Corrupt, match="get gave other bytes than were stored for chunk 2"):
        m.measure([m.Case("get", m.nothing, check=check)], rounds=1, slots=4)


def test_percentiles_and_bars() -> None:
    assert m.percentile(range(100), 0.99) == 99
    assert m.percentile([5.0], 0.99) == 5.0
    assert m.Bar(ratio=0.9).met({"ratio": 0.91})
    assert not m.Bar(p50_s=1e-6).met({"p50_s": 2e-6})
