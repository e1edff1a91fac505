"""What other servers ask on the bulk channel: which records are here, and their bytes as they lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvstore import wire
from kvstore.channels.stream import Frame, Stream, encode
from kvstore.errors import InvalidArgument
from kvstore.peer_wire import NO_ROW, pack_row, split_names
from kvstore.records import Records
from kvstore.server.streams import PeerHandler
from kvstore.v1 import kvstore_pb2 as pb

_RECORD_ANSWER = pb.RecordResponse().SerializeToString()


def handlers(records: Records) -> Mapping[int, PeerHandler]:
    """By the number of the method."""

    def find(stream: Stream, frame: Frame) -> None:
        request = _request(pb.FindRequest, frame)
        found = records.find(split_names(request.names), used=request.used)
        rows = b"".join(NO_ROW if entry is None else pack_row(entry) for entry in found)
        stream.send(frame.method, pb.FindResponse(rows=rows).SerializeToString())

    def record(stream: Stream, frame: Frame) -> None:
        request = _request(pb.RecordRequest, frame)
        (name,) = split_names(request.name)
        with records.read(name, request.offset, request.bytes, request.form, request.total) as held:
            stream.send_raw((encode(frame.method, _RECORD_ANSWER, 0, len(held.data)), held.data))

    return {pb.METHOD_FIND: find, pb.METHOD_RECORD: record}


def _request(kind: Any, frame: Frame) -> Any:
    if frame.payload:
        raise InvalidArgument(f"method {frame.method} takes no payload")
    return wire.parse(kind, frame.message)
