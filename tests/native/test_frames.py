"""Frames in native code: any stream of bytes, in any pieces, is read as the format says and no byte further."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from kvstore import _native
from kvstore._native import Frame, FrameBuffer, FrameSocket, encode_frame

HEAD = struct.Struct("<QIHHQQ")
LONGEST = 1 << 20
STATES = {
    _native.FRAME_PARTIAL,
    _native.FRAME_NONE,
    _native.FRAME_DAMAGED,
    _native.FRAME_TOO_LARGE,
}
Fields = tuple[int, int, bytes, int]


def fields(frame: Frame | int) -> Fields:
    assert isinstance(frame, Frame), frame
    return frame.method, frame.flags, frame.message, frame.payload


def reference(data: bytes, longest: int = LONGEST) -> Fields | int:
    """What a stream begins with, by the format's description."""
    if len(data) < HEAD.size:
        return _native.FRAME_PARTIAL
    message_sum, length, method, flags, payload, head_sum = HEAD.unpack_from(data)
    if _native.xxh3_64(data[: HEAD.size - 8]) != head_sum:
        return _native.FRAME_NONE
    if length > longest or payload > _native.MAX_PAYLOAD:
        return _native.FRAME_TOO_LARGE
    if len(data) < HEAD.size + length:
        return _native.FRAME_PARTIAL
    message = data[HEAD.size : HEAD.size + length]
    return (method, flags, message, payload) if _native.xxh3_64(message) == message_sum else _native.FRAME_DAMAGED


def frames_of(dice: random.Random, count: int) -> list[tuple[Fields, bytes]]:
    sizes = (0, 1, 24, 31, 32, 33, 200, 5000, 16352, 16384, 16385, 40_000, 150_000)
    found = []
    for _ in range(count):
        message, payload = (dice.randbytes(dice.choice(sizes)) for _ in range(2))
        found.append(((dice.randrange(1 << 16), dice.randrange(1 << 16), message, len(payload)), payload))
    return found


def encoded(frames: list[tuple[Fields, bytes]]) -> bytes:
    return b"".join(
        encode_frame(method, message, flags, length) + payload for (method, flags, message, length), payload in frames
    )


class Feed:
    """A stream that comes in pieces of random lengths."""

    def __init__(self, dice: random.Random, data: bytes) -> None:
        self.left, self.buffer, self._dice = memoryview(data), FrameBuffer(), dice

    def next(self) -> Frame | int:
        while (found := self.buffer.next(LONGEST)) == _native.FRAME_PARTIAL and self.left:
            count = min(self._dice.choice((1, 7, 32, 1000, 16384)), self.buffer.room, len(self.left))
            assert count > 0
            self.buffer.feed(self.left[:count])
            self.left = self.left[count:]
        return found

    def read(self, nbytes: int) -> bytes:
        out = bytearray(nbytes)
        have = self.buffer.take(out)
        out[have:] = self.left[: nbytes - have]
        self.left = self.left[nbytes - have :]
        return bytes(out)


@pytest.mark.parametrize("seed", range(60))
def test_frames_in_random_pieces(seed: int) -> None:
    dice = random.Random(seed)
    frames = frames_of(dice, 12)
    feed = Feed(dice, encoded(frames))
    for frame, payload in frames:
        assert fields(feed.next()) == frame
        assert feed.read(len(payload)) == payload
    assert feed.next() == _native.FRAME_PARTIAL
    assert feed.buffer.held == 0


