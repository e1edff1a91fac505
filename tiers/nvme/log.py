"""Journal and snapshot together: what the tier holds, kept so that it can be told after any crash.

A checkpoint never stops the writers. It gives the journal an end a little ahead, begins `journal.next` there, and
once the old file is complete folds it into a new snapshot and lets `journal.next` take its name. Whatever moment
a crash picks, the snapshot says which entries it already contains and the two journals hold all the others.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from kvstore.errors import StorageError
from kvstore.tiers.nvme.durable import as_storage_error, sync_folder
from kvstore.tiers.nvme.journal import ENTRY_BYTES, Entry, Journal, load_journal
from kvstore.tiers.nvme.replay import replay
from kvstore.tiers.nvme.snapshot import Snapshot, load_snapshot, save_snapshot

_AHEAD = 256
_LEAST_BYTES = 4 << 20


class Log:
    """The journal that is appended to, and the snapshot it builds on."""

    def __init__(self, folder: Path) -> None:
        self.journal_path, self.next_path = folder / "journal", folder / "journal.next"
        self.snapshot_path = folder / "snapshot.arrow"
        self._folder = folder
        self._journal: Journal | None = None
        self._old: Journal | None = None
        self._snapshot_bytes = 0
        self.written = 0  # bytes of entries and snapshots since this was made
        self._folding = False
        self._switched = threading.Condition()

    @property
    def nbytes(self) -> int:
        """Bytes of journals and snapshot."""
        return self.journal_bytes + self._snapshot_bytes

    @property
    def journal_bytes(self) -> int:
        """Bytes that would have to be replayed."""
        old, journal = self._old, self._journal  # asked before every write: no lock, an estimate for a moment
        return (old.nbytes if old is not None else 0) + (journal.nbytes if journal is not None else 0)

    @property
    def wants_checkpoint(self) -> bool:
        """Whether replaying the journal has come to cost more than loading the snapshot."""
        return self.journal_bytes > max(_LEAST_BYTES, 2 * self._snapshot_bytes)

    @property
    def started(self) -> bool:
        """Whether there is a journal to append to."""
        return self._journal is not None

    def resume(self, first: int, following: int) -> None:
        """Go on with the journal there is."""
        self._snapshot_bytes = self.snapshot_path.stat().st_size if self.snapshot_path.exists() else 0
        self._journal = Journal.resume(self.journal_path, first, following)

    def restart(self, state: Snapshot) -> None:
        """Begin anew with a snapshot of `state` and an empty journal, crash-safe at every step."""
        self._snapshot_bytes = save_snapshot(self.snapshot_path, state)
        self.written += self._snapshot_bytes
        self._journal = Journal.create(self.next_path, state.sequence + 1)
        self._take_name(self._journal)

    def append(self, *entries: Entry) -> None:
        """Write entries; they survive kill -9 when this returns. `TierFull`, `StorageError`."""
        self.written += len(entries) * ENTRY_BYTES  # a figure for wear; two at once may count as one
        while not self._current().append(entries):
            with self._switched:  # with a time limit: the switch may fail, and the old journal then goes on
                self._switched.wait(0.02)

    def take(self) -> tuple[Journal, tuple[int, int, int]]:
        """A slot for one entry, which is to be written at once, and the journal to leave then: see `Journal.take`."""
        self.written += ENTRY_BYTES
        while (slot := (journal := self._current()).take()) is None:
            with self._switched:
                self._switched.wait(0.02)
        return journal, slot

    def _current(self) -> Journal:
        if self._journal is None:
            raise StorageError(f"the journal in {self._folder} is not open")
        return self._journal

    def sync(self) -> None:
        """Make every entry that was appended survive power loss."""
        with self._switched:
            journals = [journal for journal in (self._old, self._journal) if journal is not None]
        for journal in journals:
            journal.sync()

    def fold(self, current: Callable[[], Sequence[int]]) -> None:
        """Replace snapshot and journal by a new snapshot and a journal of what comes meanwhile.

        `current` gives the keys of the lives that segments are in; others are forgotten. A second caller waits
        for the first one's work. `TierFull`, `StorageError`: then nothing has changed, and it can be tried again.
        """
        with self._switched:
            if self._folding:
                self._switched.wait_for(lambda: not self._folding)
                return
            self._folding = True
        try:
            self._fold(current)
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise as_storage_error(error, f"cannot write a snapshot in {self._folder}") from error
        finally:
            with self._switched:
                self._folding = False
                self._switched.notify_all()

    def _fold(self, current: Callable[[], Sequence[int]]) -> None:
        old, following = self._switch()
        old.seal()
        content = load_journal(self.journal_path)
        snapshot, problem = load_snapshot(self.snapshot_path) if self._snapshot_bytes else (Snapshot(), "")
        if snapshot is None or content is None or content.damage:
            trouble = problem or (content.damage if content is not None else "the journal is gone")
            raise StorageError(f"{self._folder}: {trouble} while it is in use; reopen the tier to mend it")
        state = replay(snapshot, [content]).state
        keys = set(current())
        lives = {key: life for key, life in state.lives.items() if key in keys}
        state = replace(state, lives=lives, sequence=following.first - 1)
        self._snapshot_bytes = save_snapshot(self.snapshot_path, state)
        self.written += self._snapshot_bytes
        self._take_name(following)
        with self._switched:
            self._old = None
        old.close()

    def _switch(self) -> tuple[Journal, Journal]:
        """The journal to fold and the one that entries go to from here on, `journal.next`."""
        if self._old is not None:  # an earlier fold failed half-way
            return self._old, self._current()
        journal = self._current()
        try:
            following = Journal.create(self.next_path, journal.limit(_AHEAD))
        except OSError:
            journal.unlimit()
            raise
        with self._switched:
            self._old, self._journal = journal, following
            self._switched.notify_all()
        return journal, following

    def _take_name(self, journal: Journal) -> None:
        os.rename(self.next_path, self.journal_path)
        sync_folder(self._folder)
        journal.path = self.journal_path

    def close(self) -> None:
        """Close the files."""
        for journal in (self._old, self._journal):
            if journal is not None:
                journal.close()
        self._old = self._journal = None
