"""The folder of a ledger: damaged, full, in use, another host's; and real processes killed -9 that write to it."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from kvstore.errors import StorageError
from kvstore.testing.memory_engine import MemoryEngine
from kvstore.testing.records import make_sample
from kvstore.tiers.base import TierFull
from kvstore.tiers.nvme.lock import FolderInUse
from kvstore.tiers.remote import Ledger, RemoteTier
from kvstore.tiers.remote.ledger import SLOT_BYTES, Noted
from kvstore.tiers.remote.posix import PosixEngine
from tests.tiers.remote.test_ledger import MIB, keys, keys_of, restarted, start, write

WRITER = Path(__file__).with_name("owning_writer.py")


def test_a_slot_that_was_torn_costs_one_record(tmp_path: Path) -> None:
    engine, samples = MemoryEngine(), [make_sample(number, 500) for number in range(5)]
    write(engine, tmp_path / "a", samples)
    with closing(Ledger(tmp_path / "a", "place")) as ledger:
        rows: Noted = ledger.load()
        torn = int(rows.slots[2])
        os.pwrite(ledger._fd, b"torn", torn * SLOT_BYTES + 60)
        os.ftruncate(ledger._fd, ledger.path.stat().st_size - 7)
    with closing(Ledger(tmp_path / "a", "place")) as ledger:
        assert len(ledger.load().slots) == 3, "the place need not be asked"
    gone = {rows.rows[each]["key"].tobytes() for each in (2, 4)}
    assert restarted(engine, tmp_path / "a") == keys_of(samples) - gone


def test_two_processes_cannot_use_one_ledger(tmp_path: Path) -> None:
    in_use = f"{tmp_path / 'a'} is in use by process {os.getpid()}"
    with closing(Ledger(tmp_path / "a", "place")), pytest.raises(FolderInUse, match=in_use):
        Ledger(tmp_path / "a", "another place")
    Ledger(tmp_path / "a", "place").close()


def test_another_place_is_another_ledger(tmp_path: Path) -> None:
    one, two, sample = MemoryEngine(), MemoryEngine(), make_sample(1, 500)
    tier, _ = start(one, tmp_path / "a")
    with closing(tier):
        sample.write_to(tier)
    tier, found = start(two, tmp_path / "a", "another place")
    with closing(tier):
        assert not len(found.rows)
    assert restarted(one, tmp_path / "a") == keys_of([sample])


def test_a_ledger_that_was_another_hosts_is_told_of(tmp_path: Path) -> None:
    Ledger(tmp_path / "a", "place").close()
    (tmp_path / "a" / "HOST").write_text("host-7\n")
    tier, found = start(MemoryEngine(), tmp_path / "a")
    with closing(tier):
        assert "was used on host-7 before" in " ".join(found.notes)
    tier, found = start(MemoryEngine(), tmp_path / "a")
    with closing(tier):
        assert not found.notes


def test_a_file_that_is_no_ledger_is_refused_and_left(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path / "a", "place")) as ledger:
        path = ledger.path
    path.write_bytes(b"something else")
    for _ in range(2):
        with pytest.raises(StorageError, match="is no ledger of this version"):
            Ledger(tmp_path / "a", "place")
    assert path.read_bytes() == b"something else"
    with pytest.raises(StorageError, match="cannot make"):
        Ledger(tmp_path / "missing" / "a", "place")


def test_a_full_disk_takes_nothing_away_but_the_memory(tmp_path: Path) -> None:
    engine, noted, forgotten = MemoryEngine(), make_sample(1, 500), make_sample(2, 500)
    tier, _ = start(engine, tmp_path / "a")
    with closing(tier):
        noted.write_to(tier)
        assert tier.stats()["ledger"] == "ok"
        ledger = tier._ledger
        assert ledger is not None
        good, full = os.dup(ledger._fd), os.open("/dev/full", os.O_RDWR)
        os.dup2(full, ledger._fd)
        forgotten.check_in(tier, forgotten.write_to(tier))
        assert "No space left" in str(tier.stats()["ledger"])
        os.dup2(good, ledger._fd)
        os.close(good)
        os.close(full)
    assert restarted(engine, tmp_path / "a") == keys_of([noted])


def test_without_a_ledger_that_is_said(tmp_path: Path) -> None:
    with closing(RemoteTier(MemoryEngine(), capacity=MIB, recover_records=0)) as tier:
        assert "is not known to it after a restart" in " ".join(tier.recover().notes)


def test_a_lowered_capacity_takes_what_is_there_and_nothing_new(tmp_path: Path) -> None:
    engine, samples = MemoryEngine(), [make_sample(number, 5000) for number in range(4)]
    write(engine, tmp_path / "a", samples)
    tier, found = start(engine, tmp_path / "a", capacity=2 * samples[0].record.total_bytes)
    with closing(tier):
        assert keys(found) == keys_of(samples)
        new = make_sample(9, 5000)
        for location in found.rows["location"].tolist()[:3]:
            with pytest.raises(TierFull):
                new.write_to(tier)
            tier.evict(location, samples[0].record.total_bytes)
        new.write_to(tier)


def test_more_than_may_be_known_is_left_alone_the_oldest_first(tmp_path: Path) -> None:
    engine, samples = MemoryEngine(), [make_sample(number, 500) for number in range(8)]
    write(engine, tmp_path / "a", samples)
    tier, found = start(engine, tmp_path / "a", most_records=5)
    with closing(tier):
        assert keys(found) == keys_of(samples[3:])
        assert "3 records of this host" in " ".join(found.notes)
    assert restarted(engine, tmp_path / "a") == keys_of(samples)


def test_killed_at_any_moment_it_owns_what_is_there(tmp_path: Path) -> None:
    """A real process, killed -9 while it writes and deletes; what it wrote counts again, all of it and nothing else."""
    place, folder, capacity = tmp_path / "place", tmp_path / "ledger", 100 * (12 << 10) + 4096
    place.mkdir()
    written, pauses = 0, np.random.default_rng(5).integers(20, 160, 6)
    for pause in pauses.tolist():
        writer = subprocess.Popen(
            [sys.executable, WRITER, place, folder, str(capacity), str(written)], stdout=subprocess.PIPE
        )
        assert writer.stdout is not None
        with writer.stdout:
            for _ in range(pause):
                written = int(writer.stdout.readline()) + 1
            writer.kill()
            writer.wait()
            written += len(writer.stdout.readlines()) + 1
        with closing(RemoteTier(PosixEngine(place), capacity=capacity, ledger=Ledger(folder, "place"))) as tier:
            found = tier.recover()
            there = {path.name[1:65] for path in place.glob("??/*/*/~*")}
            assert {key.hex() for key in keys(found)} == there
            assert tier.used == sum(path.stat().st_size for path in place.glob("??/*/*/~*")) <= capacity
            for row in found.rows:
                number = int(row["created_ms"]) - 1_700_000_000_000
                make_sample(number, 9000).check_in(tier, int(row["location"]))
    assert written > 300
