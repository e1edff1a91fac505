"""Reading the items of a get into the caller's memory, verified while they arrive."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kvstore import pieces, wire
from kvstore.api import Want
from kvstore.channels.arriving import Arriving, Groups
from kvstore.decoding import FindArtefact, decode_layers, known_forms, threads_for
from kvstore.errors import Corrupt, InvalidArgument, KVStoreError, SpecMismatch
from kvstore.record import RAW, padded
from kvstore.spec import KVSpec
from kvstore.v1 import kvstore_pb2 as pb


class Receiver:
    """Takes the messages of one get. `outcomes` holds what is finished: None, or what went wrong with an item.

    `indexes` are the positions in `wants` that this get asks for, in order.
    """

    def __init__(self, spec: KVSpec, wants: Sequence[Want], indexes: Sequence[int], find: FindArtefact) -> None:
        self.outcomes: dict[int, KVStoreError | None] = {}
        self._spec = spec
        self._wants = wants
        self._indexes = indexes
        self._find = find
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
        if self._item is not None or head.item != len(self.outcomes) or head.item >= len(self._indexes):
            raise SpecMismatch(f"the server answered item {head.item} out of turn")
        index = self._indexes[head.item]
        if head.status:
            kind = wire.error_classes().get(head.error, KVStoreError)
            self.outcomes[index] = kind(head.message)
            return
        self._item = _Item(index, self._spec, self._wants[index], head, self._find)

    def read(self, nbytes: int, read_into: Callable[[memoryview], None]) -> None:
        """An item's payload, read straight into its destination."""
        item = self._item
        if nbytes != (0 if item is None else len(item.arriving.data)):
            raise SpecMismatch(f"the server sends {nbytes} bytes of payload, not what its head announced")
        if item is not None:
            item.arriving.read(read_into)
            self._finish(item)

    def _fill(self, data: memoryview) -> None:
        item = self._item
        if item is None or item.arriving.filled + len(data) > len(item.arriving.data):
            raise SpecMismatch("the server sent more bytes than it announced")
        item.arriving.write(data)
        if item.arriving.filled == len(item.arriving.data):
            self._finish(item)

    def _finish(self, item: _Item) -> None:
        self.outcomes[item.index] = item.problem()
        self._item = None


def damaged_groups(numbers: Sequence[int], key: bytes) -> Corrupt:
    """What a reader is told of layer groups that came otherwise than they were announced."""
    return Corrupt(f"layer groups {list(numbers)} of {key.hex()} do not match their checksums")


class _Item:
    """One destination, and the checksums that the server announced for it.

    Raw bytes arrive in the destination; frames beside it, from where they are decoded.
    """

    def __init__(self, index: int, spec: KVSpec, want: Want, head: Any, find: FindArtefact) -> None:
        record = head.record
        asked = (want.ref.key, spec.digest, want.part.pack(), want.ref.position, want.ref.tokens)
        if (record.key, record.spec, record.part, record.position, record.tokens) != asked:
            raise SpecMismatch(
                f"asked for {want.part} of {want.ref.key.hex()}, spec {spec.digest.hex()}; the server sent "
                f"part {record.part.hex()} of {record.key.hex()}, spec {record.spec.hex()}"
            )
        self.index = index
        self._spec, self._want, self._form, self._find = spec, want, record.form, find
        groups = Groups.of(spec, want.part, want.ref.tokens, want.layers)
        if want.out.nbytes != groups.ends[-1]:
            raise InvalidArgument(f"the destination has {want.out.nbytes} bytes, not the {groups.ends[-1]} asked for")
        memory = want.out
        if record.form != RAW:
            groups, memory = self._beside(record, head.bytes), np.empty(head.bytes, np.uint8).data
        expected = groups.expected(record.groups)
        if head.bytes != groups.ends[-1]:
            raise SpecMismatch(
                f"the server sends {head.bytes} bytes in form {record.form} for {want.part} of {want.ref.tokens} "
                f"tokens, whose layer groups have {groups.ends[-1]}"
            )
        if expected is None:
            raise SpecMismatch("the layer groups that the server announced are not those that were asked for")
        self.arriving = Arriving(memory, groups)
        self._expected = expected

    def _beside(self, record: Any, nbytes: int) -> Groups:
        """Of frames; no store keeps more of them than the raw part would take."""
        whole = padded(self._spec.part_bytes(self._want.part, self._want.ref.tokens))
        if record.form not in known_forms() or not 0 < nbytes <= whole:
            raise SpecMismatch(f"the server sends {nbytes} bytes in form {record.form}, which nobody asked for")
        return Groups.of_frames(record.groups)

    def problem(self) -> KVStoreError | None:
        """`Corrupt` if a layer group did not match its checksum, and what keeps frames from being decoded."""
        found, expected, want = self.arriving.digests, self._expected, self._want
        if found != expected:
            damaged = [i // 16 for i in range(0, len(expected), 16) if found[i : i + 16] != expected[i : i + 16]]
            return damaged_groups(damaged, want.ref.key)
        if self._form == RAW:
            return None
        try:
            decode_layers(
                self.arriving.data, want.out, self._spec, want.ref, want.part, want.layers, self._find,
                threads=threads_for(want.out.nbytes),
            )  # fmt: skip
        except KVStoreError as error:
            return error
        return None
