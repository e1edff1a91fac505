"""A line of configuration that cannot work is refused when the tier is opened, with what to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kvstore import numa
from kvstore.errors import ConfigError, InvalidArgument, StorageError
from kvstore.record import Record
from kvstore.testing import aligned_memory, make_sample
from kvstore.tiers.cxl import CxlTier
from tests.tiers.cxl.conftest import MIB, MakeFiles, Opener


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "needs `nodes` .* or `paths`"),
        ({"nodes": [0], "paths": ["/dev/shm/x"], "capacity": MIB}, "and not both"),
        ({"nodes": [0]}, "capacity must be at least 4096 bytes, not None"),
        ({"nodes": [0], "capacity": 100}, "capacity must be at least 4096"),
        ({"nodes": [0], "capacity": MIB, "persistent": True}, "ends with its process; use DAX devices"),
        ({"nodes": [0], "capacity": MIB, "weights": [1, 2]}, "for each of 1 devices"),
        ({"nodes": [0], "capacity": MIB, "weights": [0]}, "weights: a whole number of 1 to 16"),
        ({"nodes": [0], "capacity": MIB, "unit": 1000}, "unit must be a multiple of 4096"),
        ({"nodes": [0], "capacity": MIB, "threads": 0}, "threads must be 1 to 64"),
        ({"nodes": [0], "capacity": MIB, "records": 0}, "records must be 1 to"),
        ({"nodes": list(range(13)), "capacity": MIB}, "takes 12 devices at most, not 13"),
        ({"nodes": [0, 0], "capacity": MIB}, "named twice"),
        ({"nodes": [999], "capacity": MIB}, "there is no NUMA node 999; this host has 0"),
        ({"paths": ["/dev/shm/there-is-no-such-device"]}, "is not there; `daxctl list`"),
        ({"paths": ["/dev/shm"]}, "is neither a DAX device nor a file"),
        ({"paths": ["/dev/null"]}, "/dev/null is no DAX device"),
    ],
)
def test_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        CxlTier(**options)


def test_a_node_that_has_not_so_much_memory() -> None:
    with pytest.raises(ConfigError, match=r"1125899906842624 bytes, and nodes \[0\] have \d+ free; lower it"):
        CxlTier(1 << 50, nodes=[0])


def fake_nodes(root: Path, online: str, has_memory: str) -> Path:
    """A stand-in for /sys/devices/system/node of a host with several nodes."""
    (root / "online").write_text(online + "\n")
    (root / "has_memory").write_text(has_memory + "\n")
    (root / "has_cpu").write_text("0\n")
    return root


def test_a_node_without_memory(tmp_path: Path) -> None:
    root = fake_nodes(tmp_path, "0-2", "0,2")
    numa.check_nodes([0, 2], "[cxl] nodes", root)
    with pytest.raises(ConfigError, match=r"\[cxl\] nodes: NUMA node 1 has no memory; bring it online"):
        numa.check_nodes([0, 1], "[cxl] nodes", root)
    with pytest.raises(ConfigError, match="no NUMA node 3; this host has 0, 1, 2"):
        numa.check_nodes([3], "[cxl] nodes", root)
    assert numa.nodes_with_memory(root) == [0, 2]
    assert numa.nodes_with_cpus(root) == [0]


def test_a_kernel_without_nodes(tmp_path: Path) -> None:
    assert numa.nodes_with_memory(tmp_path) == []
    with pytest.raises(ConfigError, match="this host has none"):
        numa.check_nodes([0], "[cxl] nodes", tmp_path)


REFUSING = """
import ctypes, platform, struct, sys

ALLOW, REFUSE, LOAD, EQUAL, RETURN = 0x7FFF0000, 0x00050000 | 1, 0x20, 0x15, 0x06
MBIND = {"x86_64": 237, "aarch64": 235}[platform.machine()]
lines = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, MBIND), (RETURN, 0, 0, REFUSE), (RETURN, 0, 0, ALLOW)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in lines))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0  # PR_SET_SECCOMP, a filter

from kvstore.errors import ConfigError
from kvstore.tiers.cxl import CxlTier
from kvstore.tiers.dram import DramTier

