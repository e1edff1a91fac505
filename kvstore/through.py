"""Writing through: what is put here is copied to a shared tier in the background, so that other hosts find it."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from kvstore.catalog import Scope
from kvstore.core import DRAM, Copy, Core
from kvstore.descent import Descent
from kvstore.errors import DeadlineExceeded, KVStoreError, Unavailable
from kvstore.namespace import namespace_digest
from kvstore.spec import Part

BACKLOG = 100_000  # parts that wait; what comes on top of that is copied by the mover when it grows cold
PAUSE_S = 0.25  # while the tier is not to be used


class _New(NamedTuple):
    namespace: str
    spec: bytes
    key: bytes
    part: Part


class Through:
    """Copies every part that is put to one tier, several at a time.

    While the tier cannot be reached parts wait. One that was evicted meanwhile is not copied.
    """

    def __init__(self, core: Core, descent: Descent, target: int, threads: int) -> None:
        self._core, self._descent, self._target = core, descent, target
        self._waiting: deque[_New] = deque()
        self._running = 0
        self._changed = threading.Condition()
        self._stopped = False
        self._threads = [
            threading.Thread(target=self._run, name=f"kvstore-through-{n}", daemon=True) for n in range(threads)
        ]

    def start(self) -> None:
        """Begin; parts that are put from now on are copied."""
        self._core.events.listen(self._hear)
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """Parts that are not copied yet."""
        return len(self._waiting) + self._running

    def close(self, patience_s: float) -> None:
        """Stop when all is copied, or when `patience_s` have passed or the tier cannot be reached."""
        with self._changed:
            if self._is_usable():
                self._changed.wait_for(lambda: not self.waiting or not self._is_usable(), patience_s)
            self._stopped = True
            self._changed.notify_all()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _hear(self, kind: str, namespace: str, key: bytes, spec: bytes, part: Part) -> None:
        if kind != "stored":
            return
        with self._changed:
            if len(self._waiting) < BACKLOG:
                self._waiting.append(_New(namespace, spec, key, part))
                self._changed.notify()
            else:
                self._core.counters["through_left_out"] += 1

    def _is_usable(self) -> bool:
        return self._core.is_usable(self._target)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopped)
                if self._stopped:
                    return
                if not self._is_usable():
                    self._changed.wait(PAUSE_S)
                    continue
                new = self._waiting.popleft()
                self._running += 1
            again = False
            try:
                again = not self._copy(new)
            finally:
                with self._changed:
                    self._running -= 1
                    if again:
                        self._waiting.appendleft(new)
                    self._changed.notify_all()

    def _copy(self, new: _New) -> bool:
        """Copy a part if it is still here and not there; False if that is to be tried again."""
        held = self._hold(new)
        if held is None:
            return True
        scope, copy = held
        try:
            self._descent.write(scope, new.key, new.part, copy, self._target)
        except (Unavailable, DeadlineExceeded):
            return False
        except KVStoreError:
            with self._core.lock:
                self._core.counters["through_failed"] += 1
        finally:
            self._descent.let_go(scope, new.key, new.part, copy)
        return True

    def _hold(self, new: _New) -> tuple[Scope, Copy] | None:
        core = self._core
        with core.lock:
            scope = core.catalog.find(namespace_digest(new.namespace), new.spec)
            if scope is None:
                return None
            chunk, row = core.find_part(scope, new.key, new.part)
            here = -1 if row < 0 else core.index.find_placement(row, DRAM)
            if here < 0 or here in core.bad:
                return None
            if core.redundancy.has(self._target, row, exact=core.index.placement(here).exact):
                return None
            if not core.admissions.admits(self._target, chunk):
                return None
            return scope, core.hold(here, scope, new.part)
