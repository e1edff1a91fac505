"""A real `lmcache server` over this store: what one daemon stored, another with an empty memory loads."""

from __future__ import annotations

import signal
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lmcache.v1", reason="no LMCache here: make test-lmcache", exc_type=ImportError)

import kvstore  # noqa: E402

from .harness import Daemon  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


def test_a_second_daemon_loads_what_the_first_one_stored(server, tmp_path):
    tokens = tuple(range(7, 7 + 3 * Daemon.TOKENS))
    others = tuple(range(50_000, 50_000 + Daemon.TOKENS))
    elements = 2 * Daemon.LAYERS * Daemon.TOKENS * Daemon.WIDTH
    generator = torch.Generator().manual_seed(0)
    chunks = [torch.randint(-30000, 30000, (elements,), dtype=torch.int16, generator=generator) for _ in range(3)]
    first = Daemon(tmp_path, server.address, "first")
    try:
        first.store(tokens, chunks)
        first.store(others, chunks[:1])
        with kvstore.connect(server.address) as client:
            while len(list(client.list())) < 4:
                time.sleep(0.05)
    finally:
        first.close()
    second = Daemon(tmp_path, server.address, "second")
    try:
        loaded = second.load(tokens, "warm")
        assert len(loaded) == 3
        assert all(torch.equal(mine, its) for mine, its in zip(chunks, loaded, strict=True))
        assert second.load(tuple(range(100_000, 100_000 + Daemon.TOKENS)), "unknown") == []
        server.stop(signal.SIGKILL)
        assert second.load(others, "without the store") == []
    finally:
        second.close()
