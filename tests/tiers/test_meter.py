"""What a tier's meter makes of transfers, on made-up ones."""

from __future__ import annotations

import numpy as np
import pytest

from kvstore.tiers import meter
from kvstore.tiers.cxl.meter import Meter as CxlMeter
from kvstore.tiers.meter import Flow

MIB = 1 << 20
RATE = 200e6  # what the place really does, however many read at once


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(meter, "time", made)
    return made


def load(flow: Flow, clock: Clock, records: int, at_once: int = 4, nbytes: int = 2 * MIB, rate: float = RATE) -> None:
    """So many records, some at once, which share the rate and so end together."""
    for first in range(0, records, at_once):
        begun = [flow.begin() for _ in range(first, min(first + at_once, records))]
        clock.now += len(begun) * nbytes / rate
        for start in begun:
            flow.end(start, nbytes)


def test_it_is_as_fast_as_it_is_however_transfers_end(clock: Clock) -> None:
    """Records that end together were counted with the time of others, in shares that were averaged as rates."""
    random, flow, seen = np.random.default_rng(1), Flow(1e9, 0.0), []
    for _ in range(50):
        load(flow, clock, int(random.integers(3, 13)))
        clock.now += 1.0
        seen.append(flow.bytes_per_s)
    assert seen[4:] == pytest.approx([RATE] * 46)


def test_the_first_measurement_takes_the_place_of_the_estimate(clock: Clock) -> None:
    flow = Flow(1e9, 0.0)
    load(flow, clock, 3)
    assert flow.bytes_per_s == 1e9
    load(flow, clock, 3)
    assert flow.bytes_per_s == pytest.approx(RATE)


def test_half_of_the_bytes_at_a_tenth_of_the_speed_take_most_of_the_time(clock: Clock) -> None:
    flow = Flow(1e9, 0.0)
    for _ in range(100):
        load(flow, clock, 8, rate=RATE)
        load(flow, clock, 8, rate=RATE / 10)
    assert flow.bytes_per_s < RATE / 4  # their mean is 0.55 of it, what they take together 0.18


def test_a_tier_that_never_rests_is_measured_too(clock: Clock) -> None:
    flow = Flow(1e9, 0.0)
    flow.begin()  # and never ends
    load(flow, clock, 100)
    assert flow.bytes_per_s == pytest.approx(RATE)


def test_what_fails_costs_its_time(clock: Clock) -> None:
    flow = Flow(1e9, 0.0)
    start = flow.begin()
    clock.now += 16 * MIB / RATE
    flow.end(start, 0)
    load(flow, clock, 8)
    assert flow.bytes_per_s == pytest.approx(RATE / 2)


class Memory:
    """Counts of native code that are told what they are."""

    def __init__(self) -> None:
        self.reads = self.writes = (0, 0, 0)

    def scan(self, out: memoryview, devices: list[int]) -> int:
        del devices
        return len(out)  # nanoseconds: 1 GB/s


def test_cxl_memory_that_is_slow_half_of_the_time_is_slow() -> None:
    memory = Memory()
    made = CxlMeter(memory, memoryview(bytearray(1 << 16)), 1)  # type: ignore[arg-type]
    for number in range(200):
        nbytes, nanoseconds, records = memory.reads
        memory.reads = (nbytes + 10**7, nanoseconds + (10**7 if number % 2 else 10**8), records + 1)
        speed = made.speed
    assert speed.read_bytes_per_s < 0.25e9  # 10 MB at 1 GB/s and 10 at a tenth of it take 110 ms
