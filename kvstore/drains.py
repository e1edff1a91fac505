"""Draining: a tier, or one drive of it, is emptied while the store goes on, so that it can be pulled.

Nothing is written there any more. What only it holds goes to where it survives as well, if there is such a place: to
the tier's other drives, to a tier below, which makes room as ever, or to one above that has room. What fits nowhere
is dropped in the end, the coldest first. A store that is opened again goes on with it, until it is told to take the
tier back.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from kvstore.api import Drain
from kvstore.core import DRAM, Core
from kvstore.departure import Departure, Fate, Move
from kvstore.descent import Descent
from kvstore.drain_marks import DrainMarks, Mark
from kvstore.errors import InvalidArgument, KVStoreError
from kvstore.removed import Removed
from kvstore.tiers.base import Owner

BATCH = 16  # chunks between two flushes of where they went
PAUSE_S = 0.1  # while what is left is being read, leased or pinned, or a tier that would take it does not answer


class Drains:
    """All drains of one store. Any thread may call."""

    def __init__(self, core: Core, descent: Descent, owner: Owner) -> None:
        self._core, self._descent, self._owner = core, descent, owner
        self._lock = threading.Lock()
        self._jobs: dict[tuple[int, str], _Job] = {}
        self._marks, self._marked = DrainMarks(core), set[Mark]()

    def begin(self, name: str, path: str = "") -> Drain:
        """Drain a tier, or the drive at `path` of one, in the background; how far that is. Idempotent.

        `InvalidArgument` for DRAM, for what is not there, and for the last drive of a tier.
        """
        core, number = self._core, self._number(name)
        if number == DRAM:
            raise InvalidArgument("dram cannot be drained: everything goes through it; stop the server instead")
        with self._lock:
            core.check_open()
            job = self._jobs.get((number, path))
            if job is not None and not job.has_failed:
                return job.told()
            others = [each for tier, each in self._jobs if tier == number and each != path]
            if "" in others or (not path and any(not self._jobs[number, each].is_over for each in others)):
                raise InvalidArgument(f"{name} is being drained already ({', '.join(filter(None, others)) or 'all'}): "
                                      f"wait, or `kvstore tiers resume {name}` first")  # fmt: skip
            covers = core.tiers[number].drain(path)
            departure = Departure(core, self._descent, self._owner, number, covers, within=bool(path))
            if not path:
                with core.lock:
                    core.drained.add(number)
            job = self._jobs[number, path] = _Job(core, number, path, departure)
            self._mark(Mark(name, path))
            job.start()
            return job.told()

    def recall(self) -> None:
        """Go on with what was drained when the store was closed or died. Called once, before anything is written."""
        core, known = self._core, {tier.name for tier in self._core.tiers}
        marks = self._marks.recall()
        self._marked = {each for each in marks if each.tier in known}
        for each in sorted(self._marked):
            try:
                self.begin(*each)
            except KVStoreError as error:
                if not self._is_configured(each):
                    self._marked.discard(each)
                    continue
                core.events.announce(
                    f"{each.path or each.tier} was being drained and is not now: {error} (end that with `kvstore tiers "
                    f"resume {each.tier}{f' --path {each.path}' if each.path else ''}`)",
                    each.tier,
                )
        if self._marked != set(marks):
            self._marks.keep(self._marked)

    def resume(self, name: str, path: str = "") -> Drain:
        """Take a tier, with all its drives, or the drive at `path` back into use. Idempotent.

        `StorageError` where a drive that was drained is not there any more.
        """
        core, number = self._core, self._number(name)
        with self._lock:
            core.check_open()
            if path and (number, "") in self._jobs:
                raise InvalidArgument(f"all of {name} is being drained: resume it without a path")
            for job in self._of(number, path):
                job.stop()
            if not self._of(number, path):  # a mark of what is not there ends whatever becomes of the rest
                self._unmark(name, path)
            core.tiers[number].resume(path)
            for job in self._of(number, path):
                del self._jobs[number, job.path]
            self._unmark(name, path)
            if not path:
                with core.lock:
                    core.drained.discard(number)
        return Drain(name, path, "ok")

    def of(self, number: int) -> Sequence[Drain]:
        """How far the drains of one tier are. Waits for nobody who begins or ends one."""
        return [job.told() for (tier, _), job in list(self._jobs.items()) if tier == number]

    def close(self) -> None:
        """Stop. A tier that is not empty yet takes records again, so that the store's end can be written down."""
        with self._lock:
            for (number, path), job in self._jobs.items():
                job.stop()
                if not path and not job.is_done:
                    with self._core.lock:
                        self._core.drained.discard(number)

    def _mark(self, mark: Mark) -> None:
        """Remember a drain over a restart; that of a tier has those of its drives in it."""
        before = set(self._marked)
        if not mark.path:
            self._marked = {each for each in self._marked if each.tier != mark.tier}
        self._marked.add(mark)
        if self._marked != before and not self._marks.keep(self._marked):
            self._core.events.announce(
                f"the drain of {mark.path or mark.tier} is not remembered over a restart: no tier here has a place for "
                "that",
                mark.tier,
            )

    def _unmark(self, name: str, path: str) -> None:
        left = {each for each in self._marked if each.tier != name or (path and each.path != path)}
        if left != self._marked:
            self._marked = left
            self._marks.keep(left)

    def _is_configured(self, mark: Mark) -> bool:
        """Whether what is not there just now is still spoken of, so that it may come back."""
        nvme = self._core.config.nvme
        paths = [] if nvme is None else [nvme.path, *nvme.paths]
        return not mark.path or Path(mark.path).absolute() in [each.absolute() for each in paths]

    def _number(self, name: str) -> int:
        names = [tier.name for tier in self._core.tiers]
        if name not in names:
            raise InvalidArgument(f"there is no tier {name!r} here; there are {', '.join(names)}")
        return names.index(name)

    def _of(self, number: int, path: str) -> list[_Job]:
        return [job for (tier, at), job in self._jobs.items() if tier == number and (not path or at == path)]


