"""Registered memory: the book-keeping with a device that is made up, and the real thing on a GPU."""

from __future__ import annotations

import mmap
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from kvstore import _native  # noqa: E402 - needs torch
from kvstore.errors import InvalidArgument, StorageError  # noqa: E402 - needs torch
from kvstore.testing.records import make_sample  # noqa: E402 - needs torch
from kvstore.tiers.hbm import HbmTier  # noqa: E402 - needs torch
from kvstore.tiers.hbm.pinning import Pins, pins_of  # noqa: E402 - needs torch

MIB = 1 << 20
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")


class MadeUpDevice:
    """Stands in for a GPU's driver, which registers nothing twice and refuses what it cannot do."""

    def __init__(self, takes_read_only: bool = True) -> None:
        self.takes_read_only = takes_read_only
        self.registered: dict[int, tuple[int, bool]] = {}

    def register(self, address: int, nbytes: int, *, read_only: bool) -> None:
        for start, (length, _) in self.registered.items():
            if address < start + length and start < address + nbytes:
                raise StorageError("registered already")
        self.registered[address] = (nbytes, read_only)

    def unregister(self, address: int) -> None:
        del self.registered[address]


def mapping(nbytes: int = MIB, *, read_only: bool = False) -> memoryview:
    file = os.memfd_create("pinning")
    os.ftruncate(file, nbytes)
    os.pwrite(file, np.arange(nbytes // 4, dtype=np.uint32).tobytes(), 0)
    prot = mmap.PROT_READ if read_only else mmap.PROT_READ | mmap.PROT_WRITE
    memory = mmap.mmap(file, nbytes, prot=prot)
    os.close(file)
    return memoryview(memory)


def test_what_is_covered() -> None:
    device = MadeUpDevice()
    pins, first, second = Pins(device), mapping(), mapping(read_only=True)
    pin, other = pins.register(first), pins.register(second)
    start, begin = _native.address_of(first), _native.address_of(second)
    assert pins.covers(start, MIB, writing=True)
    assert pins.covers(start + 5, MIB - 5, writing=False)
    assert not pins.covers(start + 5, MIB - 4, writing=False) or begin == start + MIB
    assert not pins.covers(start - 1, 1, writing=False) or begin + MIB == start
    assert pins.covers(begin, MIB, writing=False)
    assert not pins.covers(begin, 1, writing=True), "devices may not write to what the process may only read"
    assert device.registered == {start: (MIB, False), begin: (MIB, True)}
    assert pins.nbytes == 2 * MIB
    pin.close()
    pin.close()
    assert not pins.covers(start, 1, writing=False)
    assert list(device.registered) == [begin]
    other.close()
    assert not device.registered


def test_no_piece_crosses_the_edge_of_what_is_registered() -> None:
    pins, memory = Pins(MadeUpDevice()), mapping(4 * MIB)
    start = _native.address_of(memory)
    assert pins.pieces(start, 4 * MIB, writing=True) == [(0, 4 * MIB)]
    first, second = pins.register(memory[MIB : 2 * MIB]), pins.register(memory[2 * MIB : 3 * MIB].toreadonly())
    assert pins.pieces(start, 4 * MIB, writing=False) == [(0, MIB), (MIB, MIB), (2 * MIB, MIB), (3 * MIB, MIB)]
    assert pins.pieces(start + MIB, MIB, writing=True) == [(0, MIB)]
    assert pins.pieces(start + MIB + 5, 100, writing=True) == [(0, 100)]
    assert pins.pieces(start + MIB // 2, MIB, writing=True) == [(0, MIB // 2), (MIB // 2, MIB // 2)]
    assert pins.pieces(start + 3 * MIB, MIB, writing=True) == [(0, MIB)]
    assert pins.pieces(start + 5 * MIB // 2, MIB, writing=False) == [(0, MIB // 2), (MIB // 2, MIB // 2)]
    for at, nbytes in ((2 * MIB, 1), (3 * MIB - 1, 2), (0, 4 * MIB)):
        with pytest.raises(InvalidArgument, match="for reading only"):
            pins.pieces(start + at, nbytes, writing=True)
    assert pins.pieces(start, 0, writing=True) == []
    first.close()
    second.close()


def test_what_is_registered_twice_is_so_until_the_last_use_ends() -> None:
    device = MadeUpDevice()
    pins, memory = Pins(device), mapping()
    first, second = pins.register(memory), pins.register(memory[: MIB // 2])
    first.close()
    assert pins.covers(_native.address_of(memory), MIB, writing=True)
    second.close()
    assert not pins.covers(_native.address_of(memory), 1, writing=True)
    assert not device.registered


def test_what_a_device_refuses_is_not_covered() -> None:
    pins, memory = Pins(MadeUpDevice(takes_read_only=False)), mapping(read_only=True)
    with pytest.raises(StorageError, match="may only be read"):
        pins.register(memory)
    assert not pins.covers(_native.address_of(memory), 1, writing=False)
    with pytest.raises(InvalidArgument, match="empty"):
        pins.register(memory[:0])
    writable = mapping()
    pins = Pins(MadeUpDevice())
    pin = pins.register(writable[: MIB // 2])
    with pytest.raises(StorageError, match="already"):
        pins.register(writable)
    assert pins.nbytes == MIB // 2
    pin.close()


def test_the_twin_registers_too() -> None:
    tier, memory = HbmTier(8 * MIB, "cpu", slab_bytes=8 * MIB), mapping()
    pin = tier.register(memory)
    assert tier.stats()["registered_bytes"] == MIB
    pin.close()
    assert tier.stats()["registered_bytes"] == 0
    tier.close()


@CUDA
@pytest.mark.parametrize("read_only", [False, True])
def test_copies_from_registered_memory(read_only: bool) -> None:
    """Read-only extents are what a client has; the device reads them by itself, and writes go another way."""
    tier, memory = HbmTier(32 * MIB, "cuda:0", slab_bytes=16 * MIB), mapping(read_only=read_only)
    pin = tier.register(memory)
    pins = pins_of(torch.device("cuda", 0))
    assert pins.covers(_native.address_of(memory), MIB, writing=False)
    assert pins.covers(_native.address_of(memory), MIB, writing=True) is not read_only
    sample = make_sample(1, MIB)
    location = tier.write(sample.header, memory, sample.record)
    out = mapping()
    tier.read_into(location, sample.record.header_bytes, out)
    assert out == memory
    out[:] = bytes(MIB)
    with_pin = tier.register(out)
    tier.read_into(location, sample.record.header_bytes, out)
    assert out == memory
    with_pin.close()
    pin.close()
    assert not pins.covers(_native.address_of(memory), 1, writing=False)
    tier.close()


@CUDA
def test_a_refused_registration_leaves_no_error_behind() -> None:
    tier, memory = HbmTier(16 * MIB, "cuda:0", slab_bytes=16 * MIB), mapping()
    pin = tier.register(memory[: MIB // 2])
    with pytest.raises(StorageError, match=r"registering .* failed on the GPU: CUDA_ERROR"):
        tier.register(memory)
    assert int(torch.ones(3, device="cuda").sum()) == 3
    torch.cuda.synchronize()
    pin.close()
    tier.close()
