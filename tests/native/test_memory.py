"""Mappings whose place and pages are chosen."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from kvstore import _native

HUGE = 2 << 20


@pytest.mark.parametrize("alignment", [4096, HUGE, 1 << 30])
def test_a_mapping_is_aligned_and_zero(alignment: int) -> None:
    memory, synced = _native.map_aligned(-1, 3 * 4096, alignment)
    assert memory.shape == (3 * 4096,)
    assert _native.address_of(memory) % alignment == 0
    assert not synced
    assert not memory.any()


def test_a_file_is_shared(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(range(256)) * 64)
    with path.open("r+b") as file:
        memory, synced = _native.map_aligned(file.fileno(), 16384, HUGE, True)
    assert not synced, "a file that is not on DAX"
    assert memory[:256].tobytes() == bytes(range(256))
    memory[1000] = 77
    assert path.read_bytes()[1000] == 77
    view = memoryview(memory)[5000:6000]
    del memory
    assert view[0] == 5000 % 256


def test_mappings_go() -> None:
    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[0])

    before = mapped()
    for _ in range(20):
        _native.map_aligned(-1, 64 << 20, HUGE)
    assert mapped() - before < 2 * (64 << 20) // 4096


@pytest.mark.parametrize(("nbytes", "alignment"), [(0, 4096), (4096, 0), (4096, 3000), ((1 << 64) - 1, 4096)])
def test_mappings_that_make_no_sense(nbytes: int, alignment: int) -> None:
    with pytest.raises(OSError, match="Invalid argument"):
        _native.map_aligned(-1, nbytes, alignment)


def test_a_read_only_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    with path.open("rb") as file, pytest.raises(PermissionError):
        _native.map_aligned(file.fileno(), 4096)


def test_pages_lie_on_the_node_that_they_are_bound_to() -> None:
    memory, _ = _native.map_aligned(-1, HUGE)
    _native.bind_to_node(memory, 0)
    assert _native.node_of(memory) == 0
    for node in (63, 1023, 1024, 1 << 20):
        with pytest.raises(OSError, match="Invalid argument"):
            _native.bind_to_node(memory, node)


def test_huge_pages_of_process_memory() -> None:
    memory, _ = _native.map_aligned(-1, 2 * HUGE, HUGE)
    _native.advise_huge(memory)
    _native.populate(memory)
    try:
        _native.collapse_huge(memory)
    except OSError as error:
        if error.errno == errno.EINVAL:
            pytest.skip("this kernel has no MADV_COLLAPSE")
        if error.errno in (errno.EAGAIN, errno.ENOMEM):
            pytest.skip("no huge page is free")
        raise
    rollup = Path("/proc/self/smaps_rollup").read_text()
    (line,) = (each for each in rollup.splitlines() if each.startswith("AnonHugePages"))
    assert int(line.split()[1]) >= 4096


def test_locking() -> None:
    memory, _ = _native.map_aligned(-1, 16384)
    _native.lock_memory(memory)
    status = Path("/proc/self/status").read_text()
    assert any(line.startswith("VmLck") and int(line.split()[1]) >= 16 for line in status.splitlines())


def test_persisting_changes_nothing() -> None:
    memory = np.arange(10_000, dtype=np.uint8)
    before = memory.copy()
    _native.persist(memory[3:9001])
    assert np.array_equal(memory, before)
    with pytest.raises(ValueError, match="writable"):
        _native.persist(b"bytes")
    fd = os.memfd_create("file")
    os.ftruncate(fd, 8192)
    shared, _ = _native.map_aligned(fd, 8192)
    shared[5000] = 9
    _native.persist(shared)
    assert os.pread(fd, 1, 5000) == b"\x09"
    os.close(fd)
