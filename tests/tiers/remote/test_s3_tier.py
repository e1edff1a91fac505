"""The remote tier over S3, against the suite of every tier over an engine, with a real proxy for what can go wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import ClassVar

import pytest

pytest.importorskip("obstore")

from kvstore.bench.s3_server import S3Server
from kvstore.testing.faults import Fault
from kvstore.testing.kills import die
from kvstore.testing.remote import RemoteConformance
from kvstore.tiers.base import Tier
from kvstore.tiers.remote import Engine
from kvstore.tiers.remote.s3 import S3Engine
from kvstore.tiers.remote.s3_place import S3Place
from tests.tiers.remote.faulty_proxy import FaultyProxy


class TestS3(RemoteConformance):
    tier_options: ClassVar = {"deadline_s": 3.0}

    @pytest.fixture(autouse=True)
    def _place(self, s3_server: S3Server, bucket: str) -> Iterator[None]:
        self._server, self._bucket = s3_server, bucket
        self._begin()
        yield
        self._proxy.close()

    def _begin(self) -> None:
        self._proxy = FaultyProxy(self._server.port)
        self._at: S3Place = self._server.place(self._bucket, port=self._proxy.port)

    def open_engine(self) -> Engine:
        return S3Engine(self._at)

    def place(self) -> str | None:
        server = self._server
        return f"{server.port} {server.access_key_id} {server.secret_access_key} {self._bucket}"

    def go_to(self, place: str) -> None:
        port, key, secret, self._bucket = place.split()
        self._server = S3Server(int(port), 0, key, secret)
        self._begin()

    def inject(self, tier: Tier, fault: Fault) -> AbstractContextManager[None] | None:
        proxy = self._proxy
        reads, writes = ("GET",), ("PUT",)
        return {
            Fault.SHORT_READ: lambda: proxy.spoiling(methods=reads, change=lambda body: body[: len(body) // 2]),
            Fault.READ_ERROR: lambda: proxy.spoiling(methods=reads, status=400, code="InvalidRequest"),
            Fault.WRITE_ERROR: lambda: proxy.spoiling(methods=writes, status=400, code="InvalidRequest"),
            Fault.NO_SPACE: lambda: proxy.spoiling(methods=writes, status=403, code="QuotaExceeded"),
            Fault.SLOW: lambda: proxy.spoiling(delay_s=0.02),
            Fault.HUNG: self._hung,
            Fault.BIT_FLIP: lambda: proxy.spoiling(methods=reads, change=_Flips()),
            Fault.TORN_WRITE: lambda: proxy.spoiling(methods=writes, torn=die),
        }[fault]()

    @contextmanager
    def _hung(self) -> Iterator[None]:
        over = threading.Event()
        with self._proxy.spoiling(over=over):
            yield
        over.set()


class _Flips:
    """One bit of each body, another one each time."""

    def __init__(self) -> None:
        self._turn, self._lock = 0, threading.Lock()

    def __call__(self, body: bytes) -> bytes:
        with self._lock:
            self._turn += 1
            at = self._turn * 7919 % (8 * len(body) or 1)
        changed = bytearray(body)
        if changed:
            changed[at // 8] ^= 1 << at % 8
        return bytes(changed)
