"""The framework: what a row holds, how a ratio comes about, that wrong content ends a run."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest

from kvstore.bench import measure as m
from kvstore.bench.cpu import CpuClock
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


def test_bars_of_p99_and_of_several_things() -> None:
    bar = m.Bar(ratio=0.9, p99_times=1.3)
    assert str(bar) == "≥ 0.9, p99 ≤ 1.3 ×"
    assert bar.met({"ratio": 0.95, "p99_ratio": 0.8})
    assert not bar.met({"ratio": 0.95, "p99_ratio": 0.7})
    assert not bar.met({"ratio": 0.85, "p99_ratio": 0.8})
    row = {"ratio": 0.95, "p99_ratio": 0.8}
    bar.judge(row)
    assert (row["met"], row["bar_ratio"]) == (True, 0.9)


def test_a_bar_is_for_its_size_and_all_above() -> None:
    small, large = m.Bar(ratio=0.5), m.Bar(ratio=0.9)
    bars = {4: small, 16: large}
    assert [m.bar_for(bars, size) for size in (3, 4, 15, 16, 99)] == [None, small, small, large, large]


def test_p99_has_a_ratio_of_its_own() -> None:
    slow = iter([0.0001] * 60 + [0.02] * 1000)
    cases = [m.Case("base", sleeper(0.0001), 1000), m.Case("uneven", lambda slot: time.sleep(next(slow)), 1000, "base")]
    base, uneven = m.measure(cases, rounds=70, slots=3)
    assert uneven["p99_ratio"] == pytest.approx(base["p99_s"] / uneven["p99_s"])
    assert uneven["p99_ratio"] < uneven["ratio"]


def test_cpu_time_counts_work_and_not_waiting() -> None:
    def work(slot: int) -> None:
        end = time.process_time() + 0.01
        while time.process_time() < end:
            pass

    cases = [m.Case("work", work, 10**9), m.Case("wait", sleeper(0.01), 10**9), m.Case("ask", sleeper(0.0))]
    worked, waited, asked = m.measure(cases, rounds=5, slots=1)
    assert worked["cpu_s_per_gb"] == pytest.approx(0.01, rel=0.5)
    assert waited["cpu_s_per_gb"] < worked["cpu_s_per_gb"] / 2
    assert asked["cpu_s_per_gb"] is None
    assert asked["cpu_s_per_call"] >= 0
    assert worked["server_cpu_s_per_gb"] is None


def test_the_clock_of_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as busy:
        assert busy.stdout is not None
        busy.stdout.readline()
        exact = CpuClock(busy.pid).seconds()
        monkeypatch.setattr(time, "clock_gettime", lambda clock: (_ for _ in ()).throw(OSError("no such clock")))
        ticks = CpuClock(busy.pid).seconds()
        busy.kill()
    assert 0.3 <= exact < 3.0
    assert ticks == pytest.approx(exact, abs=0.05)
    assert CpuClock(2**22 - 1).seconds() == 0.0  # gone
