"""Files on tmpfs that stand in for DAX devices, and tiers on them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.tiers.cxl import CxlTier

MIB = 1 << 20
Opener = Callable[..., CxlTier]
MakeFiles = Callable[..., list[Path]]


@pytest.fixture
def make_files() -> Iterator[MakeFiles]:
    """Makes files of so many bytes each."""
    folder = Path(tempfile.mkdtemp(prefix="kvstore-test-", dir="/dev/shm"))

    def make(*sizes: int) -> list[Path]:
        paths = []
        for size in sizes:
            path = folder / f"device-{len(list(folder.iterdir()))}"
            with path.open("wb") as file:
                file.truncate(size)
            paths.append(path)
        return paths

    yield make
    shutil.rmtree(folder)


@pytest.fixture
def opener() -> Iterator[Opener]:
    """Opens and recovers tiers, and closes what the test left open."""
    opened: list[CxlTier] = []

    def opening(*args: Any, **options: Any) -> CxlTier:
        tier = CxlTier(*args, **options)
        opened.append(tier)
        return tier

    yield opening
    for tier in opened:
        tier.close()
