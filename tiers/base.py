"""What a tier is: one place of one kind that keeps records.

The store owns the index and decides what lives where; a tier owns bytes and nothing else. Locations are opaque
numbers below 2⁶³ that the tier hands out. Every method may be called from any thread; none holds a lock across
I/O. The store calls nothing but `owns` with its own lock held, and a tier calls its `Owner` with none of its own.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidArgument, KVStoreError, NotFound
from kvstore.record import Entry, Record
from kvstore.spec import KVSpec, Part

# One row per record that a persistent tier brings back when it is opened. The record's whole length is
# `header_blocks` blocks of 4 KiB plus `stored` rounded up to whole blocks.
RECOVERED_DTYPE = np.dtype(
    [
        ("key", "u1", (32,)), ("parent", "u1", (32,)), ("namespace", "u1", (16,)), ("spec", "u1", (16,)),
        ("group", "<u2"), ("rank", "<u2"), ("layer_start", "<u2"), ("layer_end", "<u2"),
        ("position", "<u4"), ("tokens", "<u4"), ("first_valid", "<u4"),
        ("form", "<u2"), ("level", "<u2"), ("exact", "u1"), ("_pad", "u1"), ("header_blocks", "<u2"),
        ("logical", "<u8"), ("stored", "<u8"), ("location", "<u8"), ("created_ms", "<i8"),
    ]
)  # fmt: skip


class TierFull(KVStoreError):
    """No room for a record of this size right now; `make_room` may help."""

    status = "RESOURCE_EXHAUSTED"


class Present(KVStoreError):
    """Of a shared tier: another host's record of the same name lies there in another form; nothing was written.

    `record` is what lies there. The owner takes it as it is (`find` gives its location) or deletes it and writes again.
    """

    status = "ALREADY_EXISTS"

    def __init__(self, message: str, record: Record) -> None:
        super().__init__(message)
        self.record = record


class Name(NamedTuple):
    """What a record is known by, wherever it lies: digests of its namespace and spec, its key and its part."""

    namespace: bytes
    spec: bytes
    key: bytes
    part: Part


class Verdict(Enum):
    """What the owner says of a record that a tier would like to be rid of."""

    DEAD = "dead"  # the index no longer points here
    DROP = "drop"  # it did; the owner has just removed the placement
    KEEP = "keep"  # leased, pinned, being read or too good to lose: move it


class Owner(Protocol):
    """The store, as a tier sees it while it makes room."""

    def judge(self, tier: Tier, records: Sequence[tuple[Record, int]], since_ms: int, most: int) -> Sequence[Verdict]:
        """A verdict on each (record, location).

        What may go is worth keeping if it was used since `since_ms` (Unix time: when the records had all been written
        where they lie), and of that the best `most` bytes, by when they were last used. That is how a log comes near
        LRU (a second chance for what was used, the oldest first), and how its wear is bounded. Where a tier makes room
        by itself (`Tier.tend`) nobody may be between a `write` and its entry in the index while this looks.
        """

    def moved(self, tier: Tier, record: Record, old: int, new: int) -> bool:
        """Point the index at the new copy. False if the placement went away meanwhile: the new copy is dead."""


@dataclass(frozen=True)
class Recovered:
    """What a persistent tier held when it was opened.

    `namespaces` and `specs` give names and specs by digest; `rows` has `RECOVERED_DTYPE`; `clean` tells whether
    the tier was closed in order; `notes` says in words what had to be mended.
    """

    namespaces: Mapping[bytes, str] = field(default_factory=dict)
    specs: Mapping[bytes, KVSpec] = field(default_factory=dict)
    rows: npt.NDArray[Any] = field(default_factory=lambda: np.zeros(0, RECOVERED_DTYPE))
    clean: bool = True
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Speed:
    """Live figures for the cost model: bytes per second and seconds to the first byte."""

    read_bytes_per_s: float
    write_bytes_per_s: float
    latency_s: float


# Told in words of a part of a tier that failed, and given what says of a location whether it lay there.
OnLoss = Callable[[str, Callable[[int], bool]], None]


class Tier(ABC):
    """A place for records.

    `persistent` says whether its records are there after kill -9, `shared` whether other hosts write to the place as
    well (then `find` tells what they wrote, and a record may vanish), `writable` whether this host may (`write` raises
    `StorageError` otherwise, and nothing is moved there), `evicts` whether it chooses by itself what goes
    (`make_room`, which asks its owner); where it does not, the store deletes the coldest until a write fits.
    """

    kind: ClassVar[str]
    persistent: bool
    shared: ClassVar[bool] = False
    writable: ClassVar[bool] = True
    evicts: ClassVar[bool] = False
    name: str

    @property
    @abstractmethod
    def capacity(self) -> int:
        """The most bytes it may take, padding and headers included."""

    @property
    @abstractmethod
    def used(self) -> int:
        """Bytes taken by live records, padding and headers included."""

    @property
    def written_bytes(self) -> int:
        """All that has gone to its devices since it was opened, what it moves and notes by itself included.

        0 of memory, which that does not wear out.
        """
        return 0

    @property
    @abstractmethod
    def speed(self) -> Speed:
        """Measured on what has been read and written so far (an estimate before that)."""

    @property
    def state(self) -> str:
        """`ok`, or in a few words why it is not to be used just now."""
        return "ok"

    @property
    def max_record(self) -> int:
        """The longest record that can ever fit."""
        return self.capacity

    @abstractmethod
    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        """Keep a record and return its location.

        `header` is `record.pack()`, `payload` at least `record.stored` bytes. When a persistent tier returns,
        the record survives kill -9. Raises `TierFull`, `StorageError`. Where another host has written a record of
        the same name and form to a shared tier, that one counts, and its bytes may be others; `Present` where its
        form is another.
        """

    @abstractmethod
    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        """Fill `out` from the record at `location`, `offset` bytes after the start of its header.

        Any alignment is taken; 4 KiB-aligned memory, offset and length are fastest. Not verified here. Raises
        `StorageError`; `Corrupt` if the place is shorter than asked for; `NotFound` where a shared tier has lost it.
        """

    def read_many(self, requests: Sequence[tuple[int, int, memoryview]]) -> Sequence[Exception | None]:
        """`read_into` for each (location, offset, out), several in flight; one outcome each, in order."""
        outcomes: list[Exception | None] = []
        for location, offset, out in requests:
            try:
                self.read_into(location, offset, out)
                outcomes.append(None)
            except KVStoreError as error:
                outcomes.append(error)
        return outcomes

    @abstractmethod
    def delete(self, location: int, record_bytes: int) -> None:
        """Forget a record of this total length. A persistent tier does not bring it back when it is opened."""

    def evict(self, location: int, record_bytes: int) -> None:
        """Let go of a record to make room: like `delete`, but of a shared tier what others wrote stays for them."""
        self.delete(location, record_bytes)

    def forget(self, location: int, record_bytes: int) -> None:
        """Of a shared tier: let go of a location alone, where the owner has another one of the same record."""
        self.delete(location, record_bytes)

    def make_room(self, nbytes: int, owner: Owner) -> bool:
        """Try to make room for so many bytes by dropping or moving what `owner` allows; False if it cannot."""
        del nbytes, owner
        return False

    def watch_losses(self, told: OnLoss) -> None:
        """Call `told` when a part of the tier has failed and was taken out, in whatever thread noticed."""
        del told

    def drain(self, path: str = "") -> Callable[[int], bool]:
        """Write nothing more to the device at `path` (empty: the owner sees to the whole tier); what lies there.

        That is, what says of a location whether it does. `InvalidArgument` for a path that is none, or that cannot be
        done without. Idempotent.
        """
        if path:
            raise InvalidArgument(f"tier {self.name} has no devices that are drained one by one: leave the path out")
        return lambda location: True

    def detach(self, path: str = "") -> None:
        """Close what was drained, in which nothing lies any more, so that it can be unmounted. Idempotent."""
        del path

    def resume(self, path: str = "") -> None:
        """Use again what was drained, opened anew if it was detached. Idempotent. `StorageError` if it is not there."""
        del path

    def keep_artefact(self, digest: bytes, data: bytes) -> None:
        """Of a shared tier: have an artefact there, for other hosts, before the first record that names it.

        Idempotent, and cheap when it was there a moment ago. Raises what a write raises.
        """
        del digest, data

    def fetch_artefact(self, digest: bytes) -> bytes:
        """Of a shared tier: an artefact's file that some host has kept there, whose digest is that.

        Raises `NotFound` where it is not there, too long or damaged, and what a read raises.
        """
        raise NotFound(f"the artefact {digest.hex()} is not in tier {self.name}")

    def owns(self, location: int) -> bool:
        """Of a shared tier: whether this host wrote what lies there; told by the number alone, so at any time."""
        del location
        return self.writable

    def tend(self, owner: Owner) -> None:
        """From now on the tier may make room ahead of need, asking `owner`, in a thread of its own."""
        del owner

    def find(self, names: Sequence[Name], timeout_s: float) -> Sequence[tuple[Record | Entry, int] | None]:
        """Of a shared tier: the record and location of each name that is there, whoever wrote it; None for the rest.

        An `Entry` where the header itself is not at hand: whether what it is encoded with is known here turns out when
        it is loaded. What cannot be told within `timeout_s` is None too. Never raises for a place that is down.
        """
        del timeout_s
        return [None] * len(names)

    def describe(self, namespace: str, spec: KVSpec) -> None:
        """Make durable what the digests in records mean, before the first record that names them. Idempotent."""

    def recover(self) -> Recovered:
        """Called once after opening, before anything else."""
        return Recovered()

    def sync(self) -> None:
        """Return when all that was written before survives power loss (concurrent callers share one flush)."""

    def put_aside(self, name: str, data: bytes) -> None:
        """Of a tier that survives the process: keep a few bytes beside the records, in place of those of that name.

        Raises `StorageError`, `TierFull`.
        """
        del name, data

    def recall(self, name: str) -> Sequence[bytes]:
        """What was put aside under a name, as each of its devices has it."""
        del name
        return ()

    @property
    def wants_checkpoint(self) -> bool:
        """Whether it is time for a `checkpoint`."""
        return False

    def checkpoint(self) -> None:
        """Write down what is needed for a quick opening."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back. A second call does nothing."""

    def stats(self) -> dict[str, float | int | str]:
        """Counters of its own, for `kvstore stats`."""
        return {}
