"""Puts over the local channel: from staging memory, which the server reads. What lies elsewhere is copied there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kvstore import _native, wire
from kvstore.api import Ack, Offer
from kvstore.channels.lines import Lines
from kvstore.channels.local_life import Life
from kvstore.channels.staging import Segment, Staging
from kvstore.channels.stream import Stream
from kvstore.spec import KVSpec
from kvstore.v1 import kvstore_pb2 as pb

SMALL_BYTES = 4 << 20  # a put of so much goes through staging memory that is in the processor's cache
_STORED = pb.PutResponse(stored=True).SerializeToString()


class LocalPuts:
    """The staging memory of one client, and the puts from it.

    `life_of` gives the server's life that a line leads to, `over` what is to be said ahead of a call.
    """

    def __init__(self, lines: Lines, life_of: Callable[[Stream], Life], over: Callable[[], bytes]) -> None:
        self.staging = Staging()
        self._lines, self._life_of, self._over = lines, life_of, over

    def put(self, spec: KVSpec, offer: Offer, ack: Ack) -> bool | None:
        """Store a part of a spec that the server knows; None where there is no staging memory for it."""
        data = offer.data
        staged = self.staging.find(data)
        if staged is not None:
            return self._put_staged(spec, offer, ack, *staged)
        piece = self.staging.take(data.nbytes)
        if piece is None:
            return None
        try:
            if data.nbytes <= SMALL_BYTES:
                np.copyto(np.frombuffer(piece.data, np.uint8), np.frombuffer(data, np.uint8))
            else:
                _native.copy(piece.data, data)
            return self._put_staged(spec, offer, ack, piece.segment, piece.offset)
        finally:
            self.staging.give_back(piece)

    def _put_staged(self, spec: KVSpec, offer: Offer, ack: Ack, segment: Segment, offset: int) -> bool:
        ref = offer.ref
        put = wire.StagedPut(
            spec.digest, ref.key, ref.parent, offer.part.pack(), ref.position, ref.tokens, offer.first_valid,
            wire.ack_to_number(ack), segment.number, offset,
        )  # fmt: skip
        message = wire.STAGED_PUT_PREFIX + wire.staged_put_to_bytes(put)

        def attempt(line: Stream) -> bytes:
            life = self._life_of(line)
            if segment.number not in life.staged:
                self._stage(line, life, segment)
            try:
                return self._lines.exchange(line, pb.METHOD_PUT_STAGED, message, self._over())
            finally:
                if not line.in_step:  # tells the server, before the caller can write to the memory again
                    line.shut()

        answer = self._lines.run(attempt)
        return answer == _STORED or bool(pb.PutResponse.FromString(answer).stored)

    def _stage(self, line: Stream, life: Life, segment: Segment) -> None:
        """Give a segment's descriptor to the server."""
        with life.lock:
            if segment.number in life.staged:
                return
            message = pb.StageRequest(number=segment.number, bytes=segment.nbytes).SerializeToString()
            line.in_step = False
            line.send(pb.METHOD_STAGE, message, descriptors=(segment.descriptor,))
            self._lines.answer(line)
            life.staged.add(segment.number)