class _Job:
    """One drain, in a thread of its own."""

    def __init__(self, core: Core, number: int, path: str, departure: Departure) -> None:
        self.path = path
        self._core, self._number, self._departure = core, number, departure
        self._name = core.tiers[number].name
        self._state = "draining"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"kvstore-drain-{self._name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._core.events.announce(f"{self._what} is being drained", self._name)
        self._thread.start()

    def stop(self) -> None:
        """End after what is being moved just now."""
        self._stop.set()
        self._thread.join()
        if self._state == "draining":
            self._state = "drain failed: it was stopped"

    @property
    def is_over(self) -> bool:
        """Whether nothing more is done."""
        return self._state != "draining"

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be done."""
        return self._state == "drained"

    @property
    def has_failed(self) -> bool:
        """Whether it ended before it was done."""
        return self._state not in ("draining", "drained")

    def told(self) -> Drain:
        """How far it is."""
        gone, state = self._departure, self._state
        if state == "draining" and gone.waiting:
            state = f"draining: {gone.waiting}"
        return Drain(
            self._name, self.path, state, 0 if self._state == "drained" else gone.left_bytes, gone.moved_parts,
            gone.moved_bytes, gone.dropped_chunks, gone.dropped_bytes,
        )  # fmt: skip

    @property
    def _what(self) -> str:
        return f"{self.path} ({self._name})" if self.path else self._name

    def _run(self) -> None:
        gone, core = self._departure, self._core
        try:
            with core.gates[self._number].alone():
                pass  # who was writing there has entered what was written
            rows: Sequence[int] = gone.rows()
            while rows and not self._stop.is_set():
                before = len(rows)
                rows = self._pass(rows)
                if len(rows) == before:
                    self._stop.wait(PAUSE_S)
                rows = rows or gone.rows()
            if rows or self._stop.is_set():
                return
            core.tiers[self._number].detach(self.path)
        except KVStoreError as error:
            self._state = f"drain failed: {error}"
            core.events.announce(f"{self._what}: {self._state}", self._name)
            return
        except BaseException as error:
            self._state = f"drain failed: {error!r}"
            raise
        self._state = "drained"
        lost = f", {gone.dropped_chunks} chunks fitted nowhere and were dropped" if gone.dropped_chunks else ""
        core.events.announce(
            f"{self._what} is drained and can be pulled: {gone.moved_parts} parts were moved{lost}", self._name
        )

    def _pass(self, rows: Sequence[int]) -> Sequence[int]:
        """Move what can be moved of chunks, the coldest first; those that are still there."""
        gone, core = self._departure, self._core
        down = self._move(rows, gone.move_on)
        stuck = [row for row in reversed(rows) if down.get(row) is Fate.STUCK]
        up = self._move(stuck, gone.move_up)
        removed = Removed()
        for row in reversed(stuck):
            if self._stop.is_set():
                break
            if up.get(row) is Fate.STUCK:
                gone.drop(row, removed)
            core.settle(removed)
        return [row for row in rows if gone.is_here(row)]

    def _move(self, rows: Sequence[int], move: Move) -> dict[int, Fate]:
        """What became of chunks, each with what was moved flushed before it is taken out."""
        fates: dict[int, Fate] = {}
        for start in range(0, len(rows), BATCH):
            if self._stop.is_set():
                break
            batch = rows[start : start + BATCH]
            fates.update((row, move(row)) for row in batch)
            self._departure.leave(row for row in batch if fates[row] is Fate.SAFE)
        return fates