@pytest.mark.parametrize("seed", range(60))
def test_what_is_changed_is_read_as_the_format_says(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(40):
        data = bytearray(encoded(frames_of(dice, 1)))
        if len(data) > 40_000:
            continue
        for _ in range(dice.randrange(3)):
            at = dice.randrange(min(len(data), 100))
            match dice.randrange(3):
                case 0:
                    data[at] = dice.randrange(256)
                case 1:
                    del data[at:]
                case _:
                    data[at:at] = dice.randbytes(dice.randrange(1, 60))
            if not data:
                break
        if dice.random() < 0.3 and len(data) >= HEAD.size:  # a head whose own checksum is right
            head = HEAD.pack(
                dice.getrandbits(64), dice.choice((0, 5, LONGEST, LONGEST + 1, (1 << 32) - 1)), 1, 2,
                dice.choice((0, 1 << 40, (1 << 40) + 1, (1 << 64) - 1)), 0,
            )[:-8]  # fmt: skip
            data[: HEAD.size] = head + struct.pack("<Q", _native.xxh3_64(head))
        feed = Feed(dice, bytes(data))
        found, wanted = feed.next(), reference(bytes(data))
        if isinstance(wanted, int):
            assert found == wanted
            assert found in STATES
            assert feed.next() == wanted  # and stays so
        else:
            assert fields(found) == wanted


def test_more_than_there_is_room_for_is_refused() -> None:
    buffer = FrameBuffer()
    assert buffer.next(LONGEST) == _native.FRAME_PARTIAL
    with pytest.raises(ValueError, match="next"):
        buffer.feed(bytes(buffer.room + 1))


def test_a_message_that_is_announced_alone_says_what_it_announces() -> None:
    buffer = FrameBuffer()
    buffer.next(10)
    buffer.feed(encode_frame(1, bytes(11), 0, 99)[: HEAD.size])
    assert buffer.next(10) == _native.FRAME_TOO_LARGE
    assert buffer.announced == (11, 99)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, FrameSocket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, FrameSocket(far.fileno(), True)


@pytest.mark.parametrize("seed", range(10))
def test_frames_over_a_socket_in_random_pieces(pair: tuple[socket.socket, FrameSocket], seed: int) -> None:
    near, frames = pair
    dice = random.Random(seed)
    sent = frames_of(dice, 15)
    data = encoded(sent)

    def push() -> None:
        at = 0
        while at < len(data):
            count = dice.choice((1, 30, 1000, 20_000))
            near.sendall(data[at : at + count])
            at += count
        near.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=push)
    thread.start()
    for frame, payload in sent:
        assert fields(frames.receive(None, 5.0, False, LONGEST)) == frame
        out = bytearray(len(payload))
        half = len(payload) // 2
        assert frames.read(memoryview(out)[:half], None, 5.0) == _native.FRAME_SENT
        assert frames.read(memoryview(out)[half:], time.monotonic() + 5, 5.0) == _native.FRAME_SENT
        assert out == payload
    assert frames.receive(None, 5.0, True, LONGEST) == _native.FRAME_ENDED
    thread.join()


def test_a_frame_with_many_pieces_arrives_whole(pair: tuple[socket.socket, FrameSocket]) -> None:
    near, frames = pair
    other = FrameSocket(near.fileno(), True)
    pieces = [bytes([number % 251]) * (number % 700) for number in range(3000)]
    thread = threading.Thread(target=frames.send, args=(3, b"m", 0, pieces, (), None, 5.0))
    thread.start()
    whole = b"".join(pieces)
    assert fields(other.receive(None, 5.0, False, LONGEST)) == (3, 0, b"m", len(whole))
    out = bytearray(len(whole))
    assert other.read(out, None, 5.0) == _native.FRAME_SENT
    thread.join()
    assert out == whole


def test_an_exchange_tells_how_far_it_came(pair: tuple[socket.socket, FrameSocket]) -> None:
    near, frames = pair
    near.sendall(encode_frame(8, b"answer", 0, 0))
    assert fields(frames.exchange(7, b"question", b"ahead", None, 5.0, LONGEST)) == (8, 0, b"answer", 0)
    assert near.recv(1000) == b"ahead" + encode_frame(7, b"question", 0, 0)
    assert frames.exchange(7, b"question", b"", time.monotonic() + 0.05, 5.0, LONGEST) == _native.FRAME_LATE
    assert frames.sent
    full = bytes(64 << 20)  # more than the socket holds
    assert frames.exchange(7, b"", full, time.monotonic() + 0.2, 5.0, LONGEST) == _native.FRAME_LATE
    assert not frames.sent
    near.close()
    with pytest.raises(BrokenPipeError):
        frames.exchange(7, b"question", b"", None, 5.0, LONGEST)


def test_an_answer_fills_memory_if_it_has_just_as_much(pair: tuple[socket.socket, FrameSocket]) -> None:
    near, frames = pair
    payload = os.urandom(300_000)

    def ask(sent: bytes, length: int, within_s: float = 5.0) -> tuple[Any, bytearray]:
        out = bytearray(length)
        thread = threading.Thread(target=near.sendall, args=(sent,))
        thread.start()
        found = frames.fill(7, b"question", out, time.monotonic() + within_s, 5.0, LONGEST)
        thread.join()
        assert near.recv(1000) == encode_frame(7, b"question", 0, 0)
        return found, out

    assert ask(encode_frame(7, b"answer", 0, 300_000) + payload, 300_000) == (_native.FRAME_SENT, payload)
    assert ask(encode_frame(7, b"", 0, 0), 0) == (_native.FRAME_SENT, b"")
    others = [(7, 0, b"", 299), (7, 0, b"", 301), (8, 0, b"", 300), (7, 2, b"", 300), (7, 4, b"", 300)]
    for method, flags, message, length in others:  # which are given, and what follows them is left
        found, out = ask(encode_frame(method, message, flags, length) + payload[:length], 300)
        assert fields(found) == (method, flags, message, length)
        assert out == bytes(300)
        left = bytearray(length)
        assert frames.read(left, None, 5.0) == _native.FRAME_SENT
        assert left == payload[:length]
    assert ask(encode_frame(7, b"", 0, 300_000) + payload[:200_000], 300_000, 0.2)[0] == _native.FRAME_LATE
    assert frames.sent


