"""Descriptors of extents: a namespace gets its own and no other, and nobody can write through one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import numpy as np
import pytest

import kvstore
from kvstore.arena import Arena
from kvstore.config import NamespaceConfig
from kvstore.errors import Closed, PermissionDenied, StorageError
from tests.store.conftest import LARGE, SMALL, Box, MiB, content, prompt
from tests.store.test_places import session

TWO = (NamespaceConfig("default"), NamespaceConfig("second"))
LIBC = ctypes.CDLL(None, use_errno=True)
PUNCH_HOLE, KEEP_SIZE = 2, 1  # linux/falloc.h

ATTEMPTS = """
import ctypes, mmap, os, sys

libc = ctypes.CDLL(None, use_errno=True)

def tell(name, attempt):
    try:
        attempt()
        print(name, "done")
    except (OSError, ValueError) as error:
        print(name, "refused")

def writable_map(fd):
    with mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as memory:
        memory[0] = 1

def fallocate(fd, mode):
    if libc.fallocate(fd, mode, ctypes.c_long(0), ctypes.c_long(4096)) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")

def attack(fd):
    tell("write", lambda: os.write(fd, b"x"))
    tell("pwrite", lambda: os.pwrite(fd, b"x", 4096))
    tell("map", lambda: writable_map(fd))
    tell("truncate", lambda: os.ftruncate(fd, 4096))
    tell("grow", lambda: os.ftruncate(fd, 1 << 30))
    tell("punch", lambda: fallocate(fd, 3))
