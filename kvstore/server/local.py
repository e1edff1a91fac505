"""The calls of the local channel: where the bytes lie, descriptors to map them by, puts from staging memory."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from kvstore import wire
from kvstore.api import Ack, Offer
from kvstore.channels.stream import MAX_DESCRIPTORS, BadFrame, Frame
from kvstore.errors import Closed, InvalidArgument, KVStoreError, PermissionDenied
from kvstore.keys import ChunkRef
from kvstore.places import EXTENT_SHIFT, NOWHERE, unpack_places
from kvstore.server.local_staging import KNOWN, STORED, StagingArea, check_sealed
from kvstore.server.streams import Connection, Handler
from kvstore.session import Session
from kvstore.transfer import check_first_valid
from kvstore.v1 import kvstore_pb2 as pb

if TYPE_CHECKING:
    from kvstore.tiers.hbm.ipc import SharedSlab


def handlers() -> Mapping[int, Handler]:
    """By the number of the method."""
    calls = LocalCalls()
    found: dict[int, Handler] = {
        pb.METHOD_LOOKUP: calls.lookup,
        pb.METHOD_PLACE: calls.place,
        pb.METHOD_STAGE: calls.stage,
        pb.METHOD_PUT_STAGED: calls.put_staged,
        pb.METHOD_INDEX: calls.index,
        pb.METHOD_HAZARDS: calls.hazards,
        pb.METHOD_DEVICE_PLACES: calls.device_places,
    }
    return found


class Given:
    """The extents that a connection has been told of, and when that was."""

    def __init__(self) -> None:
        self.epoch = -1
        self.numbers: frozenset[int] = frozenset()


class LocalCalls:
    """The handlers of one server."""

    def __init__(self) -> None:
        self._given: WeakKeyDictionary[Connection, Given] = WeakKeyDictionary()

    def lookup(self, connection: Connection, frame: Frame) -> None:
        """A look-up; with a lease also where the chunks lie, if that is asked."""
        request = wire.parse(pb.LookupRequest, _alone(frame))
        places = bool(request.places and request.lease)
        answer = connection.service.lookup(connection.session, request, places=places)
        if places:
            self._tell_extents(connection)
        connection.answer(frame, answer)

    def place(self, connection: Connection, frame: Frame) -> None:
        """Bring parts into DRAM, lease them, and say where they lie."""
        request = wire.parse(pb.PlaceRequest, _alone(frame))
        placed = _store(connection).place_packed(
            connection.session.spec(request.spec),
            request.items,
            fidelity=wire.fidelity_from_number(request.fidelity),
            verify=request.verify,
            lease=request.lease,
            lease_s=request.lease_ms / 1000,
        )
        answer = pb.PlaceResponse(places=placed.places)
        for item, error in placed.failures.items():
            answer.failed.add(item=item, failure=wire.failure_to_message(error))
        try:
            self._tell_extents(connection)
            connection.answer(frame, answer)
        except KVStoreError:  # a lease that nobody knows of would never be released
            _store(connection).release([request.lease])
            raise

    def device_places(self, connection: Connection, frame: Frame) -> None:
        """Say what lies on a device, lease it, and say how to open the slabs that it lies in."""
        request = wire.parse(pb.DevicePlacesRequest, _alone(frame))
        store = _store(connection)
        places = store.device_places(
            connection.session.spec(request.spec),
            request.items,
            device=request.device,
            lease=request.lease,
            lease_s=request.lease_ms / 1000,
        )
        shared: list[SharedSlab] = []
        try:
            for number in sorted({place[0] >> EXTENT_SHIFT for place in unpack_places(places) if place[0] != NOWHERE}):
                shared.append(store.share_slab(request.device, number))
            descriptors = [each.descriptor for each in shared if each.descriptor >= 0]
            if len(descriptors) > MAX_DESCRIPTORS:
                raise InvalidArgument(f"what was asked for lies in {len(descriptors)} files; ask for less at once")
            answer = pb.DevicePlacesResponse(places=places)
            for each in shared:
                answer.slabs.add(
                    number=each.number, identity=each.identity, bytes=each.nbytes, opening=each.opening,
                    descriptor=each.descriptor >= 0,
                )  # fmt: skip
            connection.stream.send(frame.method, answer.SerializeToString(), descriptors=descriptors)
        except KVStoreError:  # a lease that nobody knows of would never be released
            store.release([request.lease])
            raise
        finally:
            for each in shared:
                if each.descriptor >= 0:
                    os.close(each.descriptor)

    def stage(self, connection: Connection, frame: Frame) -> None:
        """Map memory of the client."""
        request = wire.parse(pb.StageRequest, _alone(frame))
        descriptor = connection.stream.take_descriptor()
        try:
            connection.session.own(StagingArea).add(request.number, request.bytes, descriptor)
        finally:
            os.close(descriptor)
        connection.puts = connection.session.own(StagingArea).puts
        connection.answer(frame, pb.StageResponse())

    def put_staged(self, connection: Connection, frame: Frame) -> None:
        """A put from memory that the client has staged.

        Those that are like one that went well do not come here any more: they are taken natively.

        A client that gave up may write there again, or put something else: then its connection is closed. What was
        copied before that was as it should be.
        """
        put = wire.staged_put_from_bytes(wire.parse(pb.StagedPutRequest, _alone(frame)).put)
        session, stream = connection.session, connection.stream
        spec = session.spec(put.spec)
        part, nbytes = wire.sized_part(spec, put.part, put.tokens)
        if put.first_valid:
            check_first_valid(put.first_valid, spec, part, put.tokens)
        ack = wire.ack_from_number(put.ack)
        staging = session.own(StagingArea)
        connection.puts = staging.puts
        data = staging.memory(put.staging, put.offset, nbytes)

        def confirm() -> None:
            if stream.ended():
                raise Closed("the client gave this put up")

        offer = Offer(ChunkRef(put.key, put.parent, put.position, put.tokens), part, data, put.first_valid)
        stored = _store(connection).put_confirmed(spec, offer, ack, confirm)
        stream.send(frame.method, STORED if stored else KNOWN)
        if stored and ack is Ack.STORED:
            _store(connection).teach(staging.puts, spec, part, put.tokens)

    def index(self, connection: Connection, frame: Frame) -> None:
        """The descriptor of the namespace's index in shared memory."""
        wire.parse(pb.IndexRequest, _alone(frame))
        descriptor, nbytes = _store(connection).open_shared_index()
        try:
            answer = pb.IndexResponse(bytes=nbytes).SerializeToString()
            connection.stream.send(frame.method, answer, descriptors=(descriptor,))
        finally:
            os.close(descriptor)

    def hazards(self, connection: Connection, frame: Frame) -> None:
        """Honour a hazard table of the client; it learns of the extents that it may read."""
        request = wire.parse(pb.HazardsRequest, _alone(frame))
        descriptor = connection.stream.take_descriptor()
        try:
            check_sealed(descriptor, request.bytes, "hazard table")
            limit_s = _store(connection).honour(descriptor, request.bytes)
        finally:
            os.close(descriptor)
        self._tell_extents(connection)
        limit_ms, asks_misses = int(min(limit_s, 1e12) * 1000), _store(connection).asks_misses
        connection.answer(frame, pb.HazardsResponse(lease_limit_ms=limit_ms, asks_misses=asks_misses))

    def _tell_extents(self, connection: Connection) -> None:
        """Give the descriptors of extents that are new to a connection, and tell which are gone.

        After what is answered was put under a lease: an extent with a leased chunk in it does not go.
        """
        given = self._given.get(connection)
        if given is None:
            given = self._given.setdefault(connection, Given())
        store = _store(connection)
        epoch = store.extents_epoch
        if given.epoch == epoch:
            return
        now = store.extents()
        gone, new = sorted(given.numbers - now), sorted(now - given.numbers)
        for start in range(0, max(len(new), bool(gone)), MAX_DESCRIPTORS):
            _give(connection, store, new[start : start + MAX_DESCRIPTORS], gone if not start else ())
        given.epoch, given.numbers = epoch, now


def _give(connection: Connection, store: Session, new: Sequence[int], gone: Sequence[int]) -> None:
    message = pb.Extents(gone=gone)
    descriptors: list[int] = []
    try:
        for number in new:
            try:
                descriptor, nbytes = store.open_extent(number)
            except PermissionDenied:  # given away meanwhile
                continue
            descriptors.append(descriptor)
            message.given.add(number=number, bytes=nbytes)
        connection.stream.send(pb.METHOD_EXTENTS, message.SerializeToString(), descriptors=descriptors)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)


def _store(connection: Connection) -> Session:
    """The session as the embedded store gives it: the channels serve no other backend."""
    store: Session = connection.session.backend  # type: ignore[assignment]
    return store


def _alone(frame: Frame) -> bytes:
    """The message of a frame that has no payload."""
    if frame.payload:
        raise BadFrame(f"method {frame.method} takes no payload")
    return frame.message
