"""The store's memory as this process has mapped it, for those who prepare copies from and to it.

Extents and staging segments are mapped once and for long. A connector whose KV is on a GPU registers them with CUDA,
which takes tenths of a second and must be undone before they are unmapped; so it is told of both, and does its work
in a thread of its own.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from functools import partial
from queue import SimpleQueue
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

# A mapping's number, and its memory; None when nobody uses it any more. Who holds the memory keeps it mapped.
Event: TypeAlias = tuple[int, memoryview | None]


class Mappings:
    """The mappings that are in use, and who is told of them. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._alive: dict[int, tuple[weakref.ref[Any], weakref.ref[Any]]] = {}
        self._watchers: tuple[SimpleQueue[Any], ...] = ()  # replaced as a whole: `_ended` takes no lock

    def add(self, mapping: npt.NDArray[np.uint8]) -> memoryview:
        """A mapping's memory as its users get it. It is in use as long as anything stands on what this returns."""
        users = np.frombuffer(mapping, np.uint8)
        with self._lock:
            number = next(self._numbers)
            self._alive[number] = weakref.ref(users, partial(self._ended, number)), weakref.ref(mapping)
            for queue in self._watchers:
                queue.put((number, mapping.data))
        return users.data

    def watch(self, queue: SimpleQueue[Any]) -> None:
        """Put an `Event` into a queue for every mapping that is in use or will be, and one when it no longer is."""
        with self._lock:
            self._watchers = (*self._watchers, queue)
            for number in list(self._alive):
                users, mapping = (each() for each in self._alive.get(number, (_nothing, _nothing)))
                if users is not None and mapping is not None:
                    queue.put((number, mapping.data))  # its end comes later, since `users` is held here
                del users, mapping

    def unwatch(self, queue: SimpleQueue[Any]) -> None:
        """Put nothing more into a queue, from when this returns on."""
        with self._lock:
            self._watchers = tuple(each for each in self._watchers if each is not queue)

    def _ended(self, number: int, dead: weakref.ref[Any]) -> None:
        """The garbage collector may call this in a thread that holds the lock."""
        del dead
        self._alive.pop(number, None)
        for queue in self._watchers:
            queue.put((number, None))


def _nothing() -> None:
    return None


MAPPINGS = Mappings()  # of this process, as CUDA's registrations are
