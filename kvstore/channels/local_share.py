"""What a client on the server's host shares with it in memory: its index, and what the client reads by that."""

from __future__ import annotations

import os

from kvstore import _native
from kvstore.channels.lines import Lines
from kvstore.channels.local_hazards import HazardLeases
from kvstore.channels.local_life import Life
from kvstore.channels.stream import Stream
from kvstore.errors import DeadlineExceeded, KVStoreError, Unavailable
from kvstore.shared_index import SharedIndex
from kvstore.v1 import kvstore_pb2 as pb


def share(lines: Lines, line: Stream, life: Life) -> None:
    """Ask once in a server's life for its index, and give it a hazard table; neither where it has no memory for it."""
    with life.lock:
        if life.index_asked:
            return
        try:
            told = lines.ask(line, pb.METHOD_INDEX, b"")
            descriptor = line.take_descriptor()
            try:
                life.index = SharedIndex(descriptor, pb.IndexResponse.FromString(told).bytes)
            finally:
                os.close(descriptor)
            life.hazards = _share_hazards(lines, line, HazardLeases(life.index, life.anchor))
        except (Unavailable, DeadlineExceeded):
            raise
        except KVStoreError:  # a server without one, or no memory for it: ask the server itself
            pass
        life.index_asked = True


def _share_hazards(lines: Lines, line: Stream, hazards: HazardLeases) -> HazardLeases:
    message = pb.HazardsRequest(bytes=_native.HAZARD_TABLE_BYTES).SerializeToString()
    line.in_step = False
    line.send(pb.METHOD_HAZARDS, message, descriptors=(hazards.fileno(),))
    answer = pb.HazardsResponse.FromString(lines.answer(line).message)
    hazards.begin(answer.lease_limit_ms / 1000, asks_misses=answer.asks_misses)
    return hazards
