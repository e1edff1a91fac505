"""Records with random content that can be verified, in memory of any alignment."""

from __future__ import annotations

import hashlib
import mmap
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from kvstore import _native
from kvstore.namespace import namespace_digest
from kvstore.record import Record, group_table, padded, unpack
from kvstore.spec import KVSpec, Part
from kvstore.tiers.base import Tier

NAMESPACE = "conformance"


def make_spec() -> KVSpec:
    """The spec that `make_sample`'s records name."""
    return KVSpec.dense("conformance", layers=2, kv_heads=1, head_dim=64)


def aligned_memory(nbytes: int, shift: int = 0) -> memoryview:
    """Writable memory that begins `shift` bytes after a 4 KiB boundary."""
    return memoryview(mmap.mmap(-1, padded(nbytes + shift) or mmap.PAGESIZE))[shift : shift + nbytes]


@dataclass(frozen=True)
class Sample:
    """A record, its packed header and its payload (padded and aligned unless asked for otherwise)."""

    record: Record
    header: bytes
    payload: memoryview

    @cached_property
    def content(self) -> bytes:
        """The payload without padding."""
        return bytes(self.payload[: self.record.stored])

    def write_to(self, tier: Tier) -> int:
        """The location that `tier` gives it."""
        return tier.write(self.header, self.payload, self.record)

    def check_in(self, tier: Tier, location: int) -> None:
        """Assert that header and payload read back as they were written."""
        out = aligned_memory(self.record.total_bytes)
        tier.read_into(location, 0, out)
        found = unpack(out)
        record = self.record
        found.check(key=record.key, spec=record.spec, namespace=record.namespace, part=record.part)
        assert out[record.header_bytes : record.header_bytes + record.stored] == self.content, "payload differs"


def make_sample(number: int, nbytes: int, *, groups: int = 2, shift: int = 0, pad: bool = True) -> Sample:
    """Record `number` with `nbytes` of random payload in `groups` layer groups.

    Its memory begins `shift` bytes after a 4 KiB boundary and, with `pad`, is as long as the padded length.
    """
    payload = aligned_memory(padded(nbytes) if pad else nbytes, shift)
    random = np.random.default_rng(number)
    np.frombuffer(payload, np.uint8)[:nbytes] = random.integers(0, 256, nbytes, dtype=np.uint8)
    each = nbytes // groups
    ranges = [(i * each, each if i < groups - 1 else nbytes - i * each) for i in range(groups)]
    table = np.array(ranges, np.uint64)
    digests = _native.xxh3_128_many(payload, table[:, 0].copy(), table[:, 1].copy())
    key, parent = (hashlib.sha256(b"%d" % n).digest() for n in (number, number - 1))
    record = Record(
        key, parent, make_spec().digest, namespace_digest(NAMESPACE), Part(), 256 * (number % 1000), 256,
        nbytes, nbytes, group_table(ranges, digests), created_ms=1_700_000_000_000 + number,
    )  # fmt: skip
    return Sample(record, record.pack(), payload)
