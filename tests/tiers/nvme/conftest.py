"""Small tiers in temporary folders, and folders as a killed process leaves them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kvstore.tiers.nvme import NvmeTier

MIB = 1 << 20
Opener = Callable[..., NvmeTier]
Killer = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where `opener` opens its tiers."""
    return tmp_path / "nvme"


@pytest.fixture
def opener(folder: Path) -> Iterator[Opener]:
    """Opens tiers of 12 MiB in segments of 1 MiB in one folder, and closes what the test left open."""
    opened: list[NvmeTier] = []

    def opening(path: Path = folder, **options: Any) -> NvmeTier:
        wanted = {"capacity": 12 * MIB, "segment_bytes": MIB, "reserve_bytes": 0, **options}
        opened.append(NvmeTier(path, **wanted))
        return opened[-1]

    yield opening
    for tier in opened:
        tier.close()


@pytest.fixture
def killed(folder: Path, tmp_path: Path) -> Killer:
    """A copy of the folder as kill -9 would leave it now.

    Segments are links unless `apart`: the tier that is still open must not write to them any more, and recovery
    does not.
    """
    count = 0

    def copy(*, apart: bool = False) -> Path:
        nonlocal count
        count += 1
        target = tmp_path / f"killed-{count}"
        for source in [folder, *folder.rglob("*")]:
            place = target / source.relative_to(folder)
            if source.is_dir():
                place.mkdir()
            elif source.suffix == ".seg" and not apart:
                os.link(source, place)
            else:
                place.write_bytes(source.read_bytes())
        return target

    return copy
