"""Puts from staging memory, and what a server refuses to map."""

from __future__ import annotations

import contextlib
import fcntl
import gc
import os
import socket
import threading
from typing import Any

import numpy as np
import pytest

import kvstore
from kvstore import Client, InvalidArgument, wire
from kvstore.api import Offer
from kvstore.channels.staging import Staging
from kvstore.v1 import kvstore_pb2 as pb

PAGE = 4096


def put_message(kit: Any, ref: kvstore.ChunkRef, staging: int, offset: int) -> Any:
    put = wire.StagedPut(
        kit.small.digest, ref.key, ref.parent, kit.small.part().pack(), ref.position, ref.tokens, 0, 0, staging, offset
    )
    return pb.StagedPutRequest(put=wire.staged_put_to_bytes(put))


def test_arrays_in_staging_are_put_without_a_copy(local: Client, kit: Any) -> None:
    chain = local.chain(kit.small, range(64 * 6))
    shape = kit.small.part_shape(kit.small.part(), 64)
    array = local.buffer((3, *shape), "bfloat16")
    assert array.ctypes.data % 64 == 0
    staging: Staging = local.backend._puts.staging  # type: ignore[attr-defined]
    for number, ref in enumerate(chain.refs[:3]):
        array[number] = number + 1
        assert staging.find(array[number].reshape(-1).view(np.uint8).data) is not None
        assert local.put(kit.small, ref, array[number])
    array[:] = 99  # after the acknowledgement nothing changes
    for number, ref in enumerate(chain.refs[3:]):
        assert local.put(kit.small, ref, np.full(shape, number + 4, np.uint16))
    for number, ref in enumerate(chain.refs):
        assert (local.get(kit.small, ref, verify=True) == number + 1).all()


def test_staging_is_free_again_when_nothing_stands_on_an_array() -> None:
    staging = Staging()
    array = staging.array((1 << 20,), np.dtype(np.uint16))
    part = array[7:9].view(np.uint8)
    allocator = staging._segments[0].allocator
    assert allocator.used == 2 << 20
    del array
    gc.collect()
    small = staging.array(16, np.dtype(np.uint8))
    assert allocator.used == (2 << 20) + PAGE
    del part
    other = staging.array(16, np.dtype(np.uint8))
    assert allocator.used == 2 * PAGE
    assert small.size == other.size
    assert staging.array(0, np.dtype(np.uint8)).size == 0
    assert staging.array(5 << 30, np.dtype(np.uint8)).size == 5 << 30  # ordinary memory


def test_a_reservation_is_staging_memory(local: Client, kit: Any) -> None:
    (ref,) = local.chain(kit.small, range(64)).refs
    data = kit.block(kit.small)
    with local.reserve(kit.small, ref) as reservation:
        assert local.backend._puts.staging.find(reservation.data) is not None  # type: ignore[attr-defined]
        reservation.data[:] = data.tobytes()
        with pytest.raises(kvstore.Corrupt):
            reservation.commit(expect=b"x" * 64)
        assert reservation.commit()
    assert np.array_equal(local.get(kit.small, ref), data)


def test_large_arrays_get_a_segment_of_their_own_and_full_staging_is_sent_inline(
    local: Client, kit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (ref,) = local.chain(kit.large, range(256)).refs
    monkeypatch.setattr("kvstore.channels.staging.MAX_BYTES", 1 << 20)
    data = kit.block(kit.large)
    assert local.put(kit.large, ref, data)
    assert local.backend._puts.staging._segments == []  # type: ignore[attr-defined]
    assert np.array_equal(local.get(kit.large, ref), data)


@pytest.mark.parametrize("what", ["unsealed", "grow only", "pipe", "file", "socket", "larger", "smaller", "empty"])
def test_what_is_no_safe_staging_is_refused(raw: Any, what: str, tmp_path: Any, frames: Any) -> None:
    with contextlib.ExitStack() as stack:
        size = 2 * PAGE
        if what == "pipe":
            ends = os.pipe()
            stack.callback(os.close, ends[0])
            stack.callback(os.close, ends[1])
            descriptor = ends[0]
        elif what == "file":
            file = stack.enter_context((tmp_path / "file").open("wb+"))
            file.truncate(size)
            descriptor = file.fileno()
        elif what == "socket":
            descriptor = stack.enter_context(socket.socket()).fileno()
        else:
            seals = {"unsealed": 0, "grow only": fcntl.F_SEAL_GROW}.get(what, fcntl.F_SEAL_SHRINK)
            descriptor = stack.enter_context(frames.memfd(0 if what == "empty" else size, seals))
        announced = size + {"larger": PAGE, "smaller": -PAGE, "empty": -size}.get(what, 0)
        with pytest.raises(InvalidArgument, match="staging"):
            raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=1, bytes=announced), [descriptor])
    assert raw.ask(pb.METHOD_STATS, pb.StatsRequest())  # the connection goes on


