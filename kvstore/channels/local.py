"""The local channel: bytes are read where they lie, in the arena's extents; messages go over a Unix socket."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np

from kvstore import wire
from kvstore.api import Ack, ChunkInfo, Event, Fidelity, Found, Offer, PlacementInfo, Query, View, Want
from kvstore.channels import local_unasked
from kvstore.channels.bulk import BulkBackend
from kvstore.channels.control import Control, OwnReservation, found_from, lookup_request
from kvstore.channels.local_device import LocalDevices
from kvstore.channels.local_leases import Lease
from kvstore.channels.local_life import Life
from kvstore.channels.local_places import MARGIN_S, HeldPlaces, LocalPlaces
from kvstore.channels.local_put import LocalPuts
from kvstore.channels.local_read import fill, header_length
from kvstore.channels.local_releases import Releases
from kvstore.channels.local_share import share
from kvstore.channels.local_view import LocalView
from kvstore.channels.local_worth import Telling, weigh
from kvstore.channels.options import Options
from kvstore.channels.stream import Frame, Stream
from kvstore.decoding import FindArtefact, OwnView, raw_record
from kvstore.device_views import DeviceViews
from kvstore.errors import SpecMismatch, Unavailable
from kvstore.keys import ChunkRef
from kvstore.places import pack_items
from kvstore.record import RAW, unpack
from kvstore.spec import KVSpec, Part
from kvstore.v1 import kvstore_pb2 as pb

HOLD_S = 5.0  # how long a get may take for its copies


class LocalBackend(Control):
    """A `Backend` on the server's host.

    The memory of a get is mapped, its chunks are leased while they are copied, and the lease is looked at again
    after the copy: bytes that were copied too late do not count.
    """

    channel: ClassVar[str] = "local"

    def __init__(self, path: str, options: Options) -> None:
        from kvstore.channels.choose import open_lines

        super().__init__()
        self._path = path
        self._lines = open_lines(self._dial, options, f"local:{path}", aside=self._take_extents)
        self._inline = BulkBackend(self._lines)
        self._life: Life | None = None
        self._renewing = threading.Lock()
        self._own_leases = os.urandom(8)
        self._numbers = itertools.count()
        self._releases = Releases(self._lines)
        self._puts = LocalPuts(self._lines, self._life_of, self._releases.over)
        self._places = LocalPlaces(self, self._lines, self._inline, self._releases, self._life_of, self._new_lease)
        self._devices = LocalDevices(self._lines, self._life_of)
        self._telling = Telling()
        self._lingering: deque[tuple[LocalView, Callable[[], None]]] = deque()
        self._streams: weakref.WeakSet[Stream] = weakref.WeakSet()
        _backends.add(self)

    def call(self, method: str, request: Any, response: Any) -> Any:
        """One message and its answer."""
        return self._lines.call(method, request, response)

    def buffer(self, shape: int | Sequence[int], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        """An array that the server can read where it lies; see `Client.buffer`."""
        return self._puts.staging.array(shape, dtype)

    # Look-ups

    def lookup(self, query: Query) -> Found:
        """In shared memory, where that knows the answer, else by a call."""
        life = self._shared()
        if query.lease:
            unasked = query.prompt is None or not self._telling.is_due(query.spec.digest)
            return (self._lookup_unasked(life, query) if unasked else None) or self._leased_lookup(query)
        # Without a lease the index does not say where chunks lie, and so not what they are worth.
        found = None if life.index is None or query.prompt is not None else life.index.lookup(query)
        return super().lookup(query) if found is None else found

    def release(self, leases: Sequence[bytes]) -> None:
        """End leases, one way."""
        life = self._life
        known = [None if life is None else life.leases.drop(each) for each in leases]
        told = [each for each, lease in zip(leases, known, strict=True) if lease is None or lease.hazards is None]
        if told:
            self._releases.send(told)

    def _lookup_unasked(self, life: Life, query: Query) -> Found | None:
        answer = local_unasked.lookup(life, query)
        if answer is None:
            return None
        found, lease = answer
        old = life.leases.drop(query.lease)
        if old is not None and old.hazards is None:
            self._releases.add(query.lease)
        life.leases.add(query.lease, lease)
        shape = None if query.prompt is None or life.hazards is None else life.hazards.shape(query.spec)
        if query.prompt is not None and shape is not None:
            return weigh(found, query, query.prompt, shape.token_bytes, self.link_speed.bytes_per_s)
        return found

    def _leased_lookup(self, query: Query) -> Found:
        query = self.linked(query)
        message = lookup_request(query, places=True).SerializeToString()
        if self._life is not None:
            self._life.leases.drop(query.lease)  # the server replaces it: what it held may go from then on

        def attempt(line: Stream) -> tuple[Life, float, bytes]:
            life, sent = self._life_of(line), time.monotonic()
            return life, sent, self._lines.exchange(line, pb.METHOD_LOOKUP, message, self._releases.over())

        life, sent, told = self.with_spec(query.spec, lambda: self._lines.run(attempt))
        answer = pb.LookupResponse.FromString(told)
        found = found_from(answer)
        if answer.leased and answer.places:
            parts = {part: number for number, part in enumerate(query.parts or query.spec.all_parts)}
            deadline = sent + query.lease_s - MARGIN_S
            lease = Lease(query.spec.digest, query.refs, found.used, parts, answer.places, query.fidelity, deadline)
            life.leases.add(query.lease, lease)
        return found

    def _shared(self) -> Life:
        """What is known of the server, with the memory that is shared with it, as far as it has such."""
        life = self._life
        if life is None or not life.index_asked:
            life = self._lines.run(self._ask_to_share)
        return life

    def _ask_to_share(self, line: Stream) -> Life:
        life = self._life_of(line)
        share(self._lines, line, life)
        return life

    # Reading

    def get(
        self, spec: KVSpec, wants: Sequence[Want], *, fidelity: Fidelity = Fidelity.EXACT, verify: bool = False
    ) -> Sequence[Exception | None]:
        """Copy parts out of the arena: leased ones and those in shared memory without a call, others in one."""
        if self._lingering:
            self._sweep()
        began = time.monotonic()
        outcomes: list[Exception | None] = [None] * len(wants)
        life, left = self._life, list[int]()
        if life is None or not life.leases:
            left = list(range(len(wants)))
        else:
            for number, want in enumerate(wants):
                if not _read_leased(life, spec, want, fidelity, verify, self.find_artefact):
                    left.append(number)
        if left:
            left = local_unasked.read(self._shared(), spec, wants, left, verify, HOLD_S, self.find_artefact)
        if left:
            self._places.read(spec, wants, left, outcomes, fidelity, verify, HOLD_S)
        elif not verify:
            self.link_speed.seen(sum(want.out.nbytes for want in wants), time.monotonic() - began, warm=True)
        return outcomes

    def view(
        self, spec: KVSpec, ref: ChunkRef, part: Part, *, fidelity: Fidelity = Fidelity.EXACT, encoded: bool = False
    ) -> View:
        """A part where it lies, under a lease of its own without a time limit; decoded if it is stored encoded."""
        if self._lingering:
            self._sweep()
        spec.check_part(part)
        found = local_unasked.view(self._shared(), spec, ref, self._end_view)
        if found is not None:
            return found
        lease = self._new_lease()
        try:
            held = self._places.ask(spec, pack_items([(ref, part)]), fidelity, False, lease, 0.0)
            for error in held.failures.values():
                raise error
            (location, stored, form, _) = held.places[0]
            header = header_length(spec, part)
            memory = held.life.extents.memory(location, header, stored)
            if memory is None:
                raise SpecMismatch(f"the server named a place in an extent that it has not given: {location:#x}")
            if form != RAW and not encoded:
                own = self._decoded_view(held, spec, ref, part, memory[:header])
                self._releases.send([lease])
                return own
        except BaseException:
            self._releases.send([lease])
            raise
        return LocalView(memory, header, partial(self._end_view, partial(self._end_lease, held.life, lease)))

    def device_views(
        self, spec: KVSpec, refs: Sequence[ChunkRef], part: Part, *, device: Any = None, lease_s: float = 0.0
    ) -> DeviceViews:
        """Parts in the server's memory on a device, under a lease of their own."""
        spec.check_part(part)
        items, lease = pack_items([(ref, part) for ref in refs]), self._new_lease()
        release = partial(self._releases.send, [lease])
        return self.with_spec(spec, lambda: self._devices.views(spec, items, device, lease, lease_s, release))

    def _decoded_view(self, held: HeldPlaces, spec: KVSpec, ref: ChunkRef, part: Part, header: memoryview) -> OwnView:
        """What is placed, decoded into memory of its own."""
        data = np.empty(spec.part_bytes(part, ref.tokens), np.uint8).data
        record, want = unpack(header), Want(ref, part, data)
        problem = fill(held.life.extents, spec, want, held.places[0], True, self.find_artefact)
        if problem is not None:
            raise problem
        if held.life.ended:
            raise Unavailable(f"{self._lines.name} has ended")
        return OwnView(raw_record(record, data, spec), data)

    def _end_view(self, give_back: Callable[[], None], view: LocalView) -> None:
        if view.over():
            give_back()
        else:
            self._lingering.append((view, give_back))

    def _end_lease(self, life: Life, lease: bytes) -> None:
        if not life.ended:
            self._releases.send([lease])

    def _sweep(self) -> None:
        """Give back the leases of closed views that arrays stood on."""
        for _ in range(len(self._lingering)):
            with contextlib.suppress(IndexError):  # another thread sweeps too
                view, give_back = self._lingering.popleft()
                self._end_view(give_back, view)

    # Writing

    def put(self, spec: KVSpec, offer: Offer, *, ack: Ack = Ack.STORED) -> bool:
        """Store a part from staging memory; what lies elsewhere is copied there first."""
        if spec.digest not in self._registered:
            self.register(spec)
        try:
            told = self._puts.put(spec, offer, ack)
        except wire.UnknownSpec:
            self.register(spec)
            told = self._puts.put(spec, offer, ack)
        return self._inline.put(spec, offer, ack=ack) if told is None else told

    def reserve(self, spec: KVSpec, ref: ChunkRef, part: Part, *, first_valid: int = 0) -> OwnReservation:
        """Staging memory; `commit` puts it."""
        spec.check_part(part)
        data = self._puts.staging.lend(spec.part_bytes(part, ref.tokens))
        return OwnReservation(self, spec, ref, part, first_valid, data)

    # The rest

    def watch(self, *, lookups: bool = False) -> Iterator[Event]:
        """Events from now on."""
        return self._lines.watch(lookups)

    def verify(self) -> Iterator[tuple[ChunkInfo, PlacementInfo, str]]:
        """Have the server read everything back."""
        return self._lines.verify()

    def close(self) -> None:
        """End the session and every connection. Views keep their memory mapped, without a promise."""
        self._lines.close()
        with self._renewing:
            life, self._life = self._life, None
        if life is not None:
            life.end()

    def leave_to_parent(self) -> None:
        """In the child of a fork: session, leases and connections are the parent's, and every call is `Closed`."""
        self._lines.abandon()
        self._renewing = threading.Lock()
        life, self._life = self._life, None
        if life is not None:
            life.leave_to_parent()
        for stream in list(self._streams):
            stream.close()

    # Connections

    def _dial(self, deadline: float) -> Stream:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            sock.connect(self._path)
        except OSError as error:
            sock.close()
            raise Unavailable(f"local:{self._path}: {error.strerror or error}; is the server running?") from None
        stream = Stream(sock, self._lines.timeout, f"local:{self._path}")
        self._streams.add(stream)
        return stream

    def _life_of(self, line: Stream) -> Life:
        """The life of the server that a line leads to."""
        life = self._life
        if life is not None and life.instance == line.instance:
            return life
        with self._renewing:
            old = self._life
            if old is not None and old.instance == line.instance:
                return old
            anchor = self._lines.connect(line.deadline or time.monotonic() + self._lines.timeout)
            if anchor.instance != line.instance or self._lines.closed:
                anchor.close()
                raise Unavailable(f"{self._lines.name} was started again")
            self._registered.clear()
            self._life = life = Life(anchor)
        if old is not None:
            old.end()
        return life

    def _take_extents(self, line: Stream, frame: Frame) -> None:
        told = wire.parse(pb.Extents, frame.message)
        life = self._life
        if life is None or life.instance != line.instance:
            raise Unavailable(f"{self._lines.name} was started again")
        life.extents.take(line, told)

    def _new_lease(self) -> bytes:
        return self._own_leases + next(self._numbers).to_bytes(8, "little")


def _read_leased(life: Life, spec: KVSpec, want: Want, fidelity: Fidelity, verify: bool, find: FindArtefact) -> bool:
    """Copy a part that is under a lease of ours; False where it has to be asked for, whatever the reason."""
    found = life.leases.find(spec.digest, want.ref, want.part, fidelity)
    if found is None:
        return False
    lease, place = found
    outcome = fill(life.extents, spec, want, place, verify, find)
    return outcome is None and not lease.is_over() and not life.ended


_backends: weakref.WeakSet[LocalBackend] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_backends):
        each.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
