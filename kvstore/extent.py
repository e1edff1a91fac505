"""One extent of the arena: a sealed memfd, mapped, populated, and of the largest pages that are to be had.

`pages` are

- `hugetlb`: huge pages that the host has reserved (`vm.nr_hugepages`);
- `thp`: huge pages that the kernel makes when it is asked to (MADV_COLLAPSE, whatever its settings are);
- `plain`: pages of 4 KiB;
- `auto`: the first of these that can be had.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import resource
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from kvstore import _native, numa
from kvstore.errors import ConfigError, StorageError
from kvstore.record import BLOCK

PAGES = ("auto", "hugetlb", "thp", "plain")
HUGE = 2 << 20
_STEP = 64 << 20
_F_SEAL_FUTURE_WRITE = 0x10  # linux/fcntl.h; the standard library has no name for it
# A descriptor that is merely read-only can be opened again for writing through /proc, and a memfd that is cut off
# under its owner kills it. What the owner mapped before stays writable to it.
_SEALS = _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_HUGETLB = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
_CAP_IPC_LOCK = 14  # linux/capability.h


@dataclass(frozen=True)
class Making:
    """How extents are made: their size, their `pages`, and whether they are locked in memory."""

    size: int
    pages: str = "auto"
    lock: bool = False

    def check(self, capacity: int) -> None:
        """`ConfigError` if `capacity` bytes of such extents cannot be had."""
        if self.pages not in PAGES:
            raise ConfigError(f"[dram] pages must be {', '.join(PAGES[:-1])} or {PAGES[-1]}, not {self.pages!r}")
        if self.pages == "hugetlb" and self.size % HUGE:
            raise ConfigError(f"[dram] pages: with hugetlb an extent must be a multiple of {HUGE}, not {self.size}")
        if self.pages == "hugetlb" and free_hugetlb() < capacity:
            raise ConfigError(
                f"[dram] pages: {free_hugetlb()} bytes of huge pages are free and {capacity} are needed; reserve them "
                f"with `sysctl vm.nr_hugepages={-(-capacity // HUGE)}`, lower the capacity, or leave `pages` out"
            )
        if self.lock and capacity > lockable():
            raise ConfigError(
                f"[dram] lock: this process may lock {lockable()} bytes and {capacity} are needed; raise "
                "RLIMIT_MEMLOCK (`ulimit -l`, LimitMEMLOCK= of a systemd unit, --ulimit memlock of a container) or "
                "give it CAP_IPC_LOCK"
            )


@dataclass(eq=False)
class Extent:
    """One memfd, mapped and populated. `view` spans all of it, `huge` of its bytes are in huge pages."""

    number: int
    fd: int
    view: memoryview
    allocator: _native.Allocator
    pages: str
    huge: int
    node: int | None = None
    owner: bytes | None = None

    @classmethod
    def make(
        cls, number: int, making: Making, node: int | None = None, *, strict: bool = False,
        progress: Callable[[int], None] = lambda nbytes: None,
    ) -> Extent:  # fmt: skip
        """Create, populate and seal an extent, on a node if one is given (`strict`: there or nowhere).

        `progress` is told how many bytes there are already; what it raises ends the work. Raises `StorageError` if
        there is no memory.
        """
        if making.pages == "auto" and _fits_hugetlb(making.size):
            with contextlib.suppress(OSError):  # others have taken the huge pages meanwhile
                return cls._make(number, replace(making, pages="hugetlb"), node, strict, progress)
        try:
            return cls._make(number, making, node, strict, progress)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"no memory for an extent of {making.size} bytes: {error.strerror}") from error

    @classmethod
    def _make(
        cls, number: int, making: Making, node: int | None, strict: bool, progress: Callable[[int], None]
    ) -> Extent:
        flags = os.MFD_HUGETLB | os.MFD_HUGE_2MB if making.pages == "hugetlb" else 0
        fd = os.memfd_create(f"kvstore-extent-{number}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | flags)
        try:
            os.ftruncate(fd, making.size)
            memory, _ = _native.map_aligned(fd, making.size, HUGE if making.size >= HUGE else mmap.PAGESIZE)
            if node is not None:
                numa.bind(memory, node, "[dram] nodes", strict=strict)
            view = memory.data
            huge = _populate(view, making.pages, progress)
            if making.lock:
                _native.lock_memory(view)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
        except BaseException:
            os.close(fd)
            raise
        pages = "hugetlb" if flags else "thp" if huge else "plain"
        return cls(number, fd, view, _native.Allocator(making.size, BLOCK), pages, huge, node)

    def destroy(self) -> None:
        """Give the memory back. Views that readers still hold keep their pages until they are dropped."""
        self.view.release()
        os.close(self.fd)


def _populate(view: memoryview, pages: str, progress: Callable[[int], None]) -> int:
    """Bring all of it into being; the bytes that huge pages hold."""
    wants_huge = pages in ("auto", "thp")
    if wants_huge:
        with contextlib.suppress(OSError):
            _native.advise_huge(view)
    huge = len(view) if pages == "hugetlb" else 0
    for at in range(0, len(view), _STEP):
        piece = view[at : at + _STEP]
        if wants_huge:
            made = _collapse(piece)
            huge, wants_huge = huge + made, made > 0  # after a failure it is not tried again
        _native.populate(piece)
        progress(at + len(piece))
    return huge


def _collapse(piece: memoryview) -> int:
    """Make huge pages of a piece; the bytes that they hold.

    One small page of each is brought into being first, since none is made where there is nothing: that and clearing a
    huge page is faster than bringing all small ones into being.
    """
    whole = len(piece) // HUGE * HUGE
    try:
        for at in range(0, whole, HUGE):
            _native.populate(piece[at : at + 1])
        _native.collapse_huge(piece[:whole])
    except OSError:  # no such pages here, or none in one piece any more
        return 0
    return whole


def _fits_hugetlb(size: int) -> bool:
    return size % HUGE == 0 and free_hugetlb() >= size


def free_hugetlb() -> int:
    """Bytes of reserved huge pages that nobody has taken."""
    try:
        free, taken = (int((_HUGETLB / name).read_text()) for name in ("free_hugepages", "resv_hugepages"))
    except OSError:
        return 0
    return (free - taken) * HUGE


def lockable() -> int:
    """Bytes that this process may lock in memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    capabilities = next((int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff")), 0)
    unlimited = hard == resource.RLIM_INFINITY and soft == resource.RLIM_INFINITY
    return 1 << 62 if unlimited or capabilities >> _CAP_IPC_LOCK & 1 else soft
