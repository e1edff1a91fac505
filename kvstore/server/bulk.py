"""Payload behind the frames: a get straight out of the arena, a put straight into it."""

from __future__ import annotations

from collections.abc import Mapping

from kvstore import wire
from kvstore.channels.stream import BadFrame, Frame
from kvstore.errors import KVStoreError
from kvstore.server.streams import Connection, Handler
from kvstore.v1 import kvstore_pb2 as pb


def handlers() -> Mapping[int, Handler]:
    """By the number of the method."""
    return {pb.METHOD_GET: get, pb.METHOD_PUT: put}


def get(connection: Connection, frame: Frame) -> None:
    """Every item in order: a frame with its head, its payload behind it."""
    service, session, stream = connection.service, connection.session, connection.stream
    plan = service.plan_get(session, wire.parse(pb.GetRequest, frame.message))
    for index in range(len(plan.items)):
        outgoing = service.open_item(session, plan, index)
        try:
            stream.send(frame.method, outgoing.head, payload=(outgoing.data,))
        finally:
            outgoing.close()


def put(connection: Connection, frame: Frame) -> None:
    """Take the payload straight into the store's memory."""
    service, session, stream = connection.service, connection.session, connection.stream
    try:
        request = wire.parse(pb.PutRequest, frame.message)
        incoming = service.start_put(session, request.head)
    except KVStoreError:
        stream.skip(frame.payload)
        raise
    try:
        if incoming.announced != frame.payload:
            raise BadFrame(f"{frame.payload} bytes follow a head that announces {incoming.announced}")
        incoming.fill(stream.read_into)
        connection.answer(frame, incoming.finish())
    finally:
        incoming.abort()
