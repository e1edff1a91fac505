"""DRAM: the suite of every tier, pages, nodes, locked memory, and what is told of them."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager

import numpy as np
import pytest

from kvstore import _native, extent
from kvstore.errors import ConfigError
from kvstore.extent import HUGE, Extent, Making, free_hugetlb
from kvstore.testing import Fault, TierConformance, make_sample
from kvstore.tiers.base import Tier
from kvstore.tiers.dram import DramTier

MIB = 1 << 20


@contextmanager
def flipped(tier: DramTier) -> Iterator[None]:
    """One bit of every 4 KiB."""
    memories = [np.frombuffer(each.view, np.uint8) for each in tier._arena._extents.values()]
    for memory in memories:
        memory[::4096] ^= 1
    yield
    for memory in memories:
        memory[::4096] ^= 1


class TestDram(TierConformance):
    def make_tier(self) -> Tier:
        return ready(24 * MIB, 24 * MIB)

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        assert isinstance(tier, DramTier)
        return flipped(tier) if fault is Fault.BIT_FLIP else None


def ready(capacity: int = 8 * MIB, extent_bytes: int = 4 * MIB, **options: object) -> DramTier:
    """A tier all of whose extents are there."""
    tier = DramTier(capacity, extent_bytes, **options)  # type: ignore[arg-type]
    deadline = time.monotonic() + 30
    while tier.is_growing:
        assert time.monotonic() < deadline, tier.stats()
        time.sleep(0.001)
    return tier


def collapses() -> bool:
    """Whether this kernel makes huge pages of shared memory when it is asked to."""
    memory = memoryview(_native.map_aligned(fd := os.memfd_create("probe"), HUGE, HUGE)[0])
    os.ftruncate(fd, HUGE)
    os.close(fd)
    _native.populate(memory)
    try:
        _native.collapse_huge(memory)
    except OSError:
        return False
    return True


def huge_in_kernel() -> int:
    """Bytes of this process's shared memory in huge pages, by the kernel's own account."""
    gc.collect()  # or what an earlier test left may go in between
    with open("/proc/self/smaps_rollup", encoding="ascii") as file:
        return sum(int(line.split()[1]) * 1024 for line in file if line.startswith("ShmemPmdMapped"))


def test_progress_is_told_until_all_is_there() -> None:
    with closing(DramTier(64 * MIB, 4 * MIB)) as tier:
        seen = [int(tier.stats()["populated_bytes"])]
        while tier.is_growing:
            seen.append(int(tier.stats()["populated_bytes"]))
        assert seen == sorted(seen)
        assert tier.stats()["populated_bytes"] == 64 * MIB
        assert tier.stats()["extents"] == 16


@pytest.mark.skipif(not collapses(), reason="this kernel makes no huge pages of shared memory (MADV_COLLAPSE)")
@pytest.mark.parametrize("pages", ["auto", "thp"])
def test_huge_pages_are_what_is_told(pages: str) -> None:
    if pages == "auto" and free_hugetlb():
        pytest.skip("huge pages are reserved here, and come first")
    before = huge_in_kernel()
    with closing(ready(pages=pages)) as tier:
        assert tier.stats()["pages"] == "thp"
        assert tier.stats()["huge_page_bytes"] == 8 * MIB
        assert huge_in_kernel() - before == 8 * MIB
        sample = make_sample(1, 3 * MIB)
        sample.check_in(tier, sample.write_to(tier))


def test_plain_pages_are_plain() -> None:
    before = huge_in_kernel()
    with closing(ready(pages="plain")) as tier:
        assert tier.stats()["pages"] == "plain"
        assert tier.stats()["huge_page_bytes"] == 0
        assert huge_in_kernel() == before


def test_plain_pages_are_taken_where_huge_ones_are_not_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(piece: memoryview) -> None:  # as a kernel without them
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(_native, "collapse_huge", refuse)
    monkeypatch.setattr(_native, "advise_huge", refuse)
    monkeypatch.setattr(extent, "free_hugetlb", lambda: 0)
    with closing(ready()) as tier:
        assert tier.stats()["pages"] == "plain"
        sample = make_sample(1, MIB)
        sample.check_in(tier, sample.write_to(tier))


@pytest.mark.skipif(free_hugetlb() < 8 * MIB, reason="no huge pages are reserved here (vm.nr_hugepages)")
@pytest.mark.parametrize("pages", ["auto", "hugetlb"])
def test_reserved_huge_pages_are_taken_first(pages: str) -> None:
    free = free_hugetlb()
    with closing(ready(pages=pages)) as tier:
        assert tier.stats()["pages"] == "hugetlb"
        assert free_hugetlb() == free - 8 * MIB
        sample = make_sample(1, 3 * MIB)
        sample.check_in(tier, sample.write_to(tier))
    assert free_hugetlb() == free


def test_reserved_huge_pages_that_are_gone_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if others had taken them after they were counted."""
    if free_hugetlb():
        pytest.skip("there are some")
    monkeypatch.setattr(extent, "free_hugetlb", lambda: 1 << 30)
    with closing(ready()) as tier:
        assert tier.stats()["pages"] in ("thp", "plain")
        assert tier.stats()["extents"] == 2


