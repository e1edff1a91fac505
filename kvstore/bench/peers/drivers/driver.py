"""What a driver is: one system, told to store and load chunks whose content follows from a seed."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]
PUT_SEEDS = 1 << 20
EXISTS = 100


class Skip(Exception):
    """This system cannot run here, for the reason given."""


@dataclass(frozen=True)
class Job:
    """What one driver has to do.

    `count` chunks of `nbytes` are stored before anything is timed, with the seeds 0, 1, …; `puts` puts go round
    `ring` slots with the seeds from `PUT_SEEDS` on. `folder` is a scratch folder on a disk, `tag` a name that is
    free in /dev/shm; what is left under either is removed afterwards. `options` are the system's own.
    """

    nbytes: int
    count: int
    ring: int
    puts: int
    folder: str
    tag: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def stored_bytes(self) -> int:
        """What the system holds at once."""
        return (self.count + self.ring) * self.nbytes


class Driver(ABC):
    """One system. A subclass stores and loads chunks; their content and the caller's memory come from here.

    `does` names the cases that the system has: `get` (by key, nothing asked before), `get-leased` (what a look-up
    has promised just before), `put`, `exists`. `pids` are the servers whose CPU time counts as the system's.
    """

    mode = ""
    note = ""
    does: tuple[str, ...] = ("get", "put")

    def __init__(self, job: Job, stack: ExitStack) -> None:
        self.job, self.stack = job, stack
        self.pids: list[int] = []
        self.open()
        self.targets = self.memory(job.count)
        self.sources = self.memory(job.ring)
        self.ready()

    @abstractmethod
    def open(self) -> None:
        """Start the system, or raise `Skip`. Cleaning up goes on `self.stack`."""

    def memory(self, chunks: int) -> Bytes:
        """Memory of the caller's own for so many chunks, shape (chunks, nbytes), its pages touched."""
        return np.ones((chunks, self.job.nbytes), np.uint8)

    def ready(self) -> None:
        """Called once when `targets` and `sources` are there."""

    @abstractmethod
    def store(self, key: str, data: Bytes) -> None:
        """Store `data` as `key` and return when others can load it."""

    @abstractmethod
    def load(self, key: str, target: Bytes) -> None:
        """Bring the chunk `key` into `target`; raise if it is not there."""

    @abstractmethod
    def forget(self, key: str) -> None:
        """Remove `key`, which is there. Not timed."""

    def lease(self, key: str) -> None:
        """Look `key` up so that it is held for `load_leased`. Not timed."""
        raise NotImplementedError

    def load_leased(self, key: str, target: Bytes) -> None:
        """`load` of what `lease` holds."""
        raise NotImplementedError

    def settle(self) -> None:
        """What a system wants done after a load. Not timed."""

    def prepare_exists(self) -> None:
        """Called once before the first `exists`, when everything is stored. Not timed."""

    def exists(self) -> int:
        """How many of `EXISTS` stored chunks are there, asked in the fewest calls that the system has."""
        raise NotImplementedError


def content(seed: int, nbytes: int) -> Bytes:
    """Incompressible bytes that follow from `seed` alone; the same as `kvstore.bench.corpus.content`."""
    words = np.random.Generator(np.random.SFC64(seed)).integers(0, 1 << 63, -(-nbytes // 8), np.uint64)
    return words.view(np.uint8)[:nbytes]


def digest(data: Bytes) -> str:
    """What stands for a chunk's content in a reply."""
    return hashlib.blake2b(data.data, digest_size=16).hexdigest()


def need(right: bool, what: str) -> None:
    """Raise unless a system did as it was told. Unlike `assert` it stays under -O."""
    if not right:
        raise RuntimeError(what)
