"""Memory of devices: mapped, locked against a second tier, brought into being."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kvstore import _native, numa
from kvstore.errors import ConfigError, StorageError
from kvstore.record import BLOCK

HUGE = 2 << 20
_SPARE = 64 << 20  # of a node's memory, left to others
_CHARACTER_DEVICES = Path("/sys/dev/char")


@dataclass(eq=False)
class Region:
    """The whole memory of one device, uint8 [bytes].

    `node` is its NUMA node (-1: of a path). `direct` tells that stores reach the device itself, and last once they
    have left the processor's caches; else a file's content lasts once it was flushed.
    """

    name: str
    memory: npt.NDArray[np.uint8]
    node: int = -1
    fd: int = -1
    direct: bool = False
    mapped: str = "shared"

    def view(self, at: int, nbytes: int) -> memoryview:
        """A piece of it."""
        return self.memory.data[at : at + nbytes]

    def populate(self, at: int, nbytes: int) -> None:
        """Bring pages into being, keeping what they hold. `StorageError` if there is no memory for them."""
        if self.node >= 0 and numa.available_bytes(self.node) < nbytes + _SPARE:
            # Where memory is bound, running out of it does not fail: it has a process killed.
            raise StorageError(f"{self.name} has no {nbytes} bytes left; free memory there or lower the capacity")
        try:
            _native.populate(self.view(at, nbytes))
        except OSError as error:
            raise StorageError(
                f"{self.name} has no room for {nbytes} bytes ({error.strerror}); free some or lower the capacity"
            ) from error

    def flush(self, at: int, nbytes: int) -> None:
        """Return when what a piece holds survives power loss, as far as the device does."""
        if self.direct:
            _native.persist(self.view(at, nbytes))
        elif self.fd >= 0:
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                raise StorageError(f"cannot flush {self.name}: {error.strerror}; see the system's log") from error

    def close(self) -> None:
        """Let another tier have the device. The memory goes when nothing stands on it any more."""
        self.memory = np.empty(0, np.uint8)
        if self.fd >= 0:
            fcntl.flock(self.fd, fcntl.LOCK_UN)  # what is mapped still would keep the lock
            os.close(self.fd)
            self.fd = -1


def map_nodes(nodes: Sequence[int], capacity: int) -> list[Region]:
    """Address space on each node, of as much as it can give. `ConfigError` where `capacity` bytes cannot be had."""
    numa.check_nodes(nodes, "[cxl] nodes")
    limits = [max(0, numa.available_bytes(node) - _SPARE) // BLOCK * BLOCK for node in nodes]
    if sum(limits) < capacity:
        raise ConfigError(
            f"[cxl] capacity: {capacity} bytes, and nodes {list(nodes)} have {sum(limits)} free; lower it, or free "
            "memory there"
        )
    return [_map_node(node, min(limit, capacity)) for node, limit in zip(nodes, limits, strict=True)]


def _map_node(node: int, nbytes: int) -> Region:
    memory, _ = _native.map_aligned(-1, nbytes, HUGE)
    numa.bind(memory, node, "[cxl] nodes")
    try:
        _native.advise_huge(memory)
        pages = "node, huge pages where there are any"
    except OSError:  # a kernel without them
        pages = "node"
    return Region(f"node {node}", memory, node=node, mapped=pages)


def map_paths(paths: Sequence[Path], *, persistent: bool) -> list[Region]:
    """The devices or files at some paths, whole and locked. `ConfigError`, `StorageError` where one cannot be used."""
    regions: list[Region] = []
    try:
        for path in paths:
            regions.append(_map_path(path, persistent))
    except BaseException:
        for region in regions:
            region.close()
        raise
    return regions


def _map_path(path: Path, persistent: bool) -> Region:
    fd = _open(path)
    try:
        size, align, is_device = _dimensions(path, os.fstat(fd))
        if size % align or size < align:
            raise ConfigError(
                f"[cxl] paths: {path} has {size} bytes; it is mapped in pieces of {align}, so its size must be a "
                "multiple of that"
            )
        _lock(path, fd)
        memory, synced = _native.map_aligned(fd, size, max(align, HUGE), persistent)
    except OSError as error:
        os.close(fd)
        if isinstance(error, StorageError):
            raise
        raise StorageError(f"[cxl] paths: {path} cannot be mapped ({error.strerror}); is it a DAX device?") from error
    except ConfigError:
        os.close(fd)
        raise
    return Region(
        str(path), memory, fd=fd, direct=synced or is_device, mapped="MAP_SYNC" if synced else "shared",
    )  # fmt: skip


def _open(path: Path) -> int:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISCHR(mode) and not stat.S_ISREG(mode):
            raise ConfigError(f"[cxl] paths: {path} is neither a DAX device nor a file")
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise ConfigError(
            f"[cxl] paths: {path} is not there; `daxctl list` shows the devices (a file must be made first, in its "
            "full length)"
        ) from None
    except OSError as error:
        raise StorageError(
            f"[cxl] paths: {path} cannot be opened ({error.strerror}); give this process the right to read and write it"
        ) from error


def _dimensions(path: Path, found: os.stat_result) -> tuple[int, int, bool]:
    """Size, alignment, and whether it is a device."""
    if stat.S_ISREG(found.st_mode):
        return found.st_size, BLOCK, False
    device = _CHARACTER_DEVICES / f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}"
    try:
        if (device / "subsystem").resolve().name != "dax":
            raise ConfigError(f"[cxl] paths: {path} is no DAX device")
        size, align = (int((device / name).read_text(encoding="ascii")) for name in ("size", "align"))
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise StorageError(f"[cxl] paths: {device} does not tell the size of {path} ({error})") from error
    return size, align, True


def _lock(path: Path, fd: int) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StorageError(
            f"[cxl] paths: {path} is in use by another tier; stop it or choose another device"
        ) from error
