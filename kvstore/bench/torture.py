"""`kvstore bench torture`: kill -9 at random moments under load, then everything acknowledged must be there.

One process per round opens the folder that the last kill left, reads back every chunk ever offered, goes on
loading and is killed: while it loads, or (one round in eight) while it is still opening and checking. Nothing is
closed in order before the end, so recovery always starts from what kills have left.
"""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO

from kvstore.bench.measure import Row, percentile
from kvstore.bench.torture_child import PARTS, THREADS, chunk
from kvstore.errors import Corrupt, DeadlineExceeded

Item = tuple[int, int]
LOAD_S = 0.25
CHECK_LIMIT_S = 60.0
STRIDE = 1 << 16  # numbers that one round may offer


@dataclass
class Ledger:
    """What the store was told and what it acknowledged, over all rounds."""

    offered: set[Item] = field(default_factory=set)
    durable: set[Item] = field(default_factory=set)
    deleting: set[int] = field(default_factory=set)
    deleted: set[int] = field(default_factory=set)
    acknowledged: int = 0
    corrupt: set[str] = field(default_factory=set)
    phantom: set[str] = field(default_factory=set)
    lost: set[Item] = field(default_factory=set)
    undeleted: set[int] = field(default_factory=set)
    checks: int = 0
    _keys: dict[str, int] = field(default_factory=dict)
    _found: dict[Item, str] = field(default_factory=dict)

    def numbers(self) -> list[int]:
        """Every chunk ever offered and not known to be gone."""
        return sorted({number for number, _ in self.offered})

    def read(self, line: str) -> None:
        """Take in one line of the child."""
        kind, *words = line.split()
        if kind == "K":
            number = self._keys.get(words[0])
            if number is None or not self.offered & {(number, part) for part in range(len(PARTS))}:
                self.phantom.add(words[0])
        elif kind == "F":
            self._found[int(words[0]), int(words[1])] = words[2]
        elif kind == "R":
            self._judge()
        elif kind == "O":
            self.offered.add((int(words[0]), int(words[1])))
            self._keys.setdefault(chunk(int(words[0])).key.hex(), int(words[0]))
        elif kind == "A":
            self.acknowledged += 1
            if words[2] != "stored":
                self.durable.add((int(words[0]), int(words[1])))
        elif kind == "D":
            self.deleting.add(int(words[0]))
        elif kind == "X":
            self.deleted.add(int(words[0]))

    def forget_check(self) -> None:
        """Drop the findings of a check that a kill cut short."""
        self._found.clear()

    def _judge(self) -> None:
        """Compare a complete check with what was acknowledged; what is gone for good is forgotten."""
        self.checks += 1
        for (number, part), verdict in self._found.items():
            if verdict != "ok":
                self.corrupt.add(f"{number}.{part} {verdict}")
        for number in {number for number, _ in self._found} & self.deleted:
            # A delete waits for readers (the mover's too), so a kill right after it may undo it.
            self.undeleted.add(number)
            self.deleted.discard(number)
            self.deleting.discard(number)
        self.lost |= {item for item in self.durable - self._found.keys() if item[0] not in self.deleting}
        self.offered &= self._found.keys()
        self.durable &= self._found.keys()
        self._found.clear()


def torture(
    rounds: int = 100,
    *,
    folder: Path | None = None,
    seed: int | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Row:
    """One row: `acknowledged`, and how many were `corrupt`, `phantom` (never offered) or `lost`.

    `undeleted` counts chunks that were there again although their deletion had been acknowledged.
    """
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="kvstore-torture-") as temporary:
            return torture(rounds, folder=Path(temporary), seed=seed, advance=advance)
    seed = seed if seed is not None else random.SystemRandom().getrandbits(31)
    dice, ledger, opened = random.Random(seed), Ledger(), []
    for number in range(rounds):
        early = number > 0 and dice.random() < 1 / 8
        opened += _round(folder, number, dice, ledger, early)
        advance()
    for number in (rounds, rounds + 1):  # after the last kill, and after a stop in order
        opened += _round(folder, number, dice, ledger, None)
    return {
        "case": "kill-9",
        "mode": "dram+nvme",
        "rounds": rounds,
        "acknowledged": ledger.acknowledged,
        "corrupt": len(ledger.corrupt),
        "phantom": len(ledger.phantom),
        "lost": len(ledger.lost),
        "undeleted": len(ledger.undeleted),
        "checks": ledger.checks,
        "seed": seed,
        "p50_s": median(opened),
        "p99_s": percentile(opened, 0.99),
        "details": sorted([*ledger.corrupt, *ledger.phantom, *(f"{n}.{part} is lost" for n, part in ledger.lost)])[:20],
        "note": f"{THREADS} threads putting, getting, deleting {len(PARTS)} parts a chunk; p50_s: start to checked",
    }


def _round(folder: Path, number: int, dice: random.Random, ledger: Ledger, early: bool | None) -> list[float]:
    """One process: checked, loaded, killed. `early`: killed before it has checked; None: not killed at all.

    Returns how long it took from the start to the end of the check, if it came so far.
    """
    arguments = [str(folder), str(dice.getrandbits(31)), str((number + 1) * STRIDE), str(int(early is None))]
    start, took = time.monotonic(), []
    with tempfile.TemporaryFile() as errors:
        child = _Child(arguments, ledger, errors)
        try:
            if early:
                child.read(start + dice.uniform(0.05, 0.5))
            elif child.read(start + CHECK_LIMIT_S, until_ready=True):
                took.append(time.monotonic() - start)
                child.read(time.monotonic() + (dice.uniform(0, LOAD_S) if early is False else CHECK_LIMIT_S))
            else:
                raise DeadlineExceeded(f"round {number}: the store was not open and checked in {CHECK_LIMIT_S:g} s")
        finally:
            code = child.kill()
        if code != (0 if early is None else -signal.SIGKILL):
            errors.seek(0)
            tail = errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise Corrupt(f"round {number}: the store ended by itself (exit {code}): {' '.join(tail)}")
    ledger.forget_check()
    return took


class _Child:
    """A process under load, and the ledger that its lines go into."""

    def __init__(self, arguments: list[str], ledger: Ledger, errors: IO[bytes]) -> None:
        command = [sys.executable, "-m", "kvstore.bench.torture_child", *arguments]
        numbers = " ".join(map(str, ledger.numbers())).encode()
        self._output, writing = os.pipe()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=writing, stderr=errors)
        os.close(writing)
        with self._process.stdin as stdin:  # type: ignore[union-attr]
            stdin.write(numbers)
        self._ledger, self._rest, self._ended = ledger, b"", False

    def read(self, deadline: float, *, until_ready: bool = False) -> bool:
        """Take in lines until then, or until the child is ready (or ended): true for the latter."""
        while not self._ended:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                return False
            block = os.read(self._output, 1 << 16)
            self._ended = not block
            *lines, self._rest = (self._rest + block).split(b"\n")
            for line in lines:
                self._ledger.read(line.decode())
            if until_ready and b"R" in lines:
                return True
        return True

    def kill(self) -> int:
        """SIGKILL, if it has not ended; take in what it had still said. Returns the exit status."""
        if not self._ended:
            self._process.kill()
        self.read(time.monotonic() + CHECK_LIMIT_S)
        os.close(self._output)
        return self._process.wait()