def test_an_answer_that_ends_in_the_middle_fills_nothing(pair: tuple[socket.socket, FrameSocket]) -> None:
    near, frames = pair
    near.sendall(encode_frame(7, b"", 0, 1000) + bytes(999))
    near.shutdown(socket.SHUT_WR)
    assert frames.fill(7, b"", bytearray(1000), None, 5.0, LONGEST) == _native.FRAME_CUT_OFF
    with pytest.raises(ValueError, match="out"):
        frames.fill(7, b"", bytes(10), None, 5.0, LONGEST)
    near.close()


def test_descriptors_come_in_order_and_are_closed_where_nobody_takes_them(
    pair: tuple[socket.socket, FrameSocket],
) -> None:
    near, frames = pair
    other = FrameSocket(near.fileno(), True)
    before = len(os.listdir("/proc/self/fd"))
    read, write = os.pipe()
    assert frames.send(1, b"", 0, (), (write, read, read), None, 5.0) == _native.FRAME_SENT
    other.receive(None, 5.0, False, LONGEST)
    first = other.take_descriptor()
    os.write(first, b"x")
    assert os.read(read, 1) == b"x"
    for each in (first, read, write):
        os.close(each)
    other.drop_descriptors()
    assert other.take_descriptor() == -1
    assert len(os.listdir("/proc/self/fd")) == before
    with open(os.devnull) as null:
        for _ in range(2):
            frames.send(1, bytes(9), 0, (), [null.fileno()] * 16, None, 5.0)
        other.receive(None, 5.0, False, LONGEST)
        assert other.receive(None, 5.0, False, LONGEST) == _native.FRAME_TOO_MANY_DESCRIPTORS
        with pytest.raises(ValueError, match="16 descriptors"):
            frames.send(1, b"", 0, (), [null.fileno()] * 17, None, 5.0)
    del other
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_socket_that_is_gone_is_an_error(pair: tuple[socket.socket, FrameSocket]) -> None:
    _, frames = pair
    frames.forget()
    with pytest.raises(OSError, match="Bad file descriptor"):
        frames.receive(None, 5.0, False, LONGEST)
    with pytest.raises(OSError, match="Bad file descriptor"):
        frames.send(1, b"", 0, (), (), None, 5.0)


def test_a_signal_ends_the_waiting(pair: tuple[socket.socket, FrameSocket]) -> None:
    class Alarm(Exception):
        pass

    def ring(number: int, frame: object) -> None:
        del number, frame
        raise Alarm

    _, frames = pair
    old = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    try:
        with pytest.raises(Alarm):
            frames.receive(None, 20.0, True, LONGEST)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)


def test_two_threads_at_once_are_refused(pair: tuple[socket.socket, FrameSocket]) -> None:
    near, frames = pair
    found: list[object] = []

    def wait() -> None:
        while not found:
            with contextlib.suppress(RuntimeError):  # this thread may be the second
                found.append(frames.receive(None, 20.0, True, LONGEST))

    thread = threading.Thread(target=wait)
    thread.start()
    message = ""
    while not message:
        try:
            if isinstance(frames.receive(time.monotonic() + 0.01, 20.0, False, LONGEST), int):
                continue
        except RuntimeError as error:
            message = str(error)
    assert "one thread" in message
    near.sendall(encode_frame(1, b"for the first", 0, 0))
    thread.join()
    assert fields(found[0]) == (1, 0, b"for the first", 0)  # type: ignore[arg-type]


def test_the_end_of_the_other_side_is_seen(pair: tuple[socket.socket, FrameSocket]) -> None:
    near, _ = pair
    assert not _native.peer_has_ended(near.fileno())
    other, far = socket.socketpair()
    far.close()
    assert _native.peer_has_ended(other.fileno())
    other.close()
