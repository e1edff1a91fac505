"""Bytes that changed are told as corrupt once, counted, and a miss from then on; everything else is unharmed."""

import mmap
import os
from pathlib import Path

import numpy as np
import pytest

from kvstore.core import DRAM
from kvstore.errors import Corrupt, NotFound, Shed, SpecMismatch
from kvstore.keys import ChunkRef
from kvstore.record import unpack
from kvstore.removed import Removed
from tests.store.conftest import LARGE, Box, MiB, content, prompt
from tests.store.test_leases import until

PAYLOAD_AT = 4096


def flip_in_dram(box: Box, client: object, ref: ChunkRef, at: int) -> None:
    """Change a byte of a DRAM record."""
    core = box.store(client)._core  # type: ignore[arg-type]
    scope = core.catalog.scopes[0]
    with core.lock:
        _, row = core.find_part(scope, ref.key, LARGE.part())
        location = core.index.placement(core.index.find_placement(row, DRAM)).loc
    core.dram.view(location, at, 1)[0] ^= 0x10


def flip_on_disk(folder: Path, found: bytes, at: int = 0) -> None:
    """Change a byte of the segments: `at` bytes after these bytes."""
    for path in sorted((folder / "segments").iterdir()):
        with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
            start = memory.find(found)
            if start >= 0:
                memory[start + at] ^= 0x10
                memory.flush()
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                return
    raise AssertionError("not on disk")


@pytest.mark.parametrize("at", [0, 40, 300, PAYLOAD_AT, PAYLOAD_AT + 200_000], ids=lambda at: f"byte-{at}")
def test_bytes_that_changed_in_dram_are_noticed_when_asked(box: Box, at: int) -> None:
    client, chain = box.open(), prompt(LARGE, 3)
    box.fill(client, LARGE, chain.refs)
    flip_in_dram(box, client, chain.refs[1], at)
    with pytest.raises((Corrupt, SpecMismatch)):
        client.get(LARGE, chain.refs[1], verify=True)
    with pytest.raises(NotFound):
        client.get(LARGE, chain.refs[1], verify=True)
    assert client.lookup(LARGE, chain).tokens == 64
    assert client.stats()["counters"]["quarantined_dram"] == 1
    box.check(client, LARGE, [chain.refs[0], chain.refs[2]], verify=True)
    assert client.put(LARGE, chain.refs[1], content(LARGE, chain.refs[1], LARGE.part()))
    box.check(client, LARGE, chain.refs, verify=True)
    box.settled(client)


def test_a_layer_that_is_not_asked_for_may_be_bad(box: Box) -> None:
    client, ref = box.open(), prompt(LARGE, 1).refs[0]
    box.fill(client, LARGE, [ref])
    flip_in_dram(box, client, ref, PAYLOAD_AT + (200 << 10))  # the last of four layers
    good = client.get(LARGE, ref, layers=(0, 3), verify=True)
    assert np.array_equal(good, content(LARGE, ref, LARGE.part())[:3])
    with pytest.raises(Corrupt):
        client.get(LARGE, ref, layers=(3, 4), verify=True)


def test_a_bad_copy_in_dram_is_replaced_by_the_good_one_on_disk(box: Box) -> None:
    client, ref = box.open(nvme=64 * MiB), prompt(LARGE, 1).refs[0]
    box.fill(client, LARGE, [ref], "persisted")
    flip_in_dram(box, client, ref, PAYLOAD_AT)
    with pytest.raises(Corrupt, match=ref.key.hex()):
        client.get(LARGE, ref, verify=True)
    box.check(client, LARGE, [ref], verify=True)
    box.settled(client)


@pytest.mark.parametrize("how", ["get", "view", "get_many", "read around", "verify"])
def test_bytes_that_changed_on_disk_are_noticed_however_they_are_read(box: Box, how: str) -> None:
    client, chain = box.open(dram=2 * MiB, extent=2 * MiB, nvme=64 * MiB), prompt(LARGE, 4)
    ref, rest = chain.refs[1], [chain.refs[0], *chain.refs[2:]]
    box.only_on_disk(client, LARGE, chain.refs)
    flip_on_disk(box.folder, content(LARGE, ref, LARGE.part()).tobytes()[:64], 7)
    if how == "verify":
        assert [info.key for info, _, problem in client.verify() if problem] == [ref.key]
    elif how == "get_many":
        outs = [np.zeros(LARGE.part_shape(LARGE.part(), 64), np.uint16) for _ in chain.refs]
        wants = [client.want(LARGE, each, out) for each, out in zip(chain.refs, outs, strict=True)]
        outcomes = client.get_many(LARGE, wants)
        assert [type(each) for each in outcomes] == [type(None), Corrupt, type(None), type(None)]
    elif how == "read around":
        hot = prompt(LARGE, 7, 5)
        box.fill(client, LARGE, hot.refs)
        with client.lookup(LARGE, hot, lease_s=30), pytest.raises(Corrupt, match=ref.key.hex()):
            client.get(LARGE, ref)
    else:
        with pytest.raises(Corrupt, match=ref.key.hex()):
            client.view(LARGE, ref) if how == "view" else client.get(LARGE, ref)
    with pytest.raises(NotFound):
        client.get(LARGE, ref)
    assert client.stats()["counters"]["quarantined_nvme"] == 1
    assert client.contains(LARGE, chain.refs) == [True, False, True, True]
    box.check(client, LARGE, rest, verify=True)
    box.fill(client, LARGE, [ref], "persisted")
    box.check(client, LARGE, chain.refs, verify=True)
    box.settled(client)


