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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

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
    group. `note` says in words what was cached where.
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
    facts: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Bar:
    """What a case must reach: a least ratio or a longest median."""

    ratio: float = 0.0
    p50_s: float = 0.0

    def met(self, row: Row) -> bool:
        """Whether a row reaches it."""
        return (not self.ratio or row["ratio"] >= self.ratio) and (not self.p50_s or row["p50_s"] <= self.p50_s)

    def __str__(self) -> str:
        return f"≥ {self.ratio:g}" if self.ratio else f"≤ {self.p50_s * 1e6:g} µs"


def measure(cases: Sequence[Case], *, rounds: int, slots: int, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """One row per case, in order. `advance` is called once a round."""
    times: dict[str, list[float]] = {case.name: [] for case in cases}
    _checked(cases, range(min(slots, 8)))
    for number in range(rounds):
        for offset in range(len(cases)):
            case = cases[(number + offset) % len(cases)]
            # Every case has a walk of its own through the slots, so that none reads what another just did.
            slot = (number + (offset * slots) // len(cases)) % slots
            times[case.name].append(_timed(case, slot))
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


def _timed(case: Case, slot: int) -> float:
    case.before(slot)
    start = time.perf_counter_ns()
    case.run(slot)
    end = time.perf_counter_ns()
    case.after(slot)
    return (end - start) / 1e9


def _checked(cases: Sequence[Case], slots: range) -> None:
    for case in cases:
        for slot in slots:
            case.before(slot)
            case.run(slot)
            case.check(slot)
            case.after(slot)


def _row(case: Case, times: dict[str, list[float]], cases: Sequence[Case]) -> Row:
    p50 = median(times[case.name])
    row: Row = {
        "case": case.name,
        "mode": case.mode,
        "bytes": case.nbytes,
        "p50_s": p50,
        "p99_s": percentile(times[case.name], 0.99),
        "gbps": case.nbytes / p50 / 1e9 if case.nbytes else None,
        "baseline": case.baseline or None,
        "ratio": None,
        "rounds": len(times[case.name]),
        "note": case.note,
        **case.facts,
    }
    if case.baseline:
        base = next(each for each in cases if each.name == case.baseline)
        scale = case.nbytes / base.nbytes if case.nbytes and base.nbytes else 1.0
        row["ratio"] = median(times[base.name]) * scale / p50
    return row


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
