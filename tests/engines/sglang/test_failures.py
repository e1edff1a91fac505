"""A store that dies, stands still, or whose disk lies: a miss, one warning, and no exception into the engine."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sglang.srt", reason="no SGLang here: make test-sglang", exc_type=ImportError)

from .harness import fill, hashes, page, pool, slots  # noqa: E402


def after(count, act, call):
    """`call`, which does `act` once before its call number `count`."""
    calls = iter(range(1 << 30))

    def counted(*args, **more):
        if next(calls) == count:
            act()
        return call(*args, **more)

    return counted


@pytest.mark.parametrize("channel", ["local", "bulk"])
def test_killed_in_mid_batch(server, attach, monkeypatch, caplog, channel):
    address = server.address if channel == "local" else f"bulk://{server.told['bulk']}"
    source, target, keys = pool(), pool(layout="page_first"), hashes(8)
    fill(source)
    backend = attach(source, address, timeout_s=2.0, retry_s=60.0)
    client = backend._client
    kill = lambda: server.stop(signal.SIGKILL)  # noqa: E731
    assert all(backend.batch_set_v1(keys, slots(source, *range(8))))
    backend.register_mem_pool_host(target)
    if channel == "local":
        monkeypatch.setattr(client, "view", after(3, kill, client.view))
        expected = [True] * 3 + [False] * 5
    else:
        monkeypatch.setattr(client, "get_each", after(0, kill, client.get_each))
        expected = [False] * 8
    with caplog.at_level(logging.WARNING, "kvstore.sglang"):
        assert backend.batch_get_v1(keys, slots(target, *range(8))) == expected
        for n in range(expected.count(True)):
            mine, its = source.k_buffer[0, n * 16 : n * 16 + 16], target.k_buffer[n * 16 : n * 16 + 16, 0]
            assert torch.equal(mine.contiguous().view(torch.int16), its.contiguous().view(torch.int16))
        assert backend.batch_exists(keys) == 0
        assert backend.batch_set_v1(keys, slots(target, *range(8))) == [False] * 8
        assert backend.get(keys[0]) is None
        backend.clear()
    assert len(caplog.records) == 1
    assert "left alone" in caplog.text


def test_killed_in_mid_backup_and_back_again(server, attach, monkeypatch, caplog):
    host, keys = pool(), hashes(8)
    fill(host)
    backend = attach(host, server.address, timeout_s=2.0, retry_s=0.05)
    client = backend._client
    monkeypatch.setattr(client, "put", after(4, lambda: server.stop(signal.SIGKILL), client.put))
    with caplog.at_level(logging.WARNING, "kvstore.sglang"):
        assert backend.batch_set_v1(keys, slots(host, *range(8))) == [True] * 4 + [False] * 4
    assert len(caplog.records) == 1
    server.start()
    # For up to two seconds the shared index of the server that died says that pages are there.
    _until(lambda: all(backend.batch_set_v1(keys, slots(host, *range(8)))) and backend.batch_exists(keys) == 8)
    assert backend.batch_get_v1(keys[:1], slots(host, 15)) == [True]
    assert torch.equal(page(host, 0), page(host, 15))


def test_a_server_that_stands_still(server, attach, caplog):
    host, keys = pool(), hashes(4)
    fill(host)
    backend = attach(host, server.address, timeout_s=2.0, retry_s=60.0)
    assert all(backend.batch_set_v1(keys, slots(host, *range(4))))
    server._process.send_signal(signal.SIGSTOP)
    _until(lambda: _all_stopped(server._process.pid))
    try:
        with caplog.at_level(logging.WARNING, "kvstore.sglang"):
            assert backend.batch_set_v1(hashes(4, seed=1), slots(host, *range(4))) == [False] * 4
            assert backend.batch_exists(keys) == 0
            assert backend.batch_get_v1(keys, slots(host, *range(4))) == [False] * 4
        assert len(caplog.records) == 1
        assert "DeadlineExceeded" in caplog.text
    finally:
        server._process.send_signal(signal.SIGCONT)


def test_a_server_that_is_not_there_yet(server, attach):
    server.stop()
    host, keys = pool(), hashes(2)
    backend = attach(host, server.address, timeout_s=2.0, retry_s=0.05)
    assert backend.batch_exists(keys) == 0
    assert backend.batch_set_v1(keys, slots(host, 0, 1)) == [False, False]
    server.start()
    _until(lambda: all(backend.batch_set_v1(keys, slots(host, 0, 1))))


def test_a_disk_that_lies(server, attach):
    """Pages on NVMe alone, one of them damaged: it is a miss, those before it are not, and it can be stored again."""
    host = pool(layers=16, heads=8, dim=64)  # pages of 512 KiB
    fill(host)
    keys = hashes(4)
    backend = attach(host, server.address, retry_s=0.05)
    assert all(backend.batch_set_v1(keys, slots(host, *range(4))))
    server.stop()  # in order: everything is written down
    damaged = page(host, 2).numpy().reshape(2, 16, -1)[0, 3, :64].tobytes()
    assert sum(_damage(path, damaged) for path in server.folder.rglob("*") if path.is_file()) == 1
    server.start()
    _until(lambda: backend.batch_exists(keys) >= 2)
    loaded = backend.batch_get_v1(keys, slots(host, 8, 9, 10, 11))
    assert loaded[:3] == [True, True, False]
    assert torch.equal(page(host, 1), page(host, 9))
    assert backend.batch_exists(keys) == 2
    assert all(backend.batch_set_v1(keys, slots(host, *range(4))))
    assert all(backend.batch_get_v1(keys, slots(host, 8, 9, 10, 11)))
    assert torch.equal(page(host, 2), page(host, 10))


def _damage(path, needle):
    content = path.read_bytes()
    at = content.find(needle)
    if at < 0:
        return 0
    with path.open("r+b") as file:
        file.seek(at + 5)
        file.write(bytes([content[at + 5] ^ 0xFF]))
    return 1


def _all_stopped(pid):
    states = [each.read_text().rpartition(")")[2].split()[0] for each in Path(f"/proc/{pid}/task").glob("*/stat")]
    return set(states) == {"T"}


def _until(true):
    """Wait for something that comes with time; the test's own limit ends a wait in vain."""
    import time

    while not true():
        time.sleep(0.02)
