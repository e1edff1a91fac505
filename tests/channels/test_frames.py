"""Frames over a socket pair: what is not whole and unchanged is never taken for a frame."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

import kvstore
from kvstore import _native
from kvstore.channels.stream import FAILED, HEAD, MAX_MESSAGE, BadFrame, Stream, encode


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Stream]]:
    near, far = socket.socketpair()
    stream = Stream(far, 2.0)
    yield near, stream
    near.close()
    stream.close()


def test_a_frame_comes_as_it_was_sent(pair: tuple[socket.socket, Stream]) -> None:
    near, stream = pair
    sender = Stream(near, 2.0)
    large = bytes(range(256)) * 300
    for message, payload in ((b"", b""), (b"hello", b"bytes behind it"), (large, large)):
        thread = threading.Thread(
            target=sender.send, args=(7, message), kwargs={"flags": FAILED, "payload": (memoryview(payload),)}
        )
        thread.start()
        frame = stream.receive()
        assert frame is not None
        assert (frame.method, frame.flags, frame.message, frame.payload) == (7, FAILED, message, len(payload))
        out = memoryview(bytearray(len(payload)))
        stream.read_into(out[:5])
        stream.read_into(out[5:])
        thread.join()
        assert out == payload


def test_no_flipped_bit_goes_unnoticed() -> None:
    whole = encode(4, b"a key and a count", 0, 77)
    for bit in range(8 * len(whole)):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        near, far = socket.socketpair()
        with near, far:
            near.sendall(damaged)
            with pytest.raises(kvstore.Unavailable, match=r"no frame|damaged"):
                Stream(far, 2.0).receive()


def test_a_frame_cut_at_any_byte_is_no_frame() -> None:
    whole = encode(4, b"a key and a count", 0, 3) + b"abc"
    for length in range(1, len(whole)):
        near, far = socket.socketpair()
        with far:
            near.sendall(whole[:length])
            near.close()
            stream = Stream(far, 2.0)
            with pytest.raises(kvstore.Unavailable, match="in the middle"):  # noqa: PT012
                stream.receive()
                stream.read_into(memoryview(bytearray(3)))
            assert stream.broken


@pytest.mark.parametrize(("length", "payload"), [(MAX_MESSAGE + 1, 0), ((1 << 32) - 1, 0), (0, 1 << 63)])
def test_sizes_beyond_all_measure_are_refused(pair: tuple[socket.socket, Stream], length: int, payload: int) -> None:
    near, stream = pair
    head = HEAD.pack(0, length, 4, 0, payload, 0)[:-8]
    near.sendall(head + _native.xxh3_64(head).to_bytes(8, "little"))
    with pytest.raises(BadFrame, match="more than may come"):
        stream.receive()


def test_an_end_between_frames_is_an_end(pair: tuple[socket.socket, Stream]) -> None:
    near, stream = pair
    near.sendall(encode(4, b"x"))
    near.shutdown(socket.SHUT_WR)
    assert stream.receive() is not None
    assert stream.receive() is None
    assert not stream.broken


def test_a_peer_that_trickles_does_not_outlast_the_deadline(pair: tuple[socket.socket, Stream]) -> None:
    near, stream = pair
    stop = threading.Event()

    def trickle() -> None:
        for byte in encode(4, bytes(4000)):
            near.sendall(bytes([byte]))
            if stop.wait(0.01):
                return

    thread = threading.Thread(target=trickle)
    thread.start()
    stream.deadline = time.monotonic() + 0.3
    with pytest.raises(kvstore.DeadlineExceeded):
        stream.receive()
    assert stream.broken
    stop.set()
    thread.join()


def test_a_limit_that_is_shorter_than_what_is_left_is_not_the_end(pair: tuple[socket.socket, Stream]) -> None:
    near, stream = pair
    stream.deadline = time.monotonic() + 1
    near.sendall(encode(4, b"first"))
    assert stream.receive() is not None
    stream.deadline = time.monotonic() + 30
    threading.Timer(1.2, near.sendall, (encode(4, b"second"),)).start()
    frame = stream.receive()
    assert frame is not None
    assert frame.message == b"second"


def test_payload_is_read_as_far_as_it_goes(pair: tuple[socket.socket, Stream]) -> None:
    near, stream = pair
    near.sendall(encode(4, b"", 0, 10) + bytes(10) + encode(5, b"next"))
    stream.receive()
    with pytest.raises(BadFrame, match="10 bytes of payload are left"):
        stream.read_into(memoryview(bytearray(11)))
    stream.read_into(memoryview(bytearray(4)))
    stream.skip()
    frame = stream.receive()
    assert frame is not None
    assert frame.message == b"next"
