"""Takes turns: in every round each system has one turn at each case, in another order every time.

The order is drawn, since in a rotation each system would always follow the same one, and what that one leaves behind
(caches, pages being freed, threads that spin) would be part of its figures.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from kvstore.bench.measure import Row, percentile
from kvstore.bench.peers.drivers.driver import EXISTS, PUT_SEEDS, Job, content, digest
from kvstore.bench.peers.player import Failed, Player, Skipped
from kvstore.bench.peers.systems import BASELINE, System, default_envs
from kvstore.errors import Corrupt, InvalidArgument, Unavailable

MiB = 1 << 20
SIZES = (1 * MiB, 16 * MiB)
GRAIN = 256 << 10  # sizes are multiples of it: 16 layers of bfloat16 K and V
WORKING_SET = 256 * MiB
TURN = 8 * MiB  # what a system moves in one turn
EXISTS_TURN = 8
PAUSE_S = 0.003
SCRATCH = "/var/tmp"  # a disk; /tmp is often a tmpfs
PER_SYSTEM = 4  # times the working set: sources, targets, store, and what the system needs besides


@dataclass
class Result:
    """The rows, and a line for each system that gave none or stopped giving them."""

    rows: list[Row] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)


@dataclass
class _Track:
    """What one system did in one case."""

    seconds: list[float] = field(default_factory=list)
    driver_cpu: float = 0.0
    server_cpu: float = 0.0


def run(
    systems: Sequence[System],
    *,
    envs: Path | None = None,
    sizes: Sequence[int] = SIZES,
    rounds: int = 40,
    working_set: int = WORKING_SET,
    progress: Callable[[], None] = lambda: None,
) -> Result:
    """All systems at all sizes. `working_set` bytes are stored and read in rotation.

    A system that cannot run, or fails on the way, is told in `skipped` and the others go on. Raises `Corrupt` when
    a system gives other bytes than were stored, `Unavailable` when the baseline cannot run and `InvalidArgument`
    for a size that is no multiple of 256 KiB or more memory than there is.
    """
    for nbytes in sizes:
        if nbytes <= 0 or nbytes % GRAIN:
            raise InvalidArgument(f"a size must be a multiple of 256 KiB, not {nbytes} bytes")
    _check_memory(len(systems), max(working_set, 4 * max(sizes)))
    result = Result()
    for nbytes in sizes:
        with _scratch() as scratch:
            group = _Group(systems, nbytes, rounds, working_set, scratch, result)
            try:
                group.start(envs or default_envs())
                group.warm_up()
                group.play(progress)
                result.rows += group.rows()
            finally:
                group.close()
    return result


class _Group:
    """All systems at one size."""

    def __init__(
        self, systems: Sequence[System], nbytes: int, rounds: int, working_set: int, scratch: Path, result: Result
    ) -> None:
        self._systems, self._nbytes, self._rounds = systems, nbytes, rounds
        self._scratch, self._result = scratch, result
        self._count = max(4, working_set // nbytes)
        self._ring = max(2, self._count // 2)
        self._turn = max(1, TURN // nbytes)
        self._players: list[Player] = []
        self._tracks: dict[tuple[str, str], _Track] = defaultdict(_Track)
        self._got: dict[int, str] = {}
        self._put: dict[int, str] = {}

    def start(self, envs: Path) -> None:
        """Start one after the other: what one needs to start must not slow another that is timing itself."""
        for number, system in enumerate(self._systems):
            folder = self._scratch / system.name
            folder.mkdir()
            tag = f"{self._scratch.name}-{number}"
            puts = self._ring + self._rounds * self._turn
            job = Job(self._nbytes, self._count, self._ring, puts, str(folder), tag, system.options)
            try:
                player = Player(system, job, envs)
            except Skipped as reason:
                self._skip(system, f"skipped: {system.name}: {reason}")
                continue
            self._players.append(player)
            with self._may_fail(player):
                try:
                    player.ready()
                except Skipped as reason:
                    self._drop(player, f"skipped: {system.name}: {reason}")

    def warm_up(self) -> None:
        """Every slot once in every case, its content checked, so that no page is touched for the first time later."""
        self._got = {slot: digest(content(slot, self._nbytes)) for slot in range(self._count)}
        self._put = {slot: digest(content(PUT_SEEDS + slot, self._nbytes)) for slot in range(self._ring)}
        for player in list(self._players):
            with self._may_fail(player):
                for slots in _split(range(self._count), self._turn):
                    player.ask("get", slots)
                    self._check(player, "digest", slots, self._got)
                for slots in _split(range(self._ring), self._turn):
                    player.ask("put", slots)
                    self._check(player, "fetch", slots, self._put)
                player.ask("wipe")

    def play(self, progress: Callable[[], None]) -> None:
        """The timed rounds. What they left behind is checked after the last one."""
        order = random.Random(0)
        for number in range(self._rounds):
            for case in ("get", "get-leased", "put", "exists"):
                for player in order.sample(self._players, len(self._players)):
                    if case in player.does:
                        with self._may_fail(player):
                            self._turn_of(player, case, number)
            progress()
        for player in list(self._players):
            with self._may_fail(player):
                touched = {slot for number in range(self._rounds) for slot in self._slots("get", number)}
                self._check(player, "digest", sorted(touched), self._got)
                touched = {slot for number in range(self._rounds) for slot in self._slots("put", number)}
                self._check(player, "fetch", sorted(touched), self._put)

    def rows(self) -> list[Row]:
        """One for each system and case, the baseline first."""
        rows = []
        for player in self._players:
            for case in player.does:
                rows.append(self._row(player, case))
        return rows

    def close(self) -> None:
        """End all drivers."""
        while self._players:
            self._players.pop().close()

    def _turn_of(self, player: Player, case: str, number: int) -> None:
        track = self._tracks[player.system.name, case]
        # Threads of the system before may spin for a moment after its last answer.
        time.sleep(PAUSE_S)
        before = player.server_cpu()
        reply = player.ask(case, self._slots(case, number))
        track.server_cpu += player.server_cpu() - before
        track.driver_cpu += reply["cpu"]
        track.seconds += reply["seconds"]

    def _slots(self, case: str, number: int) -> list[int]:
        """The slots of one turn; the walk goes on where the turn before ended."""
        if case == "exists":
            return [0] * EXISTS_TURN
        size = self._ring if case == "put" else self._count
        # Leased gets walk half a working set apart, so that none reads what an unleased one just did.
        start = number * self._turn + (size // 2 if case == "get-leased" else 0)
        return [(start + i) % size for i in range(self._turn)]

    def _check(self, player: Player, do: str, slots: Sequence[int], expected: dict[int, str]) -> None:
        for slot, found in zip(slots, player.ask(do, slots)["digests"], strict=True):
            if found != expected[slot]:
                what = "get" if do == "digest" else "put"
                raise Corrupt(f"{player.system.name} gave other bytes than were stored: {what}, chunk {slot}")

    @contextmanager
    def _may_fail(self, player: Player) -> Iterator[None]:
        try:
            yield
        except Failed as error:
            self._drop(player, f"failed: {player.system.name} at {self._nbytes / MiB:g} MiB: {error}")

    def _drop(self, player: Player, line: str) -> None:
        self._players.remove(player)
        player.close()
        self._skip(player.system, line)

    def _skip(self, system: System, line: str) -> None:
        if system.name == BASELINE:
            raise Unavailable(f"the baseline cannot run; {line}")
        if line not in self._result.skipped:
            self._result.skipped.append(line)

    def _row(self, player: Player, case: str) -> Row:
        name = player.system.name
        track = self._tracks[name, case]
        p50 = median(track.seconds)
        moved = 0 if case == "exists" else self._nbytes
        compared = bool(moved) and name != BASELINE
        base = self._tracks[BASELINE, "put" if case == "put" else "get"]
        row: Row = {
            "case": f"exists-{EXISTS}" if case == "exists" else case,
            "system": name,
            "reach": player.system.reach,
            "mode": player.mode,
            "bytes": moved,
            "p50_s": p50,
            "p99_s": percentile(track.seconds, 0.99),
            "gbps": moved / p50 / 1e9 if moved else None,
            "baseline": BASELINE if compared else None,
            "ratio": median(base.seconds) / p50 if compared else None,
            "operations": len(track.seconds),
            "cpu": None,
            "cpu_s_per_gb": None,
            "note": player.note,
        }
        if moved:
            spent = (track.driver_cpu + track.server_cpu) / len(track.seconds)
            row["cpu"] = spent / (base.driver_cpu / len(base.seconds))
            row["cpu_s_per_gb"] = spent / moved * 1e9
        return row


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder on a disk, whose name is also the beginning of all names used in /dev/shm."""
    root = SCRATCH if os.access(SCRATCH, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="kvstore-peers-", dir=root, ignore_cleanup_errors=True) as name:
        try:
            yield Path(name)
        finally:
            for left in Path("/dev/shm").glob(f"*{Path(name).name}-*"):
                shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def _check_memory(systems: int, working_set: int) -> None:
    need = systems * PER_SYSTEM * working_set
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:") and need > 1024 * int(line.split()[1]):
            raise InvalidArgument(
                f"{systems} systems at once need about {need >> 30} GiB of memory, {line.split()[1]} KiB are available;"
                " name fewer with --peers"
            )


def _split(slots: Sequence[int], length: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(slots), length):
        yield slots[start : start + length]
