"""The arena's memory, registered with the devices of a store, which then copy to and from it by themselves.

That takes tenths of a second for each extent, so it is done beside everything else; until then, and where it is
refused, copies are the driver's work and slower.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvstore.errors import KVStoreError
from kvstore.tiers.dram import DramTier

if TYPE_CHECKING:
    from kvstore.tiers.hbm import HbmTier
    from kvstore.tiers.hbm.pinning import Pin

TICK_S = 0.25


class HostPins:
    """Registers each extent soon after it is made, for all devices at once, until it is destroyed, or `close`."""

    def __init__(self, dram: DramTier, tier: HbmTier, told: Callable[[str], None]) -> None:
        """`tier` is any of the devices; `told` hears in words what was refused."""
        self._dram, self._tier, self._told = dram, tier, told
        self._pins: dict[int, Pin | None] = {}  # by the number of the extent; None where it was refused
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvstore-pin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Unregister everything. No copy may be under way."""
        self._stop.set()
        self._thread.join()
        for number in list(self._pins):
            self._release(number)

    def _run(self) -> None:
        while True:
            self._follow()
            if self._stop.wait(TICK_S):
                return

    def _follow(self) -> None:
        """Register what is new, and let go of what is gone: until then its memory is not given back."""
        now = self._dram.all_extents()
        for number in self._pins.keys() - now:
            self._release(number)
        for number in sorted(now - self._pins.keys()):
            if self._stop.is_set():
                return
            memory = self._dram.extent_memory(number)
            if memory is not None:
                self._pins[number] = self._register(memory)

    def _register(self, memory: memoryview) -> Pin | None:
        try:
            return self._tier.register(memory)
        except KVStoreError as error:
            self._told(f"{memory.nbytes >> 20} MiB of DRAM are copied to and from devices more slowly: {error}")
            return None

    def _release(self, number: int) -> None:
        pin = self._pins.pop(number)
        try:
            if pin is not None:
                pin.close()
        except KVStoreError as error:
            self._told(str(error))
