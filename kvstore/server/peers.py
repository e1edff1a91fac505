"""What other servers ask on the bulk channel: which records are here, and their bytes as they lie."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

from kvstore import _native, wire
from kvstore.channels.stream import Frame, Stream, encode
from kvstore.errors import InvalidArgument
from kvstore.keys import check_key
from kvstore.objects import Objects
from kvstore.peer_wire import MOST_HEAD_BYTES, MOST_NAMES, NO_ROW, pack_row, split_names
from kvstore.records import Records
from kvstore.server.streams import PeerCalls, PeerHandler, send_held
from kvstore.v1 import kvstore_pb2 as pb

_RECORD_ANSWER = pb.RecordResponse().SerializeToString()
_OBJECT_ANSWER = pb.ReadObjectResponse().SerializeToString()


def peer_calls(records: Records, objects: Objects) -> PeerCalls:
    """What answers other servers."""
    reads = records.native_reads(pb.METHOD_RECORD, pb.METHOD_READ_OBJECT)
    objects.teach(reads)
    return PeerCalls({**_of_records(records, reads), **_of_objects(objects, reads)}, reads)


def _of_records(records: Records, reads: _native.PeerReads) -> Mapping[int, PeerHandler]:

    def find(stream: Stream, frame: Frame) -> None:
        request = _request(pb.FindRequest, frame)
        found = records.find(split_names(request.names), used=request.used)
        rows = b"".join(NO_ROW if entry is None else pack_row(entry) for entry in found)
        stream.send(frame.method, pb.FindResponse(rows=rows).SerializeToString())

    def record(stream: Stream, frame: Frame) -> None:
        if send_held(stream, frame, reads):
            return
        request = _request(pb.RecordRequest, frame)
        (name,) = split_names(request.name)
        with records.read(name, request.offset, request.bytes, request.form, request.total) as held:
            stream.send_raw((encode(frame.method, _RECORD_ANSWER, 0, len(held.data)), held.data))

    return {pb.METHOD_FIND: find, pb.METHOD_RECORD: record}


def _of_objects(objects: Objects, reads: _native.PeerReads) -> Mapping[int, PeerHandler]:
    def put(stream: Stream, frame: Frame) -> None:
        request = wire.parse(pb.PutObjectRequest, frame.message)
        stored = objects.put(request.name, frame.payload, stream.read_into)
        stream.skip()
        stream.send(frame.method, pb.PutObjectResponse(stored=stored).SerializeToString())

    def read(stream: Stream, frame: Frame) -> None:
        if send_held(stream, frame, reads):
            return
        request = _request(pb.ReadObjectRequest, frame)

        def send(data: memoryview) -> None:
            stream.send_raw((encode(frame.method, _OBJECT_ANSWER, 0, len(data)), data))

        objects.read(check_key(request.key), request.offset, request.bytes, send)

    def heads(stream: Stream, frame: Frame) -> None:
        request = _request(pb.ObjectHeadsRequest, frame)
        if len(request.names) > MOST_NAMES or len(request.names) * request.bytes > MOST_HEAD_BYTES:
            raise InvalidArgument(
                f"{len(request.names)} heads of {request.bytes} bytes are more than {MOST_NAMES} or {MOST_HEAD_BYTES}"
            )
        found = objects.heads(request.names, request.bytes)
        lengths = struct.pack(f"<{len(found)}i", *(-1 if head is None else len(head) for head in found))
        data = b"".join(head for head in found if head)
        answer = pb.ObjectHeadsResponse(lengths=lengths).SerializeToString()
        stream.send_raw((encode(frame.method, answer, 0, len(data)), data))

    def delete(stream: Stream, frame: Frame) -> None:
        objects.delete(_request(pb.DeleteObjectsRequest, frame).names)
        stream.send(frame.method, pb.DeleteObjectsResponse().SerializeToString())

    def listed(stream: Stream, frame: Frame) -> None:
        request = _request(pb.ListObjectsRequest, frame)
        found, cursor = objects.list(request.prefix, request.cursor)
        names, sizes = [name for name, _ in found], [nbytes for _, nbytes in found]
        answer = pb.ListObjectsResponse(names=names, bytes=sizes, cursor=cursor)
        stream.send(frame.method, answer.SerializeToString())

    return {
        pb.METHOD_PUT_OBJECT: put,
        pb.METHOD_READ_OBJECT: read,
        pb.METHOD_OBJECT_HEADS: heads,
        pb.METHOD_DELETE_OBJECTS: delete,
        pb.METHOD_LIST_OBJECTS: listed,
    }


def _request(kind: Any, frame: Frame) -> Any:
    if frame.payload:
        raise InvalidArgument(f"method {frame.method} takes no payload")
    return wire.parse(kind, frame.message)
