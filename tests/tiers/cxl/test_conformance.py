"""The CXL tier against the suite that every tier runs: on a NUMA node, and on files that stand in for DAX devices."""

from __future__ import annotations

import ctypes
import mmap
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from kvstore.testing import BookOwner, Fault, PersistentTierConformance, Sample, TierConformance, replaced
from kvstore.testing.kills import die
from kvstore.tiers.base import Recovered, Tier, TierFull
from kvstore.tiers.cxl import CxlTier, regions

MIB = 1 << 20
CAPACITY = 24 * MIB
TMPFS = "/dev/shm"


@contextmanager
def flipped(tier: CxlTier) -> Iterator[None]:
    """One bit of every 4 KiB of the devices."""

    def flip() -> None:
        for region in tier._regions:
            region.memory[::4096] ^= 1

    flip()
    try:
        yield
    finally:
        flip()


class Torn:
    """Native memory whose caller dies when half of a payload has been copied: the other half cannot be read."""

    def __init__(self, memory: Any) -> None:
        self._memory = memory

    def __getattr__(self, name: str) -> Any:
        return getattr(self._memory, name)

    def write(self, header: bytes, payload: memoryview, stored: int) -> int:
        del payload
        with tempfile.TemporaryFile(dir=TMPFS) as file:
            file.truncate(stored)
            half = mmap.mmap(file.fileno(), stored)
            half[:] = b"\x55" * stored
            file.truncate(stored // 2)
            handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: die())
            ctypes.CDLL(None).signal(signal.SIGBUS, handler)
            return int(self._memory.write(header, memoryview(half), stored))


class OnDevices(TierConformance):
    """What the cases below have in common. The store deletes where a tier does not evict, so the suite does here."""

    def open(self) -> CxlTier:
        raise NotImplementedError

    def make_tier(self) -> Tier:
        tier = self.open()
        tier.recover()
        return tier

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        assert isinstance(tier, CxlTier)
        if fault is Fault.BIT_FLIP:
            return flipped(tier)
        if fault is Fault.TORN_WRITE and tier.persistent:
            return replaced(tier, "_memory", Torn(tier._memory))
        return None

    def write_with_room(self, tier: Tier, owner: BookOwner, sample: Sample) -> bool:
        while True:
            try:
                owner.enter(sample.write_to(tier), sample)
                return True
            except TierFull:
                location = next(iter(owner.book))
                owner.dropped.append(owner.book.pop(location))
                tier.delete(location, owner.dropped[-1].record.total_bytes)


class TestNode(OnDevices):
    def open(self) -> CxlTier:
        return CxlTier(CAPACITY, nodes=[0])


class OnFiles(OnDevices):
    files = 1
    options: dict[str, Any] = {}  # noqa: RUF012 - never changed

    @pytest.fixture(autouse=True)
    def _folder(self) -> Iterator[None]:
        self.folder = Path(tempfile.mkdtemp(prefix="kvstore-test-", dir=TMPFS))
        self._make_files()
        yield
        shutil.rmtree(self.folder)

    def _make_files(self) -> None:
        for path in self.paths():
            with path.open("wb") as file:
                file.truncate(CAPACITY // self.files // 4096 * 4096)

    def paths(self) -> list[Path]:
        return [self.folder / f"device-{number}" for number in range(self.files)]

    def open(self) -> CxlTier:
        return CxlTier(paths=self.paths(), **self.options)

    def place(self) -> str | None:
        return str(self.folder)

    def go_to(self, place: str) -> None:
        self.folder = Path(place)


class TestOneFile(OnFiles):
    pass


class TestTwoFiles(OnFiles):
    files = 2
    options = {"weights": [1, 1], "threads": 2}  # noqa: RUF012


class TestThreeFilesOfUnevenWeights(OnFiles):
    files = 3
    options = {"weights": [3, 1, 2], "unit": 16384, "threads": 3}  # noqa: RUF012


class OnLastingFiles(OnFiles, PersistentTierConformance):
    def reopen(self) -> tuple[Tier, Recovered]:
        tier = self.open()
        return tier, tier.recover()


class TestLastingOneFile(OnLastingFiles):
    options = {"persistent": True}  # noqa: RUF012


class TestLastingTwoFiles(OnLastingFiles):
    files = 2
    options = {"persistent": True, "weights": [1, 1], "threads": 2}  # noqa: RUF012


class TestLastingThreeFilesOfUnevenWeights(OnLastingFiles):
    files = 3
    options = {"persistent": True, "weights": [3, 1, 2], "unit": 16384}  # noqa: RUF012


def as_device(path: Path, found: os.stat_result) -> tuple[int, int, bool]:
    """A file taken for a DAX device of pages of 2 MiB."""
    del path
    return found.st_size, 2 * MIB, True


class TestLastingOnWhatStandsInForDax(OnLastingFiles):
    """As on a device: aligned to huge pages, and every store written back from the processor's caches."""

    files = 2
    options = {"persistent": True, "weights": [1, 2], "unit": 8192}  # noqa: RUF012

    def open(self) -> CxlTier:
        with replaced(regions, "_dimensions", as_device):
            tier = super().open()
        assert all(region.direct for region in tier._regions)
        return tier
