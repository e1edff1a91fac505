"""The arena's memory registered with devices: each extent once, until it is destroyed. The device is made up."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from kvstore import _native
from kvstore.errors import StorageError
from kvstore.host_pins import HostPins
from kvstore.tiers.dram import DramTier

MiB = 1 << 20
ONE, TWO = b"1" * 16, b"2" * 16


class Pin:
    def __init__(self, device: Device, memory: memoryview) -> None:
        self._device, self._memory = device, memory[:]
        self.start = _native.address_of(self._memory)

    def close(self) -> None:
        self._device.pinned.remove(self.start)
        self._memory.release()


class Device:
    """What `HbmTier.register` is to the store."""

    def __init__(self, most: int = 99) -> None:
        self.pinned: list[int] = []
        self._most = most

    def register(self, memory: memoryview) -> Any:
        if len(self.pinned) >= self._most:
            raise StorageError("registering failed on the GPU: out of memory (2)")
        pin = Pin(self, memory)
        assert pin.start not in self.pinned
        self.pinned.append(pin.start)
        return pin


def eventually(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.01)


@pytest.fixture
def dram() -> Any:
    tier = DramTier(3 * MiB, MiB)
    yield tier
    tier.close()


def test_every_extent_is_registered_until_it_is_destroyed(dram: DramTier) -> None:
    device, told = Device(), list[str]()
    pins = HostPins(dram, device, told.append)  # type: ignore[arg-type]
    eventually(lambda: len(device.pinned) == 3)  # those that nobody has yet, too
    locations = [dram.reserve(ONE, MiB) for _ in range(3)]
    first = _native.address_of(dram.view(locations[0], 0, MiB))
    assert first in device.pinned
    dram.delete(locations[0], MiB)
    assert dram.replace_extent(locations[0] >> 40, TWO)
    eventually(lambda: dram.reserve(TWO, MiB) >= 0)
    eventually(lambda: len(device.pinned) == 3 and not dram.is_growing)
    pins.close()
    assert (device.pinned, told) == ([], [])


def test_what_is_refused_is_told_once_and_the_rest_goes_on(dram: DramTier) -> None:
    device, told = Device(most=1), list[str]()
    pins = HostPins(dram, device, told.append)  # type: ignore[arg-type]
    eventually(lambda: len(told) == 2)
    time.sleep(0.6)  # it looks again, and asks for nothing twice
    assert len(told) == 2
    assert "1 MiB of DRAM are copied to and from devices more slowly" in told[0]
    pins.close()
    assert not device.pinned
