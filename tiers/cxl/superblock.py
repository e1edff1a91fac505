"""What a persistent tier writes on its devices, besides records. All numbers are little-endian.

Every device begins with two blocks of 4 KiB, each of which may hold a superblock: what is written goes to the one
that holds the older, so that a process that dies meanwhile leaves the newer whole. A superblock (256 bytes):

    offset  bytes
       0      8   magic "KVCXL\\0\\0\\1", the last byte the version of the format
       8     16   number of the set of devices, random
      24      8   generation: grows whenever the tier is opened or closed
      32      1   1 if it was closed in order
      33      1   number of this device in the set
      34      1   devices in the set
      35      5   zeros
      40      8   capacity of the set in bytes
      48      8   bytes of a stripe's unit
      56      8   most records
      64      8   where records begin on this device
      72      8   bytes for records on this device
      80    168   zeros
     248      8   xxh3-64 of all before

On device 0 follow the catalog (1 MiB, `kvstore.tiers.cxl.catalog`) and the slots (256 bytes each,
codecs/native/record_slots.hpp): one for every record, which says where it lies and, in the row that `recover` gives,
what it is. A slot's mark is written last, and makes the record valid.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kvstore import _native
from kvstore.errors import ConfigError, StorageError
from kvstore.record import BLOCK, padded
from kvstore.tiers.cxl.regions import Region, map_paths

MAGIC, VERSION = b"KVCXL\0\0", 1
CATALOG_AT, CATALOG_BYTES = 2 * BLOCK, 1 << 20
SLOTS_AT = CATALOG_AT + CATALOG_BYTES
_BODY = struct.Struct("<7sB16sQBBB5xQQQQQ168x")
_CHECKSUM = struct.Struct("<Q")
_BYTES = 256
assert _BODY.size + _CHECKSUM.size == _BYTES


@dataclass(frozen=True)
class Superblock:
    """One device's; `Superblock` objects of a set differ in `device`, `data_at` and `data_bytes`."""

    set_number: bytes
    generation: int
    clean: bool
    device: int
    devices: int
    capacity: int
    unit: int
    records: int
    data_at: int
    data_bytes: int

    def pack(self) -> bytes:
        """As it lies on the device."""
        body = _BODY.pack(
            MAGIC, VERSION, self.set_number, self.generation, self.clean, self.device, self.devices, self.capacity,
            self.unit, self.records, self.data_at, self.data_bytes,
        )  # fmt: skip
        return body + _CHECKSUM.pack(_native.xxh3_64(body))


def overhead(device: int, records: int) -> int:
    """Bytes ahead of the records."""
    return SLOTS_AT + padded(records * _native.RECORD_SLOT_BYTES) if device == 0 else CATALOG_AT


def read(region: Region) -> Superblock | None:
    """The newer of a device's superblocks, None where there is none. `StorageError` for one of another version."""
    if len(region.memory) < CATALOG_AT:
        return None
    found = [each for at in (0, BLOCK) if (each := _unpack(region, bytes(region.view(at, _BYTES)))) is not None]
    return max(found, key=lambda each: each.generation, default=None)


def _unpack(region: Region, block: bytes) -> Superblock | None:
    magic, version, *rest = _BODY.unpack_from(block)
    if magic != MAGIC or _CHECKSUM.unpack_from(block, _BODY.size)[0] != _native.xxh3_64(block[: _BODY.size]):
        return None
    if version != VERSION:
        raise StorageError(
            f"{region.name} is of format {version} and this kvstore reads {VERSION}; use the kvstore that made it, or "
            f"give its content up: kvstore cxl wipe {region.name}"
        )
    set_number, generation, clean, device, devices, capacity, unit, records, data_at, data_bytes = rest
    found = Superblock(
        set_number, generation, bool(clean), device, devices, capacity, unit, records, data_at, data_bytes
    )
    if found.data_at + found.data_bytes > len(region.memory):
        raise StorageError(f"{region.name} is shorter than when it was made: {len(region.memory)} bytes; restore it")
    return found


def write(regions: Sequence[Region], blocks: Sequence[Superblock]) -> None:
    """Write every device's superblock over its older one, device 0's last."""
    for region, block in reversed(list(zip(regions, blocks, strict=True))):
        at = block.generation % 2 * BLOCK
        region.view(at, _BYTES)[:] = block.pack()
        region.flush(at, _BYTES)


def advance(blocks: Sequence[Superblock], *, clean: bool) -> list[Superblock]:
    """The next generation of a set."""
    generation = max(each.generation for each in blocks) + 1
    return [replace(each, generation=generation, clean=clean) for each in blocks]


