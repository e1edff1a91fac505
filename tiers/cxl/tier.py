"""The tier: records striped over devices by what each of them gives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from kvstore import _native
from kvstore.errors import Closed, ConfigError, Corrupt, InvalidArgument, KVStoreError, NotFound, StorageError, TooLarge
from kvstore.record import BLOCK, Record, padded
from kvstore.spec import KVSpec
from kvstore.tiers.base import RECOVERED_DTYPE, Recovered, Speed, Tier, TierFull
from kvstore.tiers.cxl import superblock
from kvstore.tiers.cxl.catalog import Catalog
from kvstore.tiers.cxl.meter import Meter
from kvstore.tiers.cxl.populator import Populator, Range
from kvstore.tiers.cxl.regions import Region, map_nodes, map_paths
from kvstore.tiers.cxl.weights import MOST, Balance, scanned_rates, shares, units_for
from kvstore.tiers.flush import GroupFlush

KIB, MIB = 1 << 10, 1 << 20
UNIT = 128 * KIB
LEAST_RECORDS = 4096
RECORD_BYTES = 64 * KIB  # of capacity for each record that there can be, unless it is said
MOST_THREADS = 4
_SCANNED = 8 * MIB
_BALANCED = 64  # writes between two looks at what devices give
_SLOT_DTYPE = np.dtype(
    [("mark", "<u8"), ("row", RECOVERED_DTYPE), ("stripes", "u1", (_native.RECORD_SLOT_BYTES - 8 - 156,))]
)


class CxlTier(Tier):
    """Records in the memory of NUMA nodes (`nodes`), or of DAX devices or files (`paths`): one of the two.

    `capacity` is in bytes over all devices, tables included; without one, all that `paths` have. A record lies on the
    devices in turns of `unit` bytes times a device's weight: `weights` if they are given, else by measured bandwidth,
    followed while the tier is used. `threads` copy a large record (without a number as many as are measurably faster).
    `persistent` records on paths are found again when the tier is opened. There are `records` at most, 64 KiB of
    capacity for each unless it is said.

    Raises `ConfigError` for what cannot work, `StorageError` for devices that are in use, damaged or too full.
    """

    kind: ClassVar[str] = "cxl"

    def __init__(
        self, capacity: int | None = None, *, nodes: Sequence[int] = (), paths: Sequence[str | Path] = (),
        weights: Sequence[int] | None = None, unit: int = UNIT, threads: int | None = None, persistent: bool = False,
        records: int | None = None, name: str = "cxl",
    ) -> None:  # fmt: skip
        _check(capacity, nodes, paths, weights, unit, threads, persistent, records)
        self.name, self.persistent = name, persistent
        self._closed = self._recovered = self._is_whole = False
        self._writes = 0
        if paths:
            self._regions = map_paths([Path(path) for path in paths], persistent=persistent)
        else:
            self._regions = map_nodes(nodes, padded(capacity or 0))
        try:
            self._open(capacity, weights, unit, threads, records)
        except BaseException:
            self._give_up()
            raise

    def _open(
        self, capacity: int | None, weights: Sequence[int] | None, unit: int, threads: int | None, records: int | None
    ) -> None:
        regions = self._regions
        known = superblock.find_set(regions) if self.persistent else None
        if not self.persistent:
            _refuse_sets(regions)
        sizes = [len(region.memory) for region in regions]
        total = capacity or sum(sizes)
        _check_room(regions, capacity, known)
        records = records or max(LEAST_RECORDS, total // RECORD_BYTES)
        self._units = list(weights) if weights else self._first_units()
        if known is None:
            given = shares(total, self._units, sizes)
            if self.persistent:
                known = superblock.create(regions, given, total, unit, records)
        self._blocks = known or []
        if known is not None:
            unit, records, total = known[0].unit, known[0].records, known[0].capacity
            spans = [(each.data_at, each.data_bytes) for each in known]
        else:
            spans = [(0, each // BLOCK * BLOCK) for each in given]
        self._capacity, self._unit, self._spans = total, unit, spans
        self._set_up(records, threads)
        self._balance = None if weights else Balance(self._units)

    def _first_units(self) -> list[int]:
        """Units by what the beginnings of the devices give."""
        regions = self._regions
        if len(regions) == 1:
            return [1]
        nbytes = min(_SCANNED, *(len(region.memory) for region in regions)) // BLOCK * BLOCK
        for region in regions:
            region.populate(0, nbytes)
        out = _memory(nbytes)
        probe = _native.StripedMemory([region.memory for region in regions], 1, UNIT, 0)
        units = units_for(scanned_rates(probe, out, len(regions)))
        probe.close()
        return units

    def _set_up(self, records: int, threads: int | None) -> None:
        regions, spans = self._regions, self._spans
        slots, flush = None, False
        if self.persistent:
            at = superblock.SLOTS_AT
            slots = regions[0].view(at, records * _native.RECORD_SLOT_BYTES)
            flush = any(region.direct for region in regions)
        helpers = (min(len(os.sched_getaffinity(0)), MOST_THREADS) if threads is None else threads) - 1
        devices = [region.memory[at : at + nbytes] for region, (at, nbytes) in zip(regions, spans, strict=True)]
        self._memory = _native.StripedMemory(devices, records, self._unit, helpers, slots, flush)
        self._memory.set_units(self._units)
        unused: Sequence[Range] = [(device, 0, nbytes) for device, (_, nbytes) in enumerate(spans) if nbytes]
        self._found = Recovered()
        if self.persistent:
            catalog = self._catalog = Catalog(regions[0])
            unused = self._restore(slots, catalog)
        self._populator = Populator(regions, [at for at, _ in spans], unused, self._memory.release, self.name)
        self._flush = GroupFlush(self._flush_files)
        nbytes = min(_SCANNED, *(nbytes for _, nbytes in spans)) // BLOCK * BLOCK
        if threads is not None:
            self._memory.always_help()
        self._meter = Meter(self._memory, _memory(nbytes), len(regions))

    def _restore(self, slots: memoryview | None, catalog: Catalog) -> Sequence[Range]:
        told = self._memory.restore()
        table = np.frombuffer(slots or b"", _SLOT_DTYPE)
        rows = np.ascontiguousarray(table["row"][told["valid"]])
        dropped = (
            (told["torn"], "whose writing had not ended were dropped"),
            (told["damaged"], "whose slots do not match their checksums were dropped"),
            (told["overlapping"], "that claim the same memory were dropped"),
        )
        notes = [*catalog.notes, *(f"{count} records {why}" for count, why in dropped if count)]
        clean = self._blocks[0].clean
        self._found = Recovered(dict(catalog.names), dict(catalog.specs), rows, clean, tuple(notes))
        self._blocks = superblock.advance(self._blocks, clean=False)
        superblock.write(self._regions, self._blocks)
        return told["unused"]

    @property
    def capacity(self) -> int:
        return self._capacity - self._populator.lost

    @property
    def used(self) -> int:
        return self._memory.used

    @property
    def speed(self) -> Speed:
        return self._meter.speed

    @property
    def state(self) -> str:
        error = self._populator.error
        return "ok" if error is None or self.capacity > 0 else str(error)

    @property
    def max_record(self) -> int:
        """The longest record that fits into the tier while it is empty."""
        rooms, units = [nbytes for _, nbytes in self._spans], self._units
        striped = min(room // (self._unit * unit) for room, unit in zip(rooms, units, strict=True))
        return max(striped * self._unit * sum(units), *rooms)

    def recover(self) -> Recovered:
        """What a persistent tier held: a row for every record whose commit mark was there, and nothing else.

        Payload is not verified here. After power loss rows may be among them whose bytes never reached a file that is
        not on DAX, if it was not synced.
        """
        if self._closed:
            raise Closed(f"tier {self.name} is closed")
        if self._recovered:
            raise StorageError(f"tier {self.name} was recovered already; that is done once after opening")
        self._recovered = True
        found, self._found = self._found, Recovered()
        return found

    def describe(self, namespace: str, spec: KVSpec) -> None:
        if self.persistent:
            if self._closed:
                raise Closed(f"tier {self.name} is closed")
            self._catalog.describe(namespace, spec)

    def write(self, header: bytes, payload: memoryview, record: Record) -> int:
        """Keep a record and return its location. Of a persistent tier it survives kill -9 from then on.

        Raises `TierFull`, `TooLarge`, `Closed`.
        """
        self._writes += 1
        if not self._writes % _BALANCED and self._balance is not None and self._balance.follow(self._memory.samples):
            self._units = self._balance.units
            self._memory.set_units(self._units)
        while True:
            try:
                location = self._memory.write(header, payload, record.stored)
            except ValueError as error:
                raise InvalidArgument(str(error)) from None
            if location >= 0:
                return location
            nbytes = len(header) + padded(record.stored)
            if location != _native.STRIPED_NO_ROOM or self._is_whole or nbytes > self.max_record:
                raise self._refusal(location, nbytes)
            self._is_whole = not self._populator.running  # tried once more then: the last piece may have come just now
            self._populator.wait(1.0)

    def _refusal(self, outcome: int, nbytes: int) -> KVStoreError:
        if outcome == _native.STRIPED_CLOSED:
            return Closed(f"tier {self.name} is closed")
        if nbytes > self.max_record:
            return TooLarge(f"a record of {nbytes} bytes; tier {self.name} takes {self.max_record} at most")
        if outcome == _native.STRIPED_NO_SLOT:
            return TierFull(f"tier {self.name} has as many records as its table holds; raise `records`")
        return TierFull(f"no room for {nbytes} bytes in tier {self.name}")

    def read_into(self, location: int, offset: int, out: memoryview) -> None:
        try:
            outcome = self._memory.read(location, offset, out)
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"cannot read {location:#x} from {offset}: {error}") from None
        if outcome:
            raise self._failure(outcome, location, offset, out)

    def read_many(self, requests: Sequence[tuple[int, int, memoryview]]) -> Sequence[Exception | None]:
        try:
            outcomes = self._memory.read_many(requests)
        except (ValueError, TypeError) as error:
            raise InvalidArgument(f"cannot read: {error}") from None
        return [
            self._failure(outcome, *request) if outcome else None
            for outcome, request in zip(outcomes, requests, strict=True)
        ]

    def _failure(self, outcome: int, location: int, offset: int, out: memoryview) -> KVStoreError:
        if outcome == _native.STRIPED_SHUT:
            return Closed(f"tier {self.name} is closed")
        if outcome == _native.STRIPED_BEYOND:
            return Corrupt(f"{location:#x} is shorter than the {offset + out.nbytes} bytes asked for")
        return NotFound(f"tier {self.name} has no record at {location:#x}")

    def delete(self, location: int, record_bytes: int) -> None:
        """Forget a record; one that is gone already is no error. What is being read stays until it has been."""
        del record_bytes
        self._memory.remove(location)

    def sync(self) -> None:
        if self.persistent and not self._closed:
            self._flush()

    def _flush_files(self) -> None:
        for region in self._regions:
            if not region.direct:  # elsewhere a record is durable when it is committed
                region.flush(0, 0)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._populator.stop()
        self._memory.close()
        if self.persistent:
            self._flush()
            superblock.write(self._regions, superblock.advance(self._blocks, clean=True))
        self._give_up()

    def _give_up(self) -> None:
        for region in self._regions:
            region.close()

    def stats(self) -> dict[str, float | int | str]:
        """Counters since the tier was opened, what it holds, and what its devices are and give."""
        populator, error = self._populator, self._populator.error
        told: dict[str, float | int | str] = {
            **self._meter.counts(),
            "live_bytes": self._memory.used,
            "live_records": self._memory.records,
            "devices": ", ".join(region.name for region in self._regions),
            "mapped": ", ".join(region.mapped for region in self._regions),
            "weights": ":".join(map(str, self._units)),
            "unit_bytes": self._unit,
            "helped": "yes" if self._memory.helped else "no",
            "populated_bytes": populator.done,
            "to_populate_bytes": populator.total - populator.done - populator.lost,
        }
        if error is not None:
            told["populate_error"] = str(error)
        return told


def _memory(nbytes: int) -> memoryview:
    """Populated memory of this process, to read into."""
    memory, _ = _native.map_aligned(-1, max(nbytes, BLOCK), BLOCK)
    _native.populate(memory)
    return memory.data[:nbytes]


def _refuse_sets(regions: Sequence[Region]) -> None:
    """Nothing that is to last is overwritten."""
    for region in regions:
        if region.fd >= 0 and superblock.read(region) is not None:
            raise ConfigError(
                f"[cxl] paths: {region.name} holds a persistent tier; set `persistent = true`, or give its content up: "
                f"kvstore cxl wipe {region.name}"
            )


def _check_room(regions: Sequence[Region], capacity: int | None, known: Sequence[superblock.Superblock] | None) -> None:
    if known is not None and capacity is not None and capacity != known[0].capacity:
        raise ConfigError(
            f"[cxl] capacity: the tier on {regions[0].name} was made for {known[0].capacity} bytes, not {capacity}; "
            "leave it so, or wipe the devices (kvstore cxl wipe) and begin anew"
        )
    if known is None and capacity is not None and regions[0].node < 0:
        there = sum(len(region.memory) for region in regions)
        if capacity > there:
            raise ConfigError(f"[cxl] capacity: {capacity} bytes, and the paths have {there} in all")


def _check(
    capacity: int | None, nodes: Sequence[int], paths: Sequence[str | Path], weights: Sequence[int] | None, unit: int,
    threads: int | None, persistent: bool, records: int | None,
) -> None:  # fmt: skip
    if bool(nodes) == bool(paths):
        raise ConfigError("[cxl] needs `nodes` (NUMA nodes) or `paths` (DAX devices), and not both")
    devices = len(nodes or paths)
    if devices > _native.MAX_STRIPED_DEVICES:
        raise ConfigError(f"[cxl] takes {_native.MAX_STRIPED_DEVICES} devices at most, not {devices}")
    if (nodes and capacity is None) or (capacity is not None and capacity < devices * BLOCK):
        raise ConfigError(f"[cxl] capacity must be at least {devices * BLOCK} bytes, not {capacity}")
    if persistent and nodes:
        raise ConfigError("[cxl] persistent: memory of NUMA nodes ends with its process; use DAX devices (`paths`)")
    if weights is not None and (len(weights) != devices or not all(1 <= each <= MOST for each in weights)):
        raise ConfigError(f"[cxl] weights: a whole number of 1 to {MOST} for each of {devices} devices, not {weights}")
    if unit < BLOCK or unit % BLOCK:
        raise ConfigError(f"[cxl] unit must be a multiple of {BLOCK} bytes, not {unit}")
    if threads is not None and not 1 <= threads <= 64:
        raise ConfigError(f"[cxl] threads must be 1 to 64, not {threads}")
    if records is not None and not 1 <= records < 1 << 32:
        raise ConfigError(f"[cxl] records must be 1 to {(1 << 32) - 1}, not {records}")
