"""Timing of cases against their baseline.

All cases of a group run in every round, each round starting with another one, so that whatever else the machine
does falls on all alike. A case works on the content of a slot; slots rotate over a working set much larger than
the caches. Content is checked in passes of its own, before and after the timed rounds, so that a check neither
costs time nor warms a cache.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

from kvstore.bench.cpu import CpuClock
from kvstore.errors import Corrupt

Row = dict[str, Any]
Step = Callable[[int], None]


def nothing(slot: int) -> None:
    """A step that a case does not have."""
    del slot


@dataclass
class Case:
    """One thing to time. Every step is told the slot it works on.

    `run` is timed; `before` and `after` are not. `check` verifies what the last `run` left behind and raises
    `Corrupt`. `nbytes` of payload are moved by one run (0: none). The case that `baseline` names is in the same
    group. `server_pid` is the process that answers, whose CPU time counts too (0: none). `note` says in words what
    was cached where.
    """

    name: str
    run: Step
    nbytes: int = 0
    baseline: str = ""
    mode: str = ""
    note: str = ""
    before: Step = nothing
    after: Step = nothing
    check: Step = nothing
    server_pid: int = 0
    facts: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """What a case must reach: a least ratio, a longest median, a p99 of so many times the baseline's at most."""

    ratio: float = 0.0
    p50_s: float = 0.0
    p99_times: float = 0.0

    def met(self, row: Row) -> bool:
        """Whether a row reaches all of it."""
        return (
            (not self.ratio or row["ratio"] >= self.ratio)
            and (not self.p50_s or row["p50_s"] <= self.p50_s)
            and (not self.p99_times or 1 / row["p99_ratio"] <= self.p99_times)
        )

    def __str__(self) -> str:
        said = [f"≥ {self.ratio:g}"] if self.ratio else []
        said += [f"≤ {self.p50_s * 1e6:g} µs"] if self.p50_s else []
        said += [f"p99 ≤ {self.p99_times:g} ×"] if self.p99_times else []
        return ", ".join(said)

    def judge(self, row: Row) -> None:
        """Write into a row what it must reach and whether it does."""
        row["bar"], row["met"] = str(self), self.met(row)
        row["bar_ratio"], row["bar_p50_s"] = self.ratio or None, self.p50_s or None


def bar_for(bars: Mapping[int, Bar], nbytes: int) -> Bar | None:
    """The bar of a size among bars by their least sizes."""
    due = [least for least in bars if least <= nbytes]
    return bars[max(due)] if due else None


@dataclass
class _Tally:
    """What one case took, run by run."""

    seconds: list[float] = field(default_factory=list)
    cpu_s: float = 0.0
    server_cpu_s: float = 0.0


def measure(cases: Sequence[Case], *, rounds: int, slots: int, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """One row per case, in order. `advance` is called once a round.

    CPU time counts as far as it was spent during the calls, in this process and in the one that answers.
    """
    times = {case.name: _Tally() for case in cases}
    clocks = {case.name: CpuClock(case.server_pid) for case in cases if case.server_pid}
    own = CpuClock()
    _checked(cases, range(min(slots, 8)))
    for number in range(rounds):
        for offset in range(len(cases)):
            case = cases[(number + offset) % len(cases)]
            # Every case has a walk of its own through the slots, so that none reads what another just did.
            slot = (number + (offset * slots) // len(cases)) % slots
            _timed(case, slot, times[case.name], own, clocks.get(case.name))
        advance()
    _checked(cases, range(max(0, slots - 8), slots))
    return [_row(case, times, cases) for case in cases]


def report(bench: str, rows: Sequence[Row], **facts: Any) -> Row:
    """The one object that `--json` prints."""
    return {"bench": bench, "machine": machine(), **facts, "rows": list(rows)}


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@cache
def machine() -> Row:
    """What it ran on."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
    }


def rss() -> int:
    """Resident bytes of this process, from the kernel."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def expect(same: bool, case: str, slot: int) -> None:
    """Raise `Corrupt` unless the content of a slot is what it should be."""
    if not same:
        raise Corrupt(f"{case} gave other bytes than were stored for chunk {slot}")


def _timed(case: Case, slot: int, tally: _Tally, own: CpuClock, server: CpuClock | None) -> None:
    case.before(slot)
    served, used = server.seconds() if server else 0.0, own.seconds()
    start = time.perf_counter_ns()
    case.run(slot)
    end = time.perf_counter_ns()
    tally.cpu_s += own.seconds() - used
    tally.server_cpu_s += server.seconds() - served if server else 0.0
    tally.seconds.append((end - start) / 1e9)
    case.after(slot)


def _checked(cases: Sequence[Case], slots: range) -> None:
    for case in cases:
        for slot in slots:
            case.before(slot)
            case.run(slot)
            case.check(slot)
            case.after(slot)


def _row(case: Case, times: dict[str, _Tally], cases: Sequence[Case]) -> Row:
    tally = times[case.name]
    p50, p99 = median(tally.seconds), percentile(tally.seconds, 0.99)
    row: Row = {
        "case": case.name,
        "mode": case.mode,
        "bytes": case.nbytes,
        "p50_s": p50,
        "p99_s": p99,
        "gbps": case.nbytes / p50 / 1e9 if case.nbytes else None,
        "baseline": case.baseline or None,
        "ratio": None,
        "p99_ratio": None,
        **cpu_facts(tally.cpu_s, tally.server_cpu_s if case.server_pid else None, len(tally.seconds), case.nbytes),
        "rounds": len(tally.seconds),
        "note": case.note,
        "bar": None,
        "met": None,
        **case.facts,
    }
    if case.baseline:
        base = next(each for each in cases if each.name == case.baseline)
        scale = case.nbytes / base.nbytes if case.nbytes and base.nbytes else 1.0
        row["ratio"] = median(times[base.name].seconds) * scale / p50
        row["p99_ratio"] = percentile(times[base.name].seconds, 0.99) * scale / p99
    return row


def cpu_facts(cpu_s: float, server_cpu_s: float | None, calls: int, nbytes: int) -> Row:
    """CPU seconds per GB (10⁹ bytes) moved by `calls` calls of `nbytes`; per call where no payload moves."""
    facts: Row = {"cpu_s_per_gb": None, "server_cpu_s_per_gb": None}
    if nbytes and calls:
        moved = calls * nbytes / 1e9
        facts = {"cpu_s_per_gb": cpu_s / moved}
        facts["server_cpu_s_per_gb"] = None if server_cpu_s is None else server_cpu_s / moved
    elif calls:
        facts["cpu_s_per_call"] = cpu_s / calls
        facts["server_cpu_s_per_call"] = None if server_cpu_s is None else server_cpu_s / calls
    return facts


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
