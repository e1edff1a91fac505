"""How fast the tier is: measured when it is opened, then followed."""

from __future__ import annotations

import threading

from kvstore import _native
from kvstore.record import BLOCK
from kvstore.tiers.base import Speed

_FOLD_BYTES = 8 << 20
_FOLD_WEIGHT = 0.3


class Meter:
    """Reads what native code has counted. `out` is memory to measure with, as long as that may take."""

    def __init__(self, memory: _native.StripedMemory, out: memoryview, devices: int) -> None:
        self._memory = memory
        everywhere = list(range(devices))
        best = min(memory.scan(out, everywhere) for _ in range(3))
        rate = len(out) / max(best, 1) * 1e9
        latency = min(memory.scan(out[:BLOCK], [device]) for device in everywhere for _ in range(3)) / 1e9
        self._speed = Speed(rate, rate, latency)
        self._before = {"reads": (0, 0, 0), "writes": (0, 0, 0)}
        self._lock = threading.Lock()

    @property
    def speed(self) -> Speed:
        """Moving averages of each direction, every 8 MiB."""
        with self._lock:
            read = self._follow("reads", self._memory.reads, self._speed.read_bytes_per_s)
            write = self._follow("writes", self._memory.writes, self._speed.write_bytes_per_s)
            self._speed = Speed(read, write, self._speed.latency_s)
            return self._speed

    def counts(self) -> dict[str, float | int | str]:
        """Bytes of transfers of 64 KiB and more, and all records, in either direction."""
        (read, _, reads), (written, _, writes) = self._memory.reads, self._memory.writes
        return {
            "bytes_read": read, "records_read": reads, "bytes_written": written, "records_written": writes,
            **{f"device_{n}_bytes_per_s": b / ns * 1e9 for n, (b, ns, _) in enumerate(self._memory.samples) if ns},
        }  # fmt: skip

    def _follow(self, name: str, now: tuple[int, int, int], rate: float) -> float:
        then = self._before[name]
        nbytes, nanoseconds = now[0] - then[0], now[1] - then[1]
        if nbytes < _FOLD_BYTES or nanoseconds <= 0:
            return rate
        self._before[name] = now
        return 1 / (1 / rate + _FOLD_WEIGHT * (nanoseconds / nbytes / 1e9 - 1 / rate))  # the time of a byte is averaged
