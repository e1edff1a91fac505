"""What a client remembers of its leases: where the chunks lie, so that reading them needs no call."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from kvstore.api import Fidelity
from kvstore.channels.local_hazards import HazardLeases
from kvstore.keys import REF_BYTES, ChunkRef
from kvstore.places import NOWHERE, PLACE_BYTES, Place
from kvstore.spec import Part

_PLACE = struct.Struct("<QQII")
_REF = struct.Struct("<32sII")
_FIRST_SWEEP = 64


class Lease:
    """One lease: `places` are packed, those of all `parts` for each of the `used` refs.

    `deadline`, on the clock of `time.monotonic`, is when its promise ends; 0 once it has been given up. Whoever
    copies asks `is_over` after the copy. One that was taken without a call has `hazards`, by their `numbers`.
    """

    __slots__ = ("deadline", "fidelity", "hazards", "numbers", "parts", "places", "refs", "spec", "used")

    def __init__(
        self,
        spec: bytes,
        refs: bytes,
        used: Sequence[int],
        parts: Mapping[Part, int],
        places: bytes,
        fidelity: Fidelity,
        deadline: float,
        hazards: HazardLeases | None = None,
        numbers: bytes = b"",
    ) -> None:
        self.spec = spec
        self.refs = refs
        self.used = used
        self.parts = parts
        self.places = places
        self.fidelity = fidelity
        self.deadline = deadline
        self.hazards = hazards
        self.numbers = numbers

    def is_over(self) -> bool:
        """Whether what was read just now may be another chunk's."""
        return time.monotonic() >= self.deadline or (self.hazards is not None and not self.hazards.honoured)


class _Entry(NamedTuple):
    """A chunk under a lease: the number of its first place, and the same chunk under a lease taken before."""

    lease: Lease
    first: int
    position: int
    tokens: int
    older: _Entry | None


class LeasedPlaces:
    """All leases of a client that is connected to one life of a server. Any thread may ask.

    Taking a lease costs nothing here; its chunks are entered into the tables when one is first asked for.
    """

    def __init__(self) -> None:
        self._leases: dict[bytes, Lease] = {}
        self._waiting: list[Lease] = []
        self._tables: dict[bytes, dict[bytes, _Entry]] = {}
        self._lock = threading.Lock()
        self._sweep_at = _FIRST_SWEEP

    def __len__(self) -> int:
        return len(self._leases)

    def add(self, id_: bytes, lease: Lease) -> None:
        """Remember a lease, under the id that it was taken with."""
        with self._lock:
            self._leases[id_] = lease
            self._waiting.append(lease)
            if len(self._leases) >= self._sweep_at:
                now = time.monotonic()
                for each in [each for each, known in self._leases.items() if known.deadline <= now]:
                    self._drop(each)
                self._sweep_at = max(_FIRST_SWEEP, 2 * len(self._leases))

    def drop(self, id_: bytes) -> Lease | None:
        """Give a lease up, if there is one. Before the server is told, and not after."""
        if id_ not in self._leases:
            return None
        with self._lock:
            return self._drop(id_)

    def drop_all(self) -> None:
        """Give all leases up."""
        with self._lock:
            for id_ in list(self._leases):
                self._drop(id_)

    def find(self, spec: bytes, ref: ChunkRef, part: Part, fidelity: Fidelity) -> tuple[Lease, Place] | None:
        """Where a part lies, and the lease that holds it there; None where no lease is known that does."""
        if self._waiting:
            self._enter()
        table = self._tables.get(spec)
        entry = None if table is None else table.get(ref.key)
        while entry is not None:
            lease, first, position, tokens, older = entry
            number = lease.parts.get(part)
            if (
                number is not None
                and lease.deadline
                and lease.fidelity <= fidelity
                and (position, tokens) == (ref.position, ref.tokens)
            ):
                place = _PLACE.unpack_from(lease.places, (first + number) * PLACE_BYTES)
                if place[0] != NOWHERE:
                    return lease, place
            entry = older
        return None

    def _enter(self) -> None:
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for lease in waiting:
                if not lease.deadline:
                    continue
                table = self._tables.setdefault(lease.spec, {})
                parts = len(lease.parts)
                for number, index in enumerate(lease.used):
                    key, position, tokens = _REF.unpack_from(lease.refs, index * REF_BYTES)
                    table[key] = _Entry(lease, number * parts, position, tokens, table.get(key))

    def _drop(self, id_: bytes) -> Lease | None:
        """Needs the lock."""
        lease = self._leases.pop(id_, None)
        if lease is None:
            return None
        lease.deadline = 0.0
        if lease.hazards is not None:
            lease.hazards.release(lease.numbers)
        if lease in self._waiting:
            self._waiting.remove(lease)
            return lease
        table = self._tables.get(lease.spec, {})
        for index in lease.used:
            key = lease.refs[index * REF_BYTES : index * REF_BYTES + 32]
            entry = table.get(key)
            while entry is not None and not entry.lease.deadline:
                entry = entry.older
            if entry is not None:
                table[key] = entry
            else:
                table.pop(key, None)
        return lease