for make in (lambda: CxlTier(1 << 20, nodes=[0]), lambda: DramTier(1 << 20, 1 << 20, nodes=[0])):
    try:
        make()
    except ConfigError as error:
        print(error)
"""


def test_mbind_is_refused_as_in_a_container() -> None:
    """A real seccomp filter, as container runtimes install one, in a process of its own."""
    told = subprocess.run([sys.executable, "-c", REFUSING], capture_output=True, text=True, timeout=60, check=True)
    lines = told.stdout.splitlines()
    assert len(lines) == 2, told.stderr
    for line, key in zip(lines, ("[cxl] nodes", "[dram] nodes"), strict=True):
        assert line.startswith(f"{key}: memory cannot be bound to NUMA node 0: mbind is refused here")
        assert "CAP_SYS_NICE" in line


def test_a_path_of_the_wrong_size(make_files: MakeFiles) -> None:
    for size in (0, 100, 4096 * 3 + 1):
        with pytest.raises(ConfigError, match=f"has {size} bytes; it is mapped in pieces of 4096"):
            CxlTier(paths=make_files(size))


def test_a_path_that_is_too_small(make_files: MakeFiles) -> None:
    with pytest.raises(ConfigError, match=r"too few: .* are needed for tables"):
        CxlTier(paths=make_files(MIB), persistent=True)
    with pytest.raises(ConfigError, match=r"too few: .* are needed for tables"):
        CxlTier(paths=make_files(4096, 4096), persistent=True)
    with pytest.raises(ConfigError, match="capacity: 8388608 bytes, and the paths have 4194304 in all"):
        CxlTier(8 * MIB, paths=make_files(2 * MIB, 2 * MIB))


def test_a_path_without_permission(make_files: MakeFiles) -> None:
    (path,) = make_files(MIB)
    path.chmod(0)
    code = f"""
import os
from kvstore.errors import StorageError
from kvstore.tiers.cxl import CxlTier
os.setuid(65534)
try:
    CxlTier(paths=[{str(path)!r}])
except StorageError as error:
    print(error)
"""
    path.parent.chmod(0o755)
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "cannot be opened (Permission denied); give this process the right" in told.stdout, told.stderr


@pytest.mark.parametrize("persistent", [False, True])
def test_two_tiers_on_one_device(make_files: MakeFiles, opener: Opener, persistent: bool) -> None:
    paths = make_files(4 * MIB, 4 * MIB)
    opener(paths=paths, persistent=persistent)
    with pytest.raises(StorageError, match="is in use by another tier"):
        CxlTier(paths=paths[1:], persistent=persistent)
    with pytest.raises(StorageError, match="in use by another tier"):
        CxlTier(paths=[make_files(4 * MIB)[0], paths[0]])


def test_a_device_twice_in_one_tier(make_files: MakeFiles) -> None:
    (path,) = make_files(4 * MIB)
    with pytest.raises(StorageError, match="in use by another tier"):
        CxlTier(paths=[path, path])
    CxlTier(paths=[path]).close()


def test_no_descriptor_is_left_after_a_refusal(make_files: MakeFiles) -> None:
    paths = make_files(4 * MIB, 100)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(ConfigError):
            CxlTier(paths=paths)
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_that_cannot_be_written_or_read_from(make_files: MakeFiles, opener: Opener) -> None:
    tier = opener(paths=make_files(4 * MIB))
    sample = make_sample(1, 5000)
    location = sample.write_to(tier)
    with pytest.raises(InvalidArgument, match="writable"):
        tier.read_into(location, 0, memoryview(bytes(4096)))
    with pytest.raises(InvalidArgument, match="contiguous"):
        tier.read_into(location, 0, aligned_memory(8192)[::2])
    with pytest.raises(InvalidArgument, match="cannot read"):
        tier.read_into(location, -1, aligned_memory(4096))
    with pytest.raises(InvalidArgument, match="needs as many, not 100"):
        tier.write(sample.header, sample.payload[:100], sample.record)
    assert isinstance(sample.record, Record)
    assert tier.used == sample.record.total_bytes
