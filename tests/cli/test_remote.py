"""`kvstore remote sweep`: old records of hosts that never come back, and artefacts that no record names."""

from __future__ import annotations

import dataclasses
import time
from contextlib import closing
from pathlib import Path

import pytest

from kvstore.testing.records import Sample, make_sample
from kvstore.testing.remote import name_of
from kvstore.tiers.remote import RemoteTier
from kvstore.tiers.remote.posix import PosixEngine

from .conftest import Run, only_json

DAY_MS = 86_400_000


def aged(number: int, days: float, artefact: bytes = bytes(16)) -> Sample:
    """A record that was written so many days ago."""
    made = make_sample(number, 5000, groups=1 + number % 200)
    created = int(time.time() * 1000 - days * DAY_MS)
    record = dataclasses.replace(made.record, created_ms=created, artefact=artefact)
    return Sample(record, record.pack(), made.payload)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "place").mkdir()
    return tmp_path / "place"


def artefacts_in(place: Path) -> set[str]:
    return {path.name.removeprefix("~") for path in (place / "artefacts").iterdir()}


def test_what_is_old_goes_and_artefacts_of_none(called: Run, place: Path) -> None:
    old = [aged(number, 40, bytes([1]) * 16) for number in range(300)]
    new = [aged(1000, 2, bytes([2]) * 16), aged(1001, 29)]
    with closing(RemoteTier(PosixEngine(place), capacity=1 << 30)) as tier:
        for number in (1, 2, 3):
            tier.keep_artefact(bytes([number]) * 16, b"learnt" * 100)
        for sample in (*old, *new):
            sample.write_to(tier)
    words = ("remote", "sweep", "--remote", f"file://{place}", "--older-than", "30d")
    asked = called(*words)
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("would delete 300 records (")
    assert "--yes does it" in asked.stdout
    assert len(list(place.glob("??/*/*/~*"))) == 302
    done = only_json(called(*words, "--yes", "--json"))
    assert (done["records"], done["artefacts"], done["left_records"]) == (300, 2, 2)
    assert done["record_bytes"] == sum(sample.record.total_bytes for sample in old)
    assert artefacts_in(place) == {(bytes([2]) * 16).hex()}
    with closing(RemoteTier(PosixEngine(place), capacity=1 << 30)) as tier:
        for sample in new:
            found = tier.find([name_of(sample)], 10.0)[0]
            assert found is not None
            sample.check_in(tier, found[1])
        assert list(tier.find([name_of(sample) for sample in old], 10.0)) == [None] * 300
    again = only_json(called(*words, "--yes", "--json"))
    assert (again["records"], again["artefacts"], again["left_records"]) == (0, 0, 2)


def test_what_is_no_record_stays(called: Run, place: Path) -> None:
    """A damaged header, and what somebody else keeps there."""
    with closing(RemoteTier(PosixEngine(place), capacity=1 << 30)) as tier:
        aged(1, 40).write_to(tier)
    (damaged,) = place.glob("??/*/*/~*")
    damaged.write_bytes(b"not a record")
    (place / "mine.txt").write_text("mine")
    done = only_json(called("remote", "sweep", "--remote", f"file://{place}", "--older-than", "1d", "--yes", "--json"))
    assert (done["records"], done["left_records"]) == (0, 1)
    assert damaged.exists()
    assert (place / "mine.txt").exists()


def test_wrong_usage(called: Run, place: Path) -> None:
    for words, said in (
        (("--older-than", "30d"), "which place?"),
        (("--remote", f"file://{place}", "--older-than", "soon"), "is not a time like"),
        (("--remote", f"file://{place}"), "--older-than"),
        (("--remote", f"file://{place}/nothing", "--older-than", "30d"), "is no folder"),
    ):
        refused = called("remote", "sweep", *words)
        assert refused.returncode == 2, refused
        assert said in refused.stderr
