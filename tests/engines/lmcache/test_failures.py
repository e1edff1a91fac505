"""A store that dies, stands still, or whose disk lies: a miss, one warning, and every task ends with its signal."""

from __future__ import annotations

import logging
import signal
import time

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("lmcache.v1", reason="no LMCache here: make test-lmcache", exc_type=ImportError)

from .harness import key, layouts, load, look, memory, store  # noqa: E402


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_gone_or_stands_still(server, plug, caplog, number):
    made, keys = plug(server.address, timeout_s=2.0, retry_s=60.0), [key(n) for n in range(4)]
    assert store(made, keys, [memory(n) for n in range(4)]).is_successful()
    process = server._process
    process.send_signal(number)
    time.sleep(0.2)  # a signal reaches a process's threads one by one
    try:
        with caplog.at_level(logging.WARNING, "kvstore.lmcache"):
            told = store(made, [key(9)], [memory(9)])
            assert (told.is_successful(), told.bytes_transferred()) == (False, 0)
            assert look(made, keys) == [False] * 4
            assert load(made, keys, [memory() for _ in keys]) == [False] * 4
            made.delete(keys)
        assert len([each for each in caplog.records if each.name == "kvstore.lmcache"]) == 1
        assert not made.report_status()["is_healthy"]
    finally:
        process.send_signal(signal.SIGCONT)


def test_killed_in_mid_load_and_back_again(server, plug, monkeypatch):
    made, keys = plug(server.address, timeout_s=2.0, retry_s=0.05), [key(n) for n in range(4)]
    sources = [memory(n) for n in range(4)]
    store(made, keys, sources)
    get_each = made._client.get_each

    def killed(*args):
        server.stop(signal.SIGKILL)
        return get_each(*args)

    monkeypatch.setattr(made._client, "get_each", killed)
    targets = [memory() for _ in keys]
    loaded = load(made, keys, targets)  # what is in shared memory may still come, and then it is right
    for good, source, target in zip(loaded, sources, targets, strict=True):
        assert not good or bytes(source.byte_array) == bytes(target.byte_array)
    monkeypatch.undo()
    server.start()
    while not store(made, keys, sources).is_successful():
        time.sleep(0.02)
    assert look(made, keys) == [True] * 4
    assert load(made, keys, targets) == [True] * 4


def test_a_disk_that_lies(server, plug):
    shape = (2, 16, 32, 512)
    made, keys = plug(server.address, retry_s=0.05), [key(n) for n in range(3)]
    sources = [memory(n, shape) for n in range(3)]
    store(made, keys, sources)
    server.stop()  # in order: everything is written down
    needle = bytes(sources[1].byte_array[4096:4160])
    assert sum(_damage(path, needle) for path in server.folder.rglob("*") if path.is_file()) == 1
    server.start()
    while not any(look(made, keys, layouts(shape))):
        time.sleep(0.02)
    targets = [memory(shape=shape) for _ in keys]
    assert load(made, keys, targets) == [True, False, True]
    assert bytes(sources[2].byte_array) == bytes(targets[2].byte_array)
    assert look(made, keys, layouts(shape)) == [True, False, True]


def _damage(path, needle):
    content = path.read_bytes()
    at = content.find(needle)
    if at < 0:
        return 0
    with path.open("r+b") as file:
        file.seek(at + 5)
        file.write(bytes([content[at + 5] ^ 0xFF]))
    return 1