def test_offsets_outside_staging_and_staging_of_others_are_refused(
    running: Any, raw: Any, kit: Any, frames: Any
) -> None:
    (ref,) = Client(running.store.session("default")).chain(kit.small, range(64)).refs
    raw.ask(pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(spec=wire.spec_to_message(kit.small)))
    nbytes = kit.small.part_bytes(kit.small.part(), 64)
    with frames.memfd(2 * nbytes) as descriptor:
        raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=7, bytes=2 * nbytes), [descriptor])
        with pytest.raises(InvalidArgument, match="known already"):
            raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=7, bytes=2 * nbytes), [descriptor])
    for staging, offset in ((7, nbytes + 1), (7, 1 << 63), (7, (1 << 64) - 1), (8, 0)):
        with pytest.raises(InvalidArgument, match="staging"):
            raw.ask(pb.METHOD_PUT_STAGED, put_message(kit, ref, staging, offset))
    other = frames.Raw(running.server.local)
    with pytest.raises(InvalidArgument, match="this session has no staging 7"):
        other.ask(pb.METHOD_PUT_STAGED, put_message(kit, ref, 7, 0))
    other.stream.close()
    raw.ask(pb.METHOD_PUT_STAGED, put_message(kit, ref, 7, nbytes))


def test_a_session_stages_so_much_and_no_more(raw: Any, frames: Any) -> None:
    with frames.memfd(PAGE) as descriptor:
        for number in range(64):
            raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=number, bytes=PAGE), [descriptor])
        with pytest.raises(kvstore.Shed, match="64 pieces"):
            raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=64, bytes=PAGE), [descriptor])


def test_more_bytes_than_a_session_may_stage(raw: Any, frames: Any) -> None:
    with frames.memfd((4 << 30) + PAGE) as descriptor, pytest.raises(kvstore.Shed, match="4"):
        raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=1, bytes=(4 << 30) + PAGE), [descriptor])


def test_holes_punched_into_staging_read_as_zeros(raw: Any, running: Any, kit: Any, frames: Any) -> None:
    (ref,) = Client(running.store.session("default")).chain(kit.small, range(64)).refs
    raw.ask(pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(spec=wire.spec_to_message(kit.small)))
    nbytes = kit.small.part_bytes(kit.small.part(), 64)
    with frames.memfd(nbytes) as descriptor:
        raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=1, bytes=nbytes), [descriptor])
        with pytest.raises(PermissionError):
            os.ftruncate(descriptor, 0)
        import ctypes

        assert ctypes.CDLL(None).fallocate(descriptor, 3, ctypes.c_long(0), ctypes.c_long(nbytes)) == 0
        raw.ask(pb.METHOD_PUT_STAGED, put_message(kit, ref, 1, 0))
    assert not Client(running.store.session("default")).get(kit.small, ref).any()


def test_a_put_that_its_client_gave_up_is_not_taken(
    running: Any, raw: Any, kit: Any, monkeypatch: pytest.MonkeyPatch, frames: Any
) -> None:
    """The client may have written other bytes to its staging by the time the server copies them."""
    client = Client(running.store.session("default"))
    (ref,) = client.chain(kit.small, range(64)).refs
    raw.ask(pb.METHOD_REGISTER_SPEC, pb.RegisterSpecRequest(spec=wire.spec_to_message(kit.small)))
    nbytes = kit.small.part_bytes(kit.small.part(), 64)
    writer = running.store._writer
    waiting, go, ended = threading.Event(), threading.Event(), threading.Event()
    put = writer.put

    def slow(scope: Any, offer: Offer, *rest: Any) -> bool:
        waiting.set()
        go.wait(10)
        try:
            return bool(put(scope, offer, *rest))
        finally:
            ended.set()

    monkeypatch.setattr(writer, "put", slow)
    with frames.memfd(nbytes) as descriptor:
        raw.ask(pb.METHOD_STAGE, pb.StageRequest(number=1, bytes=nbytes), [descriptor])
        raw.stream.send(pb.METHOD_PUT_STAGED, put_message(kit, ref, 1, 0).SerializeToString())
        assert waiting.wait(10)
        raw.stream.shut()
        go.set()
        assert ended.wait(10)
    assert client.contains(kit.small, [ref]) == [False]
    kit.eventually(lambda: running.used() == 0)
