"""What comes back after a restart, and what is not believed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore import _native
from kvstore.errors import ConfigError, StorageError
from kvstore.spec import KVSpec, Part
from kvstore.testing import make_sample, make_spec
from kvstore.testing.records import NAMESPACE, Sample
from kvstore.tiers.cxl import CxlTier, wipe
from kvstore.tiers.cxl.superblock import CATALOG_AT, SLOTS_AT
from kvstore.tiers.cxl.tier import _SLOT_DTYPE
from kvstore.tiers.nvme.rows import pack_row
from tests.tiers.cxl.conftest import MIB, MakeFiles, Opener

TWO: dict[str, Any] = {"persistent": True, "weights": [1, 1], "unit": 4096}


def filled(opener: Opener, paths: list[Path], count: int = 10) -> dict[int, Sample]:
    """Records in a tier that is closed again, by location."""
    tier = opener(paths=paths, **TWO)
    tier.describe(NAMESPACE, make_spec())
    places = {}
    for number in range(count):
        sample = make_sample(number, 30_000 + 1000 * number)
        places[sample.write_to(tier)] = sample
    tier.close()
    return places


def poke(path: Path, at: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(content)


def slot_at(location: int) -> int:
    return SLOTS_AT + (location & 0xFFFFFFFF) * _native.RECORD_SLOT_BYTES


def test_a_second_and_a_third_life(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths)
    for life in range(3):
        tier = opener(paths=paths, **TWO)
        found = tier.recover()
        assert found.clean
        assert not found.notes
        assert {int(row["location"]) for row in found.rows} == set(places)
        sample = make_sample(100 + life, 50_000)
        location = sample.write_to(tier)
        assert location not in places
        places[location] = sample
        for each, written in places.items():
            written.check_in(tier, each)
        tier.close()


def test_rows_say_what_records_are(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths)
    odd = replace(
        make_sample(77, 5000).record, part=Part(3, 2, (5, 9)), position=1 << 31, tokens=99, first_valid=7, form=6,
        level=2, exact=False, logical=1 << 40, artefact=bytes(range(16)),
    )  # fmt: skip
    tier = opener(paths=paths, **TWO)
    records = {at: each.record for at, each in places.items()}
    records[tier.write(odd.pack(), make_sample(77, 5000).payload, odd)] = odd
    tier.close()
    found = opener(paths=paths, **TWO).recover()
    assert len(found.rows) == len(records)
    for row in found.rows:
        location = int(row["location"])
        assert row.tobytes() == pack_row(records[location], location, records[location].created_ms)


def test_recovery_is_done_once(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(8 * MIB), persistent=True)
    tier.recover()
    with pytest.raises(StorageError, match="recovered already"):
        tier.recover()


def test_a_record_whose_writing_had_not_ended_is_dropped_and_told(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths)
    torn = list(places)[3]
    poke(paths[0], slot_at(torn), (1).to_bytes(8, "little"))
    tier = opener(paths=paths, **TWO)
    found = tier.recover()
    assert found.notes == ("1 records whose writing had not ended were dropped",)
    assert {int(row["location"]) for row in found.rows} == set(places) - {torn}
    assert tier.used == sum(each.record.total_bytes for at, each in places.items() if at != torn)
    tier.close()
    again = opener(paths=paths, **TWO).recover()
    assert not again.notes, "it is gone for good"
    assert len(again.rows) == len(places) - 1


@pytest.mark.parametrize("at", [8, 20, 150, 163, 164, 170, 212, 224, 250])
def test_a_slot_with_a_flipped_bit_is_dropped_and_told(make_files: MakeFiles, opener: Opener, at: int) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths, 4)
    damaged = list(places)[2]
    with paths[0].open("r+b") as file:
        file.seek(slot_at(damaged) + at)
        byte = file.read(1)[0]
    poke(paths[0], slot_at(damaged) + at, bytes([byte ^ 4]))
    tier = opener(paths=paths, **TWO)
    found = tier.recover()
    assert found.notes == ("1 records whose slots do not match their checksums were dropped",)
    assert {int(row["location"]) for row in found.rows} == set(places) - {damaged}


def forged(paths: list[Path], location: int, change: Callable[[np.ndarray[Any, Any]], None]) -> None:
    """Change a slot and give it a checksum that matches."""
    raw = np.fromfile(paths[0], np.uint8, _native.RECORD_SLOT_BYTES, offset=slot_at(location))
    change(raw.view(_SLOT_DTYPE))
    raw[:8] = np.array([_native.xxh3_64(raw[8:])], np.uint64).view(np.uint8)
    poke(paths[0], slot_at(location), raw.tobytes())


def set_start(slot: np.ndarray[Any, Any]) -> None:
    slot["stripes"][0, :4] = 255


def set_units(slot: np.ndarray[Any, Any]) -> None:
    slot["stripes"][0, 48:60] = 0


def set_strange_device(slot: np.ndarray[Any, Any]) -> None:
    slot["stripes"][0, 48 + 7] = 1


def set_first(slot: np.ndarray[Any, Any]) -> None:
    slot["stripes"][0, 60] = 9


def set_length(slot: np.ndarray[Any, Any]) -> None:
    slot["row"]["stored"] = (1 << 64) - 1


def set_location(slot: np.ndarray[Any, Any]) -> None:
    slot["row"]["location"] += 1


@pytest.mark.parametrize("change", [set_start, set_units, set_strange_device, set_first, set_length, set_location])
def test_a_slot_that_makes_no_sense_is_dropped_though_its_checksum_matches(
    make_files: MakeFiles, opener: Opener, change: Callable[[np.ndarray[Any, Any]], None]
) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths, 4)
    victim = list(places)[1]
    forged(paths, victim, change)
    tier = opener(paths=paths, **TWO)
    found = tier.recover()
    assert found.notes == ("1 records whose slots do not match their checksums were dropped",)
    assert {int(row["location"]) for row in found.rows} == set(places) - {victim}


def test_two_records_that_claim_the_same_memory_are_both_dropped(make_files: MakeFiles, opener: Opener) -> None:
    """As after power loss, when the end of one was lost and the beginning of the next was not."""
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths, 4)
    one, two, *rest = places
    stripes = np.fromfile(paths[0], np.uint8, 48, offset=slot_at(one) + 164)

    def claim(slot: np.ndarray[Any, Any]) -> None:
        slot["stripes"][0, :48] = stripes

    forged(paths, two, claim)
    tier = opener(paths=paths, **TWO)
    found = tier.recover()
    assert found.notes == ("2 records that claim the same memory were dropped",)
    assert {int(row["location"]) for row in found.rows} == set(rest)
    for location in rest:
        places[location].check_in(tier, location)
    make_sample(9, 10 * MIB).write_to(tier)


def test_names_and_specs_come_back_and_a_torn_entry_is_the_end(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB)
    tier = opener(paths=paths, persistent=True)
    specs = [KVSpec.dense(f"model-{n}", layers=2, kv_heads=1, head_dim=64) for n in range(3)]
    for number, spec in enumerate(specs):
        tier.describe(f"tenant-{number}", spec)
        tier.describe(f"tenant-{number}", spec)
    end = tier._catalog._end
    tier.close()
    found = opener(paths=paths, persistent=True).recover()
    assert set(found.namespaces.values()) == {"tenant-0", "tenant-1", "tenant-2"}
    assert set(found.specs.values()) == set(specs)
    poke(paths[0], CATALOG_AT + end - 9, b"\xff")


def test_a_damaged_catalog_ends_where_it_is_damaged(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB)
    tier = opener(paths=paths, persistent=True)
    tier.describe("first", make_spec())
    at = CATALOG_AT + tier._catalog._end
    tier.describe("second", make_spec())
    tier.close()
    poke(paths[0], at + 17, b"\xff")
    tier = opener(paths=paths, persistent=True)
    assert set(tier.recover().namespaces.values()) == {"first"}
    tier.describe("second", make_spec())
    tier.close()
    assert set(opener(paths=paths, persistent=True).recover().namespaces.values()) == {"first", "second"}


def test_a_full_catalog_says_so(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(8 * MIB), persistent=True)

    def describe_all() -> None:
        for number in range(100_000):
            tier.describe(f"tenant-{number}", KVSpec.dense(f"m{number}", layers=1, kv_heads=1, head_dim=64))

    with pytest.raises(StorageError, match=r"catalog of .* is full"):
        describe_all()


def test_a_torn_superblock_leaves_the_one_before(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths)
    newest = max((0, 4096), key=lambda at: int(np.fromfile(paths[0], "<u8", 1, offset=at + 24)[0]))
    poke(paths[0], newest + 24, b"\xff" * 100)
    found = opener(paths=paths, **TWO).recover()
    assert {int(row["location"]) for row in found.rows} == set(places)
    assert not found.clean, "what was written when it was closed is gone"


def test_a_tier_that_was_not_closed_is_not_clean(make_files: MakeFiles, opener: Opener, tmp_path: Path) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    tier = opener(paths=paths, **TWO)
    sample = make_sample(1, 30_000)
    location = sample.write_to(tier)
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in paths]  # as kill -9 would leave them
    other = opener(paths=copies, **TWO)
    found = other.recover()
    assert not found.clean
    assert not found.notes
    assert [int(row["location"]) for row in found.rows] == [location]
    sample.check_in(other, location)


def test_another_version_is_refused(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    filled(opener, paths)
    for at in (0, 4096):
        raw = np.fromfile(paths[1], np.uint8, 256, offset=at)
        raw[7] = 9
        raw[248:] = np.array([_native.xxh3_64(raw[:248])], np.uint64).view(np.uint8)
        poke(paths[1], at, raw.tobytes())
    with pytest.raises(StorageError, match="is of format 9 and this kvstore reads 1"):
        CxlTier(paths=paths, **TWO)


def test_an_older_copy_of_a_device_is_refused(make_files: MakeFiles, opener: Opener, tmp_path: Path) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    filled(opener, paths)
    shutil.copy(paths[1], tmp_path / "old")
    opener(paths=paths, **TWO).close()
    shutil.copy(tmp_path / "old", paths[1])
    with pytest.raises(StorageError, match="of generation 2, the others of 4: it is an older copy"):
        CxlTier(paths=paths, **TWO)


def test_devices_in_another_order_or_number_are_refused(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    filled(opener, paths)
    with pytest.raises(ConfigError, match="is number 1 of 2 devices, here it is number 0 of 2"):
        CxlTier(paths=paths[::-1], **TWO)
    with pytest.raises(ConfigError, match="number 0 of 2 devices, here it is number 0 of 1"):
        CxlTier(paths=paths[:1], persistent=True)


def test_a_device_of_another_tier_or_a_new_one_is_refused(make_files: MakeFiles, opener: Opener) -> None:
    mine, theirs, new = make_files(8 * MIB, 8 * MIB), make_files(8 * MIB, 8 * MIB), make_files(8 * MIB)
    filled(opener, mine)
    filled(opener, theirs)
    with pytest.raises(ConfigError, match="belong to different tiers"):
        CxlTier(paths=[mine[0], theirs[1]], **TWO)
    with pytest.raises(StorageError, match="has no superblock, and others of the set have one"):
        CxlTier(paths=[mine[0], new[0]], **TWO)
    with pytest.raises(StorageError, match="has no superblock"):
        CxlTier(paths=[new[0], mine[1]], **TWO)


def test_another_capacity_is_refused(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    filled(opener, paths)
    with pytest.raises(ConfigError, match="was made for 16777216 bytes, not 8388608"):
        CxlTier(8 * MIB, paths=paths, **TWO)


def test_something_else_on_a_device_is_not_overwritten(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB)
    poke(paths[0], 5000, b"precious")
    with pytest.raises(ConfigError, match="holds something that is no tier"):
        CxlTier(paths=paths, persistent=True)
    wipe(paths)
    assert not len(opener(paths=paths, persistent=True).recover().rows)


def test_a_tier_that_forgets_does_not_overwrite_one_that_lasts(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths)
    with pytest.raises(ConfigError, match="holds a persistent tier; set `persistent = true`"):
        CxlTier(paths=paths)
    assert len(opener(paths=paths, **TWO).recover().rows) == len(places)
    opener(paths=paths[:0] or make_files(4 * MIB))
    with pytest.raises(StorageError, match="in use by another tier"):
        wipe(paths)


def test_a_tier_whose_making_was_cut_off_is_made_again(make_files: MakeFiles, opener: Opener, tmp_path: Path) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    opener(paths=paths, **TWO)
    copies = [Path(shutil.copy(path, tmp_path / path.name)) for path in paths]  # superblocks of generation 1
    poke(copies[0], 0, bytes(8192))  # device 0's is written last
    tier = opener(paths=copies, **TWO)
    sample = make_sample(1, 100_000)
    sample.check_in(tier, sample.write_to(tier))


def test_weights_may_change_from_one_life_to_the_next(make_files: MakeFiles, opener: Opener) -> None:
    paths = make_files(8 * MIB, 8 * MIB)
    places = filled(opener, paths)
    tier = opener(paths=paths, persistent=True, weights=[1, 7], unit=65536)
    for location, sample in places.items():
        sample.check_in(tier, location)
    assert tier.stats()["unit_bytes"] == 4096, "as it was made"