def create(
    regions: Sequence[Region], shares: Sequence[int], capacity: int, unit: int, records: int
) -> list[Superblock]:
    """Superblocks for a new set with so many bytes of each device, and empty tables. They are not written yet."""
    number = secrets.token_bytes(16)
    blocks = []
    for device, share in enumerate(shares):
        data_at = overhead(device, records)
        room = (share - data_at) // BLOCK * BLOCK
        if room < 1:
            raise ConfigError(
                f"[cxl]: {share} bytes of {regions[device].name} are too few: {data_at} are needed for tables"
            )
        blocks.append(
            Superblock(number, 0, True, device, len(regions), capacity, unit, records, data_at, room)
        )  # fmt: skip
    tables = overhead(0, records) - CATALOG_AT
    regions[0].memory[CATALOG_AT : CATALOG_AT + tables] = 0
    regions[0].flush(CATALOG_AT, tables)
    return blocks


def find_set(regions: Sequence[Region]) -> list[Superblock] | None:
    """The superblocks of the set that these devices are, None where they are new.

    `ConfigError` for devices that belong elsewhere or hold something else, `StorageError` for a set that is damaged.
    """
    found = [read(region) for region in regions]
    if found[0] is None and all(each is None or each.generation <= 1 for each in found):
        for region, each in zip(regions, found, strict=True):
            if each is None and any(region.view(0, CATALOG_AT)):
                raise ConfigError(
                    f"[cxl] paths: {region.name} holds something that is no tier; if it may go: "
                    f"kvstore cxl wipe {region.name}"
                )
        return None  # never opened: what there is of a set was not finished
    blocks: list[Superblock] = []
    for device, (region, each) in enumerate(zip(regions, found, strict=True)):
        if each is None:
            raise StorageError(
                f"{region.name} has no superblock, and others of the set have one: restore it, or give all up: "
                f"kvstore cxl wipe {' '.join(region.name for region in regions)}"
            )
        if each.set_number != (blocks or [each])[0].set_number:
            raise ConfigError(f"[cxl] paths: {region.name} and {regions[0].name} belong to different tiers")
        if (each.device, each.devices) != (device, len(regions)):
            raise ConfigError(
                f"[cxl] paths: {region.name} is number {each.device} of {each.devices} devices, here it is number "
                f"{device} of {len(regions)}; name all devices of the tier in their order"
            )
        blocks.append(each)
    _check_generations(regions, blocks)
    return blocks


def _check_generations(regions: Sequence[Region], blocks: Sequence[Superblock]) -> None:
    newest = max(each.generation for each in blocks)
    for region, each in zip(regions, blocks, strict=True):
        if each.generation < newest - 1:  # a process may die between two devices
            raise StorageError(
                f"{region.name} is of generation {each.generation}, the others of {newest}: it is an older copy; "
                "restore the right one, or give all up with kvstore cxl wipe"
            )


def contents(paths: Sequence[str | Path]) -> list[str]:
    """What devices or files hold, in words. Raises as opening a tier does: also while one of them is in use."""
    regions = map_paths([Path(path) for path in paths], persistent=True)
    try:
        return [_content(region) for region in regions]
    finally:
        for region in regions:
            region.close()


def wipe(paths: Sequence[str | Path]) -> None:
    """Make devices or files look new: what a persistent tier kept there is given up. Raises as opening a tier does."""
    regions = map_paths([Path(path) for path in paths], persistent=True)
    try:
        for region in regions:
            nbytes = min(CATALOG_AT, len(region.memory))
            region.view(0, nbytes)[:] = bytes(nbytes)
            region.flush(0, nbytes)
    finally:
        for region in regions:
            region.close()


def _content(region: Region) -> str:
    try:
        found = read(region)
    except StorageError as error:
        return f"a persistent tier that cannot be opened here ({str(error).partition(';')[0]})"
    if found is not None:
        ended = "closed in order" if found.clean else "not closed in order"
        return (
            f"device {found.device} of {found.devices} of a persistent tier of {found.capacity} bytes "
            f"(set {found.set_number.hex()}, {ended})"
        )
    head = bytes(region.view(0, min(CATALOG_AT, len(region.memory))))
    if not any(head):
        return "nothing: it looks new"
    damaged = any(head[at:].startswith(MAGIC) for at in (0, BLOCK))
    return "a persistent tier whose superblocks are damaged" if damaged else "something that is no tier of kvstore"
