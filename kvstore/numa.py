"""NUMA nodes: which there are, what memory they have, and memory that lies on one of them."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from kvstore import _native
from kvstore.errors import ConfigError

NODES = Path("/sys/devices/system/node")


def nodes_with_memory(root: Path = NODES) -> list[int]:
    """Numbers of the nodes that have memory; none where the kernel knows of no nodes."""
    return _listed(root / "has_memory")


def nodes_with_cpus(root: Path = NODES) -> list[int]:
    """Numbers of the nodes with memory that processors belong to."""
    return sorted(set(_listed(root / "has_cpu")) & set(nodes_with_memory(root)))


def check_nodes(nodes: Sequence[int], key: str, root: Path = NODES) -> None:
    """`ConfigError`, naming the configuration's `key`, unless each of these nodes is there once and has memory."""
    online, filled = _listed(root / "online"), nodes_with_memory(root)
    for node in nodes:
        if node not in online:
            there = ", ".join(map(str, online)) or "none"
            raise ConfigError(f"{key}: there is no NUMA node {node}; this host has {there}")
        if node not in filled:
            raise ConfigError(
                f"{key}: NUMA node {node} has no memory; bring it online (`daxctl reconfigure-device "
                "--mode=system-ram`, or `echo online > /sys/devices/system/memory/memoryN/state`) or leave it out"
            )
    if len(set(nodes)) != len(nodes):
        raise ConfigError(f"{key}: a node is named twice in {list(nodes)}")


def available_bytes(node: int) -> int:
    """Bytes of a node that are free, or hold nothing but what can be read again from files."""
    fields: dict[str, int] = {}
    for line in (NODES / f"node{node}" / "meminfo").read_text(encoding="ascii").splitlines():
        name, _, value = line.split(maxsplit=2)[2].partition(":")
        fields[name] = int(value.split()[0]) * 1024
    return fields["MemFree"] + fields.get("Active(file)", 0) + fields.get("Inactive(file)", 0)


def bind(memory: _native.Buffer, node: int, key: str, *, strict: bool = True) -> None:
    """Have the pages of `memory`, none of which is there yet, come into being on `node` (or near, unless `strict`).

    `ConfigError` where the kernel refuses that.
    """
    try:
        _native.bind_to_node(memory, node, strict)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise ConfigError(
                f"{key}: memory cannot be bound to NUMA node {node}: mbind is refused here ({error.strerror}); a "
                "container needs CAP_SYS_NICE or a seccomp profile that allows mbind"
            ) from error
        raise ConfigError(
            f"{key}: memory cannot be bound to NUMA node {node} ({error.strerror}); see the allowed nodes "
            "(Mems_allowed_list in /proc/self/status) and `numactl --hardware`"
        ) from error


def _listed(path: Path) -> list[int]:
    """A list such as `0-1,3`."""
    try:
        text = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return []
    found: list[int] = []
    for piece in filter(None, text.split(",")):
        first, _, last = piece.partition("-")
        found.extend(range(int(first), int(last or first) + 1))
    return found