def test_pages_that_cannot_be_had_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="pages must be auto, hugetlb, thp or plain, not 'big'"):
        DramTier(MIB, MIB, pages="big")
    with pytest.raises(ConfigError, match="multiple of 2097152, not 1048576"):
        DramTier(MIB, MIB, pages="hugetlb")
    with pytest.raises(ConfigError, match=r"are needed; reserve them with `sysctl vm.nr_hugepages=536870912`"):
        DramTier(1 << 50, 1 << 30, pages="hugetlb")


def test_extents_of_less_than_a_huge_page_are_plain() -> None:
    with closing(ready(MIB, MIB)) as tier:
        assert tier.stats()["pages"] == "plain"


def test_a_mapping_begins_where_huge_pages_can() -> None:
    made = Extent.make(1, Making(4 * MIB))
    assert _native.address_of(made.view) % HUGE == 0
    made.destroy()


def test_extents_on_a_named_node() -> None:
    with closing(ready(nodes=[0])) as tier:
        assert tier.stats()["nodes"] == "0"
        location = tier.reserve(b"n" * 16, 4096)
        assert _native.node_of(tier.view(location, 0, 4096)) == 0


def test_extents_are_spread_over_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which node is next, without several of them: binding is left out."""
    monkeypatch.setattr("kvstore.arena._usable_nodes", lambda nodes: [0, 1, 2])
    monkeypatch.setattr("kvstore.numa.bind", lambda memory, node, key, strict=True: None)
    with closing(ready(8 * MIB, MIB)) as tier:
        assert tier.stats()["nodes"] == "3 × 0, 3 × 1, 2 × 2"
        poor, rich = b"p" * 16, b"r" * 16
        places = [tier.reserve(rich, MIB) for _ in range(8)]
        gone = next(number for number in tier.extents(rich) if tier._arena._extents[number].node == 1)
        tier.delete(next(at for at in places if tier.holds(gone, at)), MIB)
        assert tier.replace_extent(gone, poor)
        assert tier.wait_for_memory(poor, 10)
        assert str(tier.stats()["nodes"]).count("×") == 3
        assert sorted(str(tier.stats()["nodes"]).split(", ")) in (
            ["2 × 1", "3 × 0", "3 × 2"], ["2 × 2", "3 × 0", "3 × 1"]
        )  # fmt: skip


def test_a_host_of_one_node_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(_native, "bind_to_node", lambda *args: calls.append(args))
    monkeypatch.setattr("kvstore.numa.nodes_with_cpus", lambda: [0])
    with closing(ready()) as tier:
        assert tier.stats()["nodes"] == "any"
    assert not calls


def test_spreading_is_left_out_where_the_kernel_refuses_to_bind(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(memory: object, node: int, strict: bool) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("kvstore.numa.nodes_with_cpus", lambda: [0, 1])
    monkeypatch.setattr("kvstore.numa.check_nodes", lambda nodes, key: None)
    monkeypatch.setattr(_native, "bind_to_node", refuse)
    with closing(ready()) as tier:
        assert tier.stats()["nodes"] == "any"
        sample = make_sample(1, MIB)
        sample.check_in(tier, sample.write_to(tier))
    with pytest.raises(ConfigError, match=r"\[dram\] nodes: .* mbind is refused here"):
        DramTier(MIB, MIB, nodes=[0])


def test_nodes_that_are_not_there_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"\[dram\] nodes: there is no NUMA node 77"):
        DramTier(MIB, MIB, nodes=[77])
    with pytest.raises(ConfigError, match="name a NUMA node"):
        DramTier(MIB, MIB, nodes=[])


def locked() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmLck"))


@pytest.mark.skipif(extent.lockable() < 8 * MIB, reason="this process may lock too little (RLIMIT_MEMLOCK)")
def test_memory_is_locked() -> None:
    before = locked()
    with closing(ready(pages="plain", lock_memory=True)) as tier:
        assert tier.stats()["locked"] == "yes"
        assert locked() - before == 8 * MIB
    assert locked() == before


LOCKING = """
import encodings.ascii, os, resource  # nobody may not be able to read the library
from kvstore.errors import ConfigError
from kvstore.tiers.dram import DramTier
resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))
if os.getuid() == 0:
    os.setuid(65534)
try:
    DramTier(1 << 20, 1 << 20, lock_memory=True)
except ConfigError as error:
    print(error)
"""


def test_locking_more_than_is_allowed_is_refused_at_once() -> None:
    told = subprocess.run([sys.executable, "-c", LOCKING], capture_output=True, text=True, timeout=60, check=True)
    assert told.stdout.startswith("[dram] lock: this process may lock 65536 bytes and 1048576 are needed"), told.stderr
    assert "RLIMIT_MEMLOCK" in told.stdout


def test_a_view_outlives_its_extent() -> None:
    made = Extent.make(1, Making(4 * MIB))
    piece = made.view[4096:8192]
    piece[:5] = b"lasts"
    made.destroy()
    assert bytes(piece[:5]) == b"lasts"