"""
REFUSED = [f"{name} refused" for name in ("write", "pwrite", "map", "truncate", "grow", "punch")]


@pytest.fixture
def client(box: Box) -> kvstore.Client:
    client = box.open(dram=2 * MiB, extent=MiB)
    box.fill(client, LARGE, prompt(LARGE, 2).refs)
    return client


@pytest.fixture
def descriptor(client: kvstore.Client) -> Iterator[int]:
    (number,) = session(client).extents()
    found, size = session(client).open_extent(number)
    assert size == MiB == os.fstat(found).st_size
    yield found
    os.close(found)


def attacked(path: str, descriptor: int) -> list[str]:
    """What a process that inherits the descriptor can do after it has opened `path` for writing."""
    code = ATTEMPTS + f"attack(os.open({path!r}.format(ppid=os.getppid()), os.O_RDWR))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        pass_fds=[descriptor], capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_attempts_succeed_on_a_memfd_that_is_not_sealed() -> None:
    """What the tests below would see if the seals were missing."""
    descriptor = os.memfd_create("open", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, MiB)
    assert attacked(f"/proc/self/fd/{descriptor}", descriptor) == [each.replace("refused", "done") for each in REFUSED]
    os.close(descriptor)


@pytest.mark.parametrize("path", ["/proc/self/fd/{fd}", "/proc/{{ppid}}/fd/{fd}"])
def test_nobody_writes_through_proc(box: Box, client: kvstore.Client, descriptor: int, path: str) -> None:
    assert attacked(path.format(fd=descriptor), descriptor) == REFUSED
    box.check(client, LARGE, prompt(LARGE, 2).refs, verify=True)


def test_nobody_writes_through_the_owners_own_descriptor(box: Box, client: kvstore.Client) -> None:
    arena = box.store(client)._core.dram._arena
    for extent in arena._extents.values():
        assert attacked(f"/proc/{{ppid}}/fd/{extent.fd}", extent.fd) == REFUSED
    box.check(client, LARGE, prompt(LARGE, 2).refs, verify=True)


def test_nobody_writes_through_the_descriptor_itself(box: Box, client: kvstore.Client, descriptor: int) -> None:
    attempts: list[Callable[[], object]] = [
        lambda: os.write(descriptor, b"x"),
        lambda: os.pwrite(descriptor, b"x", 4096),
        lambda: os.ftruncate(descriptor, 4096),
        lambda: os.ftruncate(descriptor, 1 << 30),
        lambda: mmap.mmap(descriptor, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE),
        lambda: fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ]
    for attempt in attempts:
        with pytest.raises(PermissionError):
            attempt()
    assert LIBC.fallocate(descriptor, PUNCH_HOLE | KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(4096)) == -1
    assert ctypes.get_errno() == errno.EPERM
    box.check(client, LARGE, prompt(LARGE, 2).refs, verify=True)


def test_a_mapping_for_reading_cannot_be_made_writable(descriptor: int) -> None:
    LIBC.mmap.restype = ctypes.c_void_p
    LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = LIBC.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
    assert address not in (None, ctypes.c_void_p(-1).value)
    assert LIBC.mprotect(address, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == -1
    assert ctypes.get_errno() == errno.EACCES
    LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    LIBC.munmap(address, 4096)


def test_the_owner_goes_on_writing(box: Box, client: kvstore.Client, descriptor: int) -> None:
    refs = prompt(LARGE, 3, 7).refs
    with mmap.mmap(descriptor, MiB, mmap.MAP_SHARED, mmap.PROT_READ) as mine:
        before = mine[:]
        box.fill(client, LARGE, refs)
        assert mine[:] != before
    box.check(client, LARGE, refs, verify=True)


def test_an_extent_is_not_made_where_it_cannot_be_sealed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvstore.extent._SEALS", 1 << 20)  # as a kernel that does not know one of them
    arena = Arena(MiB, MiB)
    assert not arena.wait(b"", 5)
    with pytest.raises(StorageError, match="no memory for an extent"):
        arena.alloc(b"", 4096)
    arena.close()


def test_a_namespace_opens_its_own_extents_and_no_other(box: Box) -> None:
    client = box.open(dram=4 * MiB, extent=MiB, namespaces=TWO)
    poor = kvstore.Client(box.store(client).session("second"))
    assert session(client).extents() == frozenset()
    box.fill(client, LARGE, prompt(LARGE, 4).refs)
    box.fill(poor, LARGE, prompt(LARGE, 1).refs)
    mine, theirs = session(client).extents(), session(poor).extents()
    assert (len(mine), len(theirs), mine & theirs) == (2, 1, frozenset())
    told = set()
    for number in (*theirs, 0, 999, -1, 1 << 60):
        with pytest.raises(PermissionDenied) as denied:
            session(client).open_extent(number)
        told.add(str(denied.value).replace(str(number), "N"))
    assert told == {"this namespace has no extent N"}, "another's and none are told alike"


def test_a_descriptor_is_the_callers_to_close(box: Box, client: kvstore.Client) -> None:
    (number,) = session(client).extents()
    one, _ = session(client).open_extent(number)
    two, _ = session(client).open_extent(number)
    assert one != two
    assert not os.get_inheritable(one)
    os.close(one)
    os.close(two)
    box.check(client, LARGE, prompt(LARGE, 2).refs, verify=True)
    client.close()
    with pytest.raises(Closed):
        session(client).open_extent(number)


def test_the_epoch_grows_when_extents_come_and_go(box: Box) -> None:
    client = box.open(dram=2 * MiB, extent=MiB, namespaces=TWO, put_wait_s=8)
    other = kvstore.Client(box.store(client).session("second"))
    epochs = [session(client).extents_epoch]
    box.fill(client, LARGE, prompt(LARGE, 1).refs)
    epochs.append(session(other).extents_epoch)
    box.check(client, LARGE, prompt(LARGE, 1).refs)
    assert session(client).extents_epoch == epochs[-1], "reading changes nothing"
    box.fill(client, LARGE, prompt(LARGE, 5).refs)
    epochs.append(session(client).extents_epoch)
    before = session(client).extents()
    box.fill(other, LARGE, prompt(LARGE, 1).refs)
    epochs.append(session(client).extents_epoch)
    assert epochs == sorted(set(epochs))
    assert epochs[3] >= epochs[2] + 2, "one destroyed and one handed out"
    assert len(before - session(client).extents()) == 1
    (gone,) = before - session(client).extents()
    with pytest.raises(PermissionDenied):
        session(client).open_extent(gone)
    assert gone not in session(other).extents(), "a number is never used again"


def test_a_mapping_of_a_destroyed_extent_shows_nothing_of_its_next_owner(box: Box) -> None:
    client = box.open(dram=MiB, extent=MiB, namespaces=TWO, put_wait_s=8)
    other = kvstore.Client(box.store(client).session("second"))
    box.fill(client, LARGE, prompt(LARGE, 2).refs)
    (number,) = session(client).extents()
    descriptor, size = session(client).open_extent(number)
    with mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ) as mine:
        os.close(descriptor)
        before = mine[:]
        ref = prompt(LARGE, 1, 7).refs[0]
        box.fill(other, LARGE, [ref])
        assert not session(client).extents()
        assert mine[:] == before
        assert content(LARGE, ref, LARGE.part()).tobytes()[:4096] not in mine[:]
    assert np.array_equal(other.get(LARGE, ref), content(LARGE, ref, LARGE.part()))


def test_puts_that_wait_for_the_first_extent_share_it(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not take it finds room in it, and lets go of nothing that another has put meanwhile."""
    client, refs = box.open(), prompt(SMALL, 2).refs
    dram = box.store(client)._core.dram
    reserve, wait = dram.reserve, dram.wait_for_memory

    def taken_meanwhile(namespace: bytes, seconds: float) -> bool:
        monkeypatch.setattr(dram, "reserve", reserve)
        monkeypatch.setattr(dram, "wait_for_memory", wait)
        box.fill(client, SMALL, refs[:1])
        return wait(namespace, seconds)

    monkeypatch.setattr(dram, "reserve", lambda namespace, nbytes: -1)
    monkeypatch.setattr(dram, "wait_for_memory", taken_meanwhile)
    box.fill(client, SMALL, refs[1:])
    assert client.contains(SMALL, refs) == [True, True]
