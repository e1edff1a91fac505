"""Watching: events of one namespace, to any number of readers, none of which can slow the store down."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TypeAlias

from kvstore.api import Event
from kvstore.errors import Closed
from kvstore.spec import Part

_BACKLOG = 10_000
_NO_PART = Part(0, 0, (0, 0))
Listener: TypeAlias = Callable[[str, str, bytes, bytes, Part], None]


class Watcher(Iterator[Event]):
    """An endless iterator of events. `close` ends it from any thread.

    A reader that falls behind by more than 10,000 events loses some; it is told by one event of the kind `lost`.
    """

    def __init__(self, namespace: str, lookups: bool, forget: Callable[[Watcher], None]) -> None:
        self.namespace = namespace
        self.lookups = lookups
        self._queue: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._forget = forget
        self._lost = False
        self._ended = False

    def offer(self, event: Event) -> None:
        """Queue an event, or note that one was lost."""
        if self._queue.qsize() < _BACKLOG:
            self._queue.put(event)
        elif not self._lost:
            self._lost = True
            self._queue.put(Event("lost", event.key, event.spec, event.part, event.tier, event.at_ms))

    def next_within(self, seconds: float) -> Event | None:
        """The next event, or None when none came in time. Raises `StopIteration` at the end."""
        if self._ended:
            raise StopIteration
        try:
            event = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if event is None:
            self._ended = True
            raise StopIteration
        self._lost = self._lost and event.kind != "lost"
        return event

    def __next__(self) -> Event:
        while True:
            event = self.next_within(3600.0)
            if event is not None:
                return event

    def close(self) -> None:
        """End the iteration. A second call does nothing."""
        self._forget(self)
        self._queue.put(None)


class EventHub:
    """Hands events to watchers, and look-ups to those who watch these."""

    def __init__(
        self, watched: Callable[[bool], None], withhold: Callable[[frozenset[str]], None],
        may_operate: Callable[[str], bool],
    ) -> None:  # fmt: skip
        """`watched` is told whether there are any watchers, before a new one is told of anything; `withhold` the
        namespaces whose look-ups are watched, and must all be made by call.

        `may_operate` says of a namespace whether its watchers are told of what is no tenant's: whole tiers.
        """
        self.notes: Sequence[str] = ()  # what happened to tiers, in words
        self.may_operate = may_operate
        self._lock = threading.Lock()
        self._tell = watched
        self._withhold = withhold
        self._watchers: tuple[Watcher, ...] = ()
        self._asked: dict[str, tuple[Watcher, ...]] = {}  # who watches a namespace's look-ups
        self._listeners: tuple[Listener, ...] = ()
        self._closed = False

    def watch(self, namespace: str, *, lookups: bool = False) -> Watcher:
        """A new watcher of one namespace's events, or of its look-ups."""
        watcher = Watcher(namespace, lookups, self._drop)
        with self._lock:
            if self._closed:
                raise Closed("the store is closed")
            if lookups:
                self._ask({**self._asked, namespace: (*self._asked.get(namespace, ()), watcher)})
            else:
                self._watchers = (*self._watchers, watcher)
                self._tell(True)
        return watcher

    def looked_up(self, namespace: str, spec: bytes, refs: bytes) -> None:
        """Tell whoever watches a namespace's look-ups of one."""
        if not self._asked:
            return
        for watcher in self._asked.get(namespace, ()):
            watcher.offer(Event("lookup", b"", spec, _NO_PART, "", time.time_ns() // 1_000_000, refs=refs))

    def listen(self, listener: Listener) -> None:
        """Call `listener(kind, namespace, key, spec, part)` for every event from now on, under the store's lock."""
        with self._lock:
            self._listeners = (*self._listeners, listener)
            self._tell(True)

    def emit(self, kind: str, namespace: str, key: bytes, spec: bytes, part: Part, tier: str) -> None:
        """Tell whoever watches; costs next to nothing when nobody does."""
        for listener in self._listeners:
            listener(kind, namespace, key, spec, part)
        if not self._watchers:
            return
        event = Event(kind, key, spec, part, tier, time.time_ns() // 1_000_000)
        for watcher in self._watchers:
            if watcher.namespace == namespace:
                watcher.offer(event)

    def announce(self, note: str, tier: str) -> None:
        """Tell, in words, what happened to a tier; watchers of every namespace that `may_operate`, and `notes`."""
        self.notes = [*self.notes, note]
        event = Event("tier", b"", b"", Part(), tier, time.time_ns() // 1_000_000, note)
        for watcher in self._watchers:
            if self.may_operate(watcher.namespace):
                watcher.offer(event)

    def close(self) -> None:
        """End every watcher."""
        with self._lock:
            self._closed = True
            watchers = [*self._watchers, *chain.from_iterable(self._asked.values())]
        for watcher in watchers:
            watcher.close()

    def _drop(self, watcher: Watcher) -> None:
        with self._lock:
            if watcher.lookups:
                left = {name: tuple(e for e in of if e is not watcher) for name, of in self._asked.items()}
                self._ask({name: of for name, of in left.items() if of})
                return
            self._watchers = tuple(each for each in self._watchers if each is not watcher)
            self._tell(bool(self._watchers or self._listeners))

    def _ask(self, asked: dict[str, tuple[Watcher, ...]]) -> None:
        self._asked = asked
        self._withhold(frozenset(asked))
