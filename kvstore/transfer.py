"""Payload on its way out of a store and into it, as plain memory: what a `Service` hands to its fronts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore import _native, wire
from kvstore.api import Ack, Backend, Fidelity, Reservation, View, Want
from kvstore.decoding import covering, layer_count
from kvstore.errors import InvalidArgument, KVStoreError, NotFound, SpecMismatch
from kvstore.keys import ChunkRef
from kvstore.record import RAW, Record
from kvstore.spec import KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb

MAX_RUN = 256


@dataclass(frozen=True)
class GetPlan:
    """A get that was checked: what, how good, and which layer groups of each."""

    spec: KVSpec
    items: list[tuple[ChunkRef, Part]]
    layers: list[tuple[int, int] | None]
    fidelity: Fidelity
    verify: bool
    forms: frozenset[int]


@dataclass
class Outgoing:
    """One part on its way out: the encoded head, the payload's memory, and what gives that memory back."""

    head: bytes
    data: memoryview
    dispose: Callable[[], None] | None = None

    def close(self) -> None:
        """Give the memory back."""
        dispose, self.dispose = self.dispose, None
        if dispose is not None:
            self.data = memoryview(b"")
            dispose()


def plan_get(spec: KVSpec, request: Any) -> GetPlan:
    """Check a `GetRequest`."""
    items = wire.items_from_bytes(request.items, spec)
    layers = wire.layers_from_message(request.layers, len(items))
    fidelity = wire.fidelity_from_number(request.fidelity)
    return GetPlan(spec, items, layers, fidelity, request.verify, frozenset(request.accept_forms) | {RAW})


def open_item(backend: Backend, plan: GetPlan, index: int) -> Outgoing:
    """One item of a get, its layers cut out of a view. Raises what the backend raises."""
    view, record = _open_view(backend, plan, index)
    try:
        return _Cutter(plan.spec, record, view.data).cut(plan, index, view.close)
    except BaseException:
        view.close()
        raise


def open_run(backend: Backend, plan: GetPlan, first: int) -> list[Outgoing]:
    """The items from `first` on that are of the same part, cut out of one view. A failure is its item's head."""
    end = first + 1
    while end < len(plan.items) and end < first + MAX_RUN and plan.items[end] == plan.items[first]:
        end += 1
    found: list[Outgoing] = []
    try:
        view, record = _open_view(backend, plan, first)
    except KVStoreError as error:
        return [failed_item(index, error) for index in range(first, end)]
    left = end - first

    def close_one() -> None:
        nonlocal left
        left -= 1
        if not left:
            view.close()

    cutter = _Cutter(plan.spec, record, view.data)
    for index in range(first, end):
        try:
            found.append(cutter.cut(plan, index, close_one))
        except KVStoreError as error:
            found.append(failed_item(index, error))
            close_one()
    return found


def failed_item(index: int, error: KVStoreError) -> Outgoing:
    """What is sent for an item that cannot be had."""
    text = str(error)[: wire.MAX_ERROR_CHARACTERS]
    head = pb.GetResponse.Head(item=index, status=error.status, error=wire.error_name(error), message=text)
    return Outgoing(pb.GetResponse(head=head).SerializeToString(), memoryview(b""))


def _open_view(backend: Backend, plan: GetPlan, index: int) -> tuple[View, Record]:
    """A view of what an item asks for, checked if it wants that, and its header, which takes a while to read."""
    ref, part = plan.items[index]
    view = backend.view(plan.spec, ref, part, fidelity=plan.fidelity, encoded=True)
    good = False
    try:
        record = view.record
        if record.form not in plan.forms:
            return _open_decoded(backend, plan, index)
        if plan.verify and not _intact(view):
            view.close()
            raise _quarantine(backend, plan, index)
        good = True
        return view, record
    finally:
        if not good:
            view.close()


def _open_decoded(backend: Backend, plan: GetPlan, index: int) -> tuple[View, Record]:
    """A view of raw bytes for a caller who does not take the form in which they are stored."""
    ref, part = plan.items[index]
    if plan.verify:
        data = np.empty(plan.spec.part_bytes(part, ref.tokens), np.uint8).data
        (outcome,) = backend.get(plan.spec, [Want(ref, part, data)], fidelity=plan.fidelity, verify=True)
        if outcome is not None:
            raise outcome
    view = backend.view(plan.spec, ref, part, fidelity=plan.fidelity)
    return view, view.record


