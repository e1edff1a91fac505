"""How the directory lies in Valkey.

An entry says which host holds a record: a field of 8 bytes in one of 65,536 hashes, both from the BLAKE2b of the
record's name, and as its value the 6 bytes of the host's *life*, drawn when it starts. So a hash holds a few entries
in one piece of memory, and a name is not told to whoever reads Valkey. Two hosts that hold a record overwrite each
other, the last one stays; each takes out its own alone. Names whose digests collide cost a miss and nothing else.

A life has a lease: a key with an expiry that holds where its host is reached. All leases, and the set of lives, are in
one slot of a cluster, so that one request asks for all. An entry of a life without a lease counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import NamedTuple

from kvstore.tiers.remote.valkey.objects import Request
from kvstore.tiers.remote.valkey.wire import command

BUCKETS = 1 << 16
LIFE_BYTES = 6
_FIELD_BYTES = 8
# Take out fields that still hold what is expected of them.
_WITHDRAW = (
    b"for i = 2, #ARGV do if redis.call('HGET', KEYS[1], ARGV[i]) == ARGV[1] then "
    b"redis.call('HDEL', KEYS[1], ARGV[i]) end end"
)


class Slot(NamedTuple):
    """Where the entry of a name is."""

    bucket: int
    field: bytes


def slot_of(name: bytes) -> Slot:
    """The place of a packed name's entry."""
    digest = blake2b(name, digest_size=2 + _FIELD_BYTES).digest()
    return Slot(int.from_bytes(digest[:2], "little"), digest[2:])


class Layout:
    """Keys and requests of one group of hosts."""

    def __init__(self, group: str) -> None:
        self._prefix = b"kvstore-peers/%s/" % group.encode()
        self.lives = self._prefix + b"{lives}"

    def bucket(self, number: int) -> bytes:
        """The key of a hash of entries."""
        return self._prefix + b"%04x" % number

    def lease(self, life: bytes) -> bytes:
        """The key of a life's lease."""
        return b"%s/%s" % (self.lives, life.hex().encode())

    def ask(self, slots: Sequence[Slot]) -> tuple[list[bytes], list[Request], list[list[int]]]:
        """Keys, requests, and which of the slots each request's answers are for, in order."""
        shares: dict[int, list[int]] = {}
        for index, slot in enumerate(slots):
            shares.setdefault(slot.bucket, []).append(index)
        keys = [self.bucket(number) for number in shares]
        groups = list(shares.values())
        requests: list[Request] = [
            command(b"HMGET", key, *(slots[index].field for index in group))
            for key, group in zip(keys, groups, strict=True)
        ]
        return keys, requests, groups

    def publish(self, slots: Iterable[Slot], life: bytes) -> tuple[list[bytes], list[Request]]:
        """Keys and requests that enter what a life holds."""
        shares = _by_bucket(slots)
        keys = [self.bucket(number) for number in shares]
        pairs = ([word for field in fields for word in (field, life)] for fields in shares.values())
        return keys, [command(b"HSET", key, *each) for key, each in zip(keys, pairs, strict=True)]

    def withdraw(self, slots: Iterable[Slot], life: bytes) -> tuple[list[bytes], list[Request]]:
        """Keys and requests that take out entries which still are of a life."""
        shares = _by_bucket(slots)
        keys = [self.bucket(number) for number in shares]
        return keys, [
            command(b"EVAL", _WITHDRAW, b"1", key, life, *fields)
            for key, fields in zip(keys, shares.values(), strict=True)
        ]


def _by_bucket(slots: Iterable[Slot]) -> Mapping[int, list[bytes]]:
    shares: dict[int, list[bytes]] = {}
    for slot in slots:
        shares.setdefault(slot.bucket, []).append(slot.field)
    return shares
