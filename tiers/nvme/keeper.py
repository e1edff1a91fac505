"""The tier's own thread: what is needed soon is made ready before anybody waits for it.

It begins the next life of a segment before the one in use is full, frees segments ahead of need once it has an owner
to ask, and notices drives that have gone.
"""

from __future__ import annotations

import threading

from kvstore.errors import Closed, KVStoreError, StorageError
from kvstore.tiers.base import Owner
from kvstore.tiers.nvme.calls import Calls
from kvstore.tiers.nvme.drive import Drive
from kvstore.tiers.nvme.fleet import Fleet

_LOOK_S = 1.0


class Keeper:
    """`owner` is who says what may go; without one nothing is freed ahead."""

    def __init__(self, fleet: Fleet, calls: Calls, name: str) -> None:
        self.owner: Owner | None = None
        self._fleet, self._calls = fleet, calls
        self._wake, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def stop(self) -> None:
        """Begin nothing more."""
        self._stop.set()
        self._wake.set()

    def join(self) -> None:
        """Return when what was under way is done."""
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set():
            self._wake.wait(_LOOK_S)
            self._wake.clear()
            try:
                with self._calls:
                    self._fleet.look_after()
                    for drive in self._fleet.writable:
                        with drive.gate.passing():
                            if not drive.detached:
                                self._tend(drive)
            except Closed:
                return

    def _tend(self, drive: Drive) -> None:
        """One drive's next segment, and room for the one after that."""
        try:
            drive.table.prepare()
            while self.owner is not None and not self._stop.is_set() and drive.table.is_short:
                before = drive.table.spare
                if not drive.cleaner.free_one(self.owner):
                    break
                if drive.table.spare <= before:
                    break  # what had to be kept took as much as was freed: more of that would be nothing but wear
                drive.table.prepare()
        except StorageError:
            self._fleet.examine(drive)
        except KVStoreError:
            pass  # a disk without room; whoever writes is told
