"""How much CPU time a process has used, to the nanosecond where the kernel tells, else in its ticks."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_SCHEDULED = 2  # CPUCLOCK_SCHED of linux/posix-timers.h: user and system time of all threads


class CpuClock:
    """The CPU time of this process, or of another one of this host.

    The clock of another process is the one that POSIX `clock_getcpuclockid` names; `/proc/PID/stat` counts in
    steps of 10 ms and stands in where a kernel lacks the clock.
    """

    def __init__(self, pid: int = 0) -> None:
        self._clock = time.CLOCK_PROCESS_CPUTIME_ID if not pid else ~pid << 3 | _SCHEDULED
        self._stat: Path | None = None
        try:
            time.clock_gettime(self._clock)
        except OSError:
            self._stat = Path(f"/proc/{pid}/stat")

    def seconds(self) -> float:
        """CPU seconds since the process began; what a process that is gone had used cannot be told: 0."""
        try:
            return time.clock_gettime(self._clock) if self._stat is None else _from_stat(self._stat)
        except OSError:
            return 0.0


def _from_stat(path: Path) -> float:
    # The command's name stands in brackets and may hold spaces: fields are counted from behind it.
    words = path.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / _TICKS
