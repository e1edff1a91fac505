"""`kvstore cxl wipe`, in processes of its own, on files that stand in for DAX devices."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.errors import ConfigError, StorageError
from kvstore.tiers.cxl import CxlTier, superblock

from .conftest import Run, only_json

MiB = 1 << 20


@pytest.fixture
def devices() -> Iterator[list[Path]]:
    folder = Path(tempfile.mkdtemp(prefix="kvstore-test-", dir="/dev/shm"))
    made = [folder / name for name in ("one", "two")]
    for each in made:
        with each.open("wb") as file:
            file.truncate(8 * MiB)
    yield made
    shutil.rmtree(folder)


def test_devices_of_another_tier_are_usable_again(cli: Run, devices: list[Path]) -> None:
    CxlTier(paths=devices, persistent=True).close()
    with pytest.raises(ConfigError, match=f"kvstore cxl wipe {devices[0]}"):
        CxlTier(paths=devices)
    before = [each.read_bytes() for each in devices]
    asked = cli("cxl", "wipe", *devices)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert "device 1 of 2 of a persistent tier" in asked.stderr
    assert "closed in order" in asked.stderr
    assert "--yes gives it up" in asked.stderr
    assert [each.read_bytes() for each in devices] == before, "nothing was changed"
    done = only_json(cli("cxl", "wipe", *devices, "--yes", "--json"))
    assert [each["path"] for each in done["wiped"]] == [str(each) for each in devices]
    CxlTier(paths=devices).close()
    CxlTier(paths=devices[:1], persistent=True).close()


@pytest.mark.parametrize(
    ("head", "said"),
    [(b"LUKS and a key" * 40, "something that is no tier of kvstore"), (b"", "nothing: it looks new"),
     (superblock.MAGIC + bytes([9]) + b"x" * 300, "whose superblocks are damaged")],
)  # fmt: skip
def test_what_is_given_up_is_told_first(called: Run, devices: list[Path], head: bytes, said: str) -> None:
    with devices[0].open("r+b") as file:
        file.write(head)
    asked = called("cxl", "wipe", devices[0])
    assert asked.returncode == 2
    assert said in asked.stderr
    assert called("cxl", "wipe", devices[0], "--yes").returncode == 0
    CxlTier(paths=devices, persistent=True).close()


def test_a_tier_of_an_older_format_is_told_and_given_up(
    called: Run, devices: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(superblock, "VERSION", 0)
    CxlTier(paths=devices[:1], persistent=True).close()
    monkeypatch.undo()
    with pytest.raises(StorageError, match=f"of format 0 .* kvstore cxl wipe {devices[0]}"):
        CxlTier(paths=devices[:1], persistent=True)
    assert "of format 0 and this kvstore reads 1" in called("cxl", "wipe", devices[0]).stderr
    assert called("cxl", "wipe", devices[0], "--yes").returncode == 0
    CxlTier(paths=devices[:1], persistent=True).close()


@pytest.mark.parametrize("persistent", [True, False])
def test_nothing_is_wiped_under_a_store(cli: Run, devices: list[Path], persistent: bool) -> None:
    tier = CxlTier(paths=devices[:1], persistent=persistent)
    before = devices[1].read_bytes()
    refused = cli("cxl", "wipe", devices[1], devices[0], "--yes")
    assert refused.returncode == 7
    assert "in use by another tier" in refused.stderr
    assert devices[1].read_bytes() == before
    tier.close()


def test_paths_that_are_none(called: Run, tmp_path: Path) -> None:
    for arguments, said in (((), "PATH"), ((tmp_path / "nowhere", "--yes"), "is not there"),
                            ((tmp_path, "--yes"), "neither a DAX device nor a file")):  # fmt: skip
        refused = called("cxl", "wipe", *arguments)
        assert refused.returncode == 2
        assert said in refused.stderr