def test_a_bad_record_stays_away_after_a_restart(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 3)
    box.fill(client, LARGE, chain.refs)
    client.close()
    flip_on_disk(box.folder, content(LARGE, chain.refs[1], LARGE.part()).tobytes()[:64])
    client = box.open(nvme=64 * MiB)
    with pytest.raises(Corrupt):
        client.get(LARGE, chain.refs[1])
    client.close()
    client = box.open(nvme=64 * MiB)
    with pytest.raises(NotFound):
        client.get(LARGE, chain.refs[1])
    box.check(client, LARGE, [chain.refs[0], chain.refs[2]])


def test_a_header_that_changed_on_disk_is_noticed(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 2)
    box.only_on_disk(client, LARGE, chain.refs)
    flip_on_disk(box.folder, chain.refs[0].key, 3)
    with pytest.raises((Corrupt, SpecMismatch)):
        client.get(LARGE, chain.refs[0])
    with pytest.raises(NotFound):
        client.get(LARGE, chain.refs[0])
    box.check(client, LARGE, chain.refs[1:])


def test_a_record_that_was_moved_while_it_was_read_is_no_corruption(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 2)
    box.only_on_disk(client, LARGE, chain.refs)
    core = box.store(client)._core
    moved = []

    def move(location: int) -> None:
        """What the tier does when it makes room: another copy, then the index, then the old place is gone."""
        box.probe.before_read = None
        scope = core.catalog.scopes[0]
        with core.lock:
            _, row = core.find_part(scope, chain.refs[0].key, LARGE.part())
            placement = core.index.find_placement(row, 1)
            stored = core.index.placement(placement).stored
        memory = memoryview(bytearray(4096 + stored))
        box.probe.inner.read_into(location, 0, memory)
        record = unpack(memory)
        new = box.probe.inner.write(record.pack(), memory[4096:], record)
        with core.lock:
            core.index.set_loc(placement, new, stored)
        box.probe.inner.delete(location, record.total_bytes)
        flip_on_disk(box.folder, content(LARGE, chain.refs[0], LARGE.part()).tobytes()[:64])
        moved.append(new)

    for check in ("get", "verify"):
        box.probe.before_read = move
        if check == "get":
            box.check(client, LARGE, chain.refs[:1])
        else:
            removed = Removed()
            with core.lock:
                core.drop_from(core.index.find(0, chain.refs[0].key), 0, removed)
            core.settle(removed)
            assert [problem for _, _, problem in client.verify()] == [""] * 2
    assert len(moved) == 2
    assert "quarantined_nvme" not in client.stats()["counters"]


@pytest.mark.parametrize("nvme", [0, 64 * MiB], ids=["dram", "dram+nvme"])
def test_nobody_is_given_a_bad_copy_while_somebody_still_reads_it(box: Box, nvme: int) -> None:
    client, chain = box.open(nvme=nvme), prompt(LARGE, 1)
    ref = chain.refs[0]
    box.fill(client, LARGE, [ref], "persisted" if nvme else "stored")
    with client.view(LARGE, ref):
        flip_in_dram(box, client, ref, PAYLOAD_AT)
        with pytest.raises(Corrupt):
            client.get(LARGE, ref, verify=True)
        assert client.lookup(LARGE, chain).tokens == 0
        if nvme:
            box.check(client, LARGE, [ref])
        else:
            with pytest.raises(NotFound):
                client.get(LARGE, ref)
        with pytest.raises(Shed, match="damaged"):
            box.fill(client, LARGE, [ref])
    box.settled(client)
    assert client.stats()["counters"]["quarantined_dram"] == 1
    box.fill(client, LARGE, [ref])
    box.check(client, LARGE, [ref], verify=True)
    assert client.lookup(LARGE, chain).tokens == 64


def test_damage_is_found_in_the_background_before_anybody_asks(box: Box) -> None:
    client, chain = box.open(nvme=64 * MiB), prompt(LARGE, 5)
    box.only_on_disk(client, LARGE, chain.refs)
    client.close()
    flip_on_disk(box.folder, content(LARGE, chain.refs[2], LARGE.part()).tobytes()[100_000:100_064])
    client = box.open(nvme=64 * MiB, verify_bytes_per_s=1 << 30)
    assert until(lambda: client.stats()["counters"].get("scrubbed_bad", 0) == 1)
    assert client.contains(LARGE, chain.refs) == [True, True, False, True, True]
    box.check(client, LARGE, [*chain.refs[:2], *chain.refs[3:]])
    assert client.stats()["counters"]["scrubbed_bytes"] >= 5 * LARGE.part_bytes(LARGE.part(), 64)
    box.settled(client)
