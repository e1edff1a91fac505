"""Registers what this process has mapped of the store with CUDA, beside everything else.

A part in memory that is not registered, or not yet, is copied all the same, more slowly.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING

from kvstore.channels.mappings import MAPPINGS, Event, Mappings
from kvstore.connectors.vllm._warn import Warn
from kvstore.errors import KVStoreError

if TYPE_CHECKING:
    from kvstore.tiers.hbm.pinning import Pin, Pins


class Pinned:
    """All mappings of this process, registered from soon after they are made until nobody uses them, or `close`."""

    def __init__(self, pins: Pins, mappings: Mappings = MAPPINGS) -> None:
        self._pins, self._mappings = pins, mappings
        self._events: SimpleQueue[Event | None] = SimpleQueue()
        self._held: dict[int, Pin] = {}
        self._warn = Warn("pinning", 60.0)
        self._thread = threading.Thread(target=self._run, name="kvstore-pin", daemon=True)
        self._thread.start()
        mappings.watch(self._events)

    def close(self) -> None:
        """Unregister. No copy from or to the mappings may be under way."""
        self._mappings.unwatch(self._events)
        self._events.put(None)
        self._thread.join()

    def _run(self) -> None:
        while self._next():
            pass
        for number in list(self._held):
            self._release(number)

    def _next(self) -> bool:
        """Do what the next event says. A function, so that no name here holds a mapping while the next is awaited."""
        event = self._events.get()
        if event is None:
            return False
        number, memory = event
        if memory is None:
            self._release(number)
            return True
        try:
            self._held[number] = self._pins.register(memory)
        except KVStoreError as error:
            self._warn(f"{memory.nbytes >> 20} MiB of the store are copied more slowly: {error}")
        return True

    def _release(self, number: int) -> None:
        """A pin holds its mapping: it is unmapped after this, and not before."""
        pin = self._held.pop(number, None)
        try:
            if pin is not None:
                pin.close()
        except KVStoreError as error:
            self._warn(str(error))