class _Cutter:
    """Cuts layers, or the frames that cover them, out of one part's bytes, and writes their heads."""

    def __init__(self, spec: KVSpec, record: Record, data: memoryview) -> None:
        self._count = layer_count(spec, record.part)
        self._encoded = record.form != RAW
        self._groups = record.groups
        self._data = data
        self._response = pb.GetResponse()
        self._response.head.record.CopyFrom(wire.record_to_message(record, record.groups[:0]))

    def cut(self, plan: GetPlan, index: int, dispose: Callable[[], None]) -> Outgoing:
        """The layers that an item asks for. `InvalidArgument` where there are none such."""
        groups, layers = self._groups, plan.layers[index]
        if layers is not None:
            if not 0 <= layers[0] < layers[1] <= self._count:
                raise InvalidArgument(f"layers {layers} are outside the part's {self._count} layer groups")
            first, end = covering(self._data, groups, layers, self._count) if self._encoded else layers
            groups = groups[first:end]
        last = groups[-1]
        start, end = int(groups[0]["offset"]), int(last["offset"]) + int(last["length"])
        head = self._response.head
        head.item, head.bytes, head.record.groups = index, end - start, groups.tobytes()
        return Outgoing(self._response.SerializeToString(), self._data[start:end], dispose)


def _intact(view: View) -> bool:
    groups = view.record.groups
    found = _native.xxh3_128_many(view.data, groups["offset"].astype(np.uint64), groups["length"].astype(np.uint64))
    return np.array_equal(found, groups["xxh3"])


def _quarantine(backend: Backend, plan: GetPlan, index: int) -> KVStoreError:
    """Have the store itself find damaged bytes, which it then takes out; nobody may be looking at them meanwhile."""
    ref, part = plan.items[index]
    scratch = memoryview(bytearray(plan.spec.part_bytes(part, ref.tokens)))
    (outcome,) = backend.get(plan.spec, [Want(ref, part, scratch)], fidelity=plan.fidelity, verify=True)
    if isinstance(outcome, KVStoreError):
        return outcome
    return NotFound(f"the copy of {ref.key.hex()} was damaged and has been replaced meanwhile; ask again")


class Incoming:
    """One part on its way in: fill it with `write` in any pieces, then `finish`; or `abort`."""

    def __init__(self, reservation: Reservation, ack: Ack, expect: bytes) -> None:
        self._reservation = reservation
        self._ack = ack
        self._expect = expect
        self._filled = 0
        self._announced = len(reservation.data)

    def write(self, data: memoryview) -> None:
        """Take the next piece; `InvalidArgument` if it is more than was announced."""
        end = self._filled + len(data)
        if end > self._announced:
            raise InvalidArgument(f"the payload is longer than announced: {end} bytes and more, not {self._announced}")
        self._reservation.data[self._filled : end] = data
        self._filled = end

    @property
    def announced(self) -> int:
        """How many bytes are to come."""
        return self._announced

    def fill(self, read_into: Callable[[memoryview], None]) -> None:
        """Have all of it read straight into the store's memory."""
        read_into(self._reservation.data)
        self._filled = self._announced

    def finish(self) -> Any:
        """Publish what came, if it is all and undamaged."""
        if self._filled != self._announced:
            raise InvalidArgument(f"the payload is shorter than announced: {self._filled} bytes, not {self._announced}")
        return pb.PutResponse(stored=self._reservation.commit(self._ack, expect=self._expect))

    def abort(self) -> None:
        """Give the memory back. After `finish` it does nothing."""
        self._reservation.abort()


@dataclass(frozen=True, slots=True)
class Announced:
    """A put's head, checked: what is offered, how long it is, and the checksums that came with it (or none)."""

    spec: KVSpec
    ref: ChunkRef
    part: Part
    first_valid: int
    nbytes: int
    ack: Ack
    expect: bytes


def check_put(spec: KVSpec, head: Any) -> Announced:
    """Check a put's head against its spec."""
    record = head.record
    ref = wire.ref_from_record(record)
    part, nbytes = wire.sized_part(spec, record.part, ref.tokens)
    if record.spec and record.spec != head.spec:
        raise SpecMismatch(f"the record is of spec {record.spec.hex()}, the put of spec {head.spec.hex()}")
    if record.form != RAW:
        raise InvalidArgument(f"puts take raw bytes (form 0), not form {record.form}: the store chooses the codec")
    if not (record.logical in (0, nbytes) and record.stored in (0, nbytes)):
        raise SpecMismatch(
            f"{part} of {ref.tokens} tokens has {nbytes} bytes in this spec; the record announces "
            f"{record.logical} logical and {record.stored} stored"
        )
    check_first_valid(record.first_valid, spec, part, ref.tokens)
    ack = wire.ack_from_number(head.ack)
    expect = wire.digests_from_bytes(record.groups, spec.layer_ranges(part, ref.tokens)) if record.groups else b""
    return Announced(spec, ref, part, record.first_valid, nbytes, ack, expect)


def start_put(backend: Backend, spec: KVSpec, head: Any) -> Incoming:
    """Check a put's head and reserve memory for it."""
    put = check_put(spec, head)
    reservation = backend.reserve(spec, put.ref, put.part, first_valid=put.first_valid)
    return Incoming(reservation, put.ack, put.expect)


def check_first_valid(first_valid: int, spec: KVSpec, part: Part, tokens: int) -> None:
    """Raise `InvalidArgument` for a first valid token that a part cannot have."""
    if first_valid and not (spec.groups[part.group].window and first_valid < tokens):
        raise InvalidArgument(f"first_valid={first_valid} is for sliding-window groups and below {tokens} tokens")
