"""Drains that a store goes on with when it is opened again, and what ends that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvstore.drain_marks import FILE
from kvstore.errors import InvalidArgument
from tests.store.shared_tier import Place
from tests.store.test_drains import Host, refs_of


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    del tmp_path  # it goes after the hosts
    made: list[Host] = []
    yield made
    for host in made:
        host.client.close()


def drained(host: Host) -> list[str]:
    """Paths of the drains that are known (empty: the whole tier)."""
    return [each.path for number in range(len(host.store.core.tiers)) for each in host.store.drains.of(number)]


def notes(host: Host) -> str:
    return "\n".join(host.store.notes)


def reopened(host: Host, folder: Path, drives: int = 3, place: Place | None = None) -> Host:
    host.client.close()
    return Host(folder, drives=drives, dram=32 << 20, place=place)


def test_a_drained_drive_is_not_written_to_over_restarts_until_it_is_taken_back(
    hosts: list[Host], tmp_path: Path
) -> None:
    host, refs = Host(tmp_path), refs_of(30)
    host.fill(refs)
    path = str(host.paths[1])
    host.client.drain("nvme", path)
    host.drained(path=host.paths[1])
    for life in range(2):
        host = reopened(host, tmp_path)
        assert drained(host) == [path]
        assert host.drained(path=host.paths[1]).state == "drained"
        host.fill(refs_of(10, 100 * life + 100))
        assert host.on(1) == 0
        host.check(refs)
    host.client.resume("nvme", path)
    host = reopened(host, tmp_path)
    hosts.append(host)
    assert drained(host) == []
    host.fill(refs_of(20, 500))
    assert host.on(1) > 0
    host.check(refs)


def test_a_tier_is_drained_over_restarts_and_its_drives_with_it(hosts: list[Host], tmp_path: Path) -> None:
    place = Place()
    host, refs = Host(tmp_path, place=place), refs_of(20)
    host.fill(refs)
    host.client.drain("nvme", str(host.paths[1]))
    host.drained(path=host.paths[1])
    host.client.drain("nvme")
    host.drained()
    host = reopened(host, tmp_path, place=place)
    assert drained(host) == [""]
    assert host.drained().state == "drained"
    host.fill(refs_of(5, 100))  # persisted: to the tier below
    assert all("nvme" not in host.tiers_of(ref) for ref in refs_of(5, 100))
    host.client.resume("nvme")
    host = reopened(host, tmp_path, place=place)
    hosts.append(host)
    assert drained(host) == []
    host.fill(refs_of(20, 200))
    assert min(host.on(drive) for drive in range(3)) > 0


def test_a_drive_that_is_taken_out_of_the_configuration_is_a_new_one_later(hosts: list[Host], tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.fill(refs_of(20))
    host.client.drain("nvme", str(host.paths[2]))
    host.drained(path=host.paths[2])
    host = reopened(host, tmp_path, drives=2)
    assert drained(host) == []
    host = reopened(host, tmp_path)
    hosts.append(host)
    assert drained(host) == []
    host.fill(refs_of(20, 100))
    assert host.on(2) > 0


def test_a_drained_drive_that_was_pulled_is_still_drained_when_it_comes_back(hosts: list[Host], tmp_path: Path) -> None:
    host, refs = Host(tmp_path), refs_of(20)
    host.fill(refs)
    path = host.paths[1]
    host.client.drain("nvme", str(path))
    host.drained(path=path)
    away = path.rename(tmp_path / "pulled")
    host = reopened(host, tmp_path)
    host.check(refs)
    assert f"{path} was being drained and is not now" in notes(host)
    away.rename(path)
    host = reopened(host, tmp_path)
    assert drained(host) == [str(path)]
    host.drained(path=path)
    path.rename(away)
    host = reopened(host, tmp_path)
    with pytest.raises(InvalidArgument, match="is no drive of this tier"):
        host.client.resume("nvme", str(path))  # it is not there, but nobody wants it drained any more
    away.rename(path)
    host = reopened(host, tmp_path)
    hosts.append(host)
    assert drained(host) == []


def test_the_last_drive_is_used_though_it_was_drained_and_that_is_said(hosts: list[Host], tmp_path: Path) -> None:
    host = Host(tmp_path, drives=2)
    host.fill(refs_of(10))
    host.client.drain("nvme", str(host.paths[0]))
    host.drained(path=host.paths[0])
    host.client.close()
    host.paths[1].rename(tmp_path / "pulled")
    host = Host(tmp_path, drives=2)
    hosts.append(host)
    assert "is the only drive left to write to" in notes(host)
    assert f"resume nvme --path {host.paths[0]}" in notes(host)
    host.fill(refs_of(5, 100))
    assert host.on(0) == 5


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"version": 1, "number": "x"}', b'{"version": 2}', b"\xff"])
def test_marks_that_cannot_be_read_are_none(hosts: list[Host], tmp_path: Path, content: bytes) -> None:
    host = Host(tmp_path)
    host.client.drain("nvme", str(host.paths[1]))
    host.drained(path=host.paths[1])
    host.client.close()
    for path in host.paths:
        (path / "catalog" / FILE).write_bytes(content)
    host = Host(tmp_path)
    hosts.append(host)
    assert drained(host) == []


def test_what_was_written_last_counts(hosts: list[Host], tmp_path: Path) -> None:
    """A drive that was drained has what was so when it was closed."""
    host = Host(tmp_path)
    for path in host.paths[:2]:
        host.client.drain("nvme", str(path))
        host.drained(path=path)
    host.client.resume("nvme", str(host.paths[0]))
    told = [json.loads((path / "catalog" / FILE).read_bytes())["number"] for path in host.paths]
    assert told[1] < told[0] == told[2]
    host = reopened(host, tmp_path)
    hosts.append(host)
    assert drained(host) == [str(host.paths[1])]


def test_where_no_tier_has_a_place_for_it_that_is_said(hosts: list[Host], tmp_path: Path) -> None:
    host = Host(tmp_path, place=Place())
    hosts.append(host)
    core = host.store.core
    core.below = core.below[1:]  # as if there were no drives
    host.client.drain("remote")
    assert "the drain of remote is not remembered over a restart" in notes(host)
