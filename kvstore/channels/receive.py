"""Reading the items of a get into the caller's memory, verified while they arrive."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvstore import _native, pieces, wire
from kvstore.api import Want
from kvstore.errors import Corrupt, KVStoreError, SpecMismatch
from kvstore.spec import KVSpec
from kvstore.v1 import kvstore_pb2 as pb

READ_BYTES = 512 << 10


class Receiver:
    """Takes the messages of one get. `outcomes` holds what is finished: None, or what went wrong with an item.

    `indexes` are the positions in `wants` that this get asks for, in order.
    """

    def __init__(self, spec: KVSpec, wants: Sequence[Want], indexes: Sequence[int]) -> None:
        self.outcomes: dict[int, KVStoreError | None] = {}
        self._spec = spec
        self._wants = wants
        self._indexes = indexes
        self._item: _Item | None = None

    def take(self, message: bytes) -> None:
        """The next message. Raises `SpecMismatch` where the server does not keep to the protocol."""
        data = pieces.unframe(message)
        if data is None:
            response = wire.parse(pb.GetResponse, message)
            if response.HasField("head"):
                self.begin(response.head)
            data = memoryview(response.data)
        if data:
            self._fill(data)

    def begin(self, head: Any) -> None:
        """An item's head."""
        if self._item is not None or head.item != len(self.outcomes):
            raise SpecMismatch(f"the server answered item {head.item} out of turn")
        index = self._indexes[head.item]
        if head.status:
            kind = wire.error_classes().get(head.error, KVStoreError)
            self.outcomes[index] = kind(head.message)
            return
        want = self._wants[index]
        record = head.record
        if (record.key, record.spec, record.part) != (want.ref.key, self._spec.digest, want.part.pack()):
            raise SpecMismatch(
                f"asked for {want.part} of {want.ref.key.hex()}, spec {self._spec.digest.hex()}; the server sent "
                f"part {record.part.hex()} of {record.key.hex()}, spec {record.spec.hex()}"
            )
        if head.bytes != want.out.nbytes or record.form:
            raise SpecMismatch(
                f"the server sends {head.bytes} bytes in form {record.form} for {want.part} of {want.ref.tokens} "
                f"tokens; the destination has {want.out.nbytes} raw bytes"
            )
        self._item = _Item(index, want, wire.groups_from_bytes(record.groups))

    def read(self, nbytes: int, read_into: Callable[[memoryview], None]) -> None:
        """An item's payload, read straight into its destination."""
        item = self._item
        if nbytes != (0 if item is None else item.out.nbytes):
            raise SpecMismatch(f"the server sends {nbytes} bytes of payload, not what its head announced")
        if item is None:
            return
        for start in range(0, nbytes, READ_BYTES):
            end = min(start + READ_BYTES, nbytes)
            read_into(item.out[start:end])
            item.wrote(end)
        self._finish(item)

    def _fill(self, data: memoryview) -> None:
        item = self._item
        if item is None or item.filled + len(data) > item.out.nbytes:
            raise SpecMismatch("the server sent more bytes than it announced")
        item.write(data)
        if item.filled == item.out.nbytes:
            self._finish(item)

    def _finish(self, item: _Item) -> None:
        self.outcomes[item.index] = item.problem()
        self._item = None


class _Item:
    def __init__(self, index: int, want: Want, groups: Any) -> None:
        self.index = index
        self.out = want.out
        self.filled = 0
        self._key = want.ref.key
        self._offsets = (groups["offset"] - groups["offset"][:1]).astype(np.uint64)
        self._lengths = groups["length"].astype(np.uint64)
        self._ends = (self._offsets + self._lengths).tolist()
        self._expected = groups["xxh3"]
        self._hashed = 0
        self._damaged: list[int] = []
        if self._ends[-1:] != [self.out.nbytes]:
            raise SpecMismatch("the layer groups that the server announced do not cover what it sends")

    def write(self, data: memoryview) -> None:
        """Copy a piece to its place."""
        end = self.filled + len(data)
        self.out[self.filled : end] = data
        self.wrote(end)

    def wrote(self, end: int) -> None:
        """All before `end` has come: check the layer groups that are whole now."""
        self.filled = end
        first, whole = self._hashed, bisect_right(self._ends, end)
        if whole == first:
            return
        found = _native.xxh3_128_many(self.out, self._offsets[first:whole], self._lengths[first:whole])
        wrong = (found != self._expected[first:whole]).any(axis=1)
        self._damaged += [first + int(at) for at in np.flatnonzero(wrong)]
        self._hashed = whole

    def problem(self) -> KVStoreError | None:
        """`Corrupt` if a layer group did not match its checksum."""
        if not self._damaged:
            return None
        return Corrupt(f"layer groups {self._damaged} of {self._key.hex()} do not match their checksums")
