"""Clients of the local channel: ours, and one of the frames alone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

import kvstore
from kvstore import Client, wire
from kvstore.channels.lines import hello_message
from kvstore.channels.stream import FAILED, Stream
from kvstore.v1 import kvstore_pb2 as pb


class Raw:
    """A client of the frames alone."""

    def __init__(self, path: str, namespace: str = "default") -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(path)
        self.stream = Stream(sock, 10.0)
        self.ask(pb.METHOD_HELLO, hello_message(os.urandom(16), "", namespace))

    def ask(self, method: int, message: Any, descriptors: Sequence[int] = ()) -> bytes:
        self.stream.send(method, message.SerializeToString(), descriptors=descriptors)
        return self.answer()

    def answer(self) -> bytes:
        frame = self.stream.receive()
        assert frame is not None, "the server ended the connection"
        if frame.method == pb.METHOD_EXTENTS:
            return self.answer()
        if frame.flags & FAILED:
            raise wire.failure_from_message(pb.Failure.FromString(frame.message))
        return frame.message


@contextlib.contextmanager
def memfd(size: int, seals: int = fcntl.F_SEAL_SHRINK, flags: int = os.MFD_ALLOW_SEALING) -> Iterator[int]:
    descriptor = os.memfd_create("test", flags)
    try:
        os.ftruncate(descriptor, size)
        if seals:
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
        yield descriptor
    finally:
        os.close(descriptor)


def open_here(file: os.stat_result) -> int:
    """How many descriptors of this process are of one file: others come and go."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found += os.path.samestat(os.fstat(int(number)), file)
    return found


@pytest.fixture
def raw(running: Any) -> Iterator[Raw]:
    made = Raw(running.server.local)
    yield made
    made.stream.close()


@pytest.fixture
def local(running: Any) -> Iterator[Client]:
    with kvstore.connect("local:" + running.server.local) as made:
        yield made


class Frames:
    """What tests import from here: fixtures cannot be imported under importlib."""

    Raw, memfd, open_here = Raw, staticmethod(memfd), staticmethod(open_here)


@pytest.fixture
def frames() -> type[Frames]:
    return Frames
