"""A server that dies under `KVStoreTier`: the right text by recomputing, one warning, no hang, nothing left behind."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from kvstore.record import BLOCK, MAGIC, unpack

from .harness import prompt, tier_transfer
from .test_failures import Relay

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROW = 32 * 4 * 2 * 64 * 2 * 4  # 32 tokens of 4 layers of 2 KV heads of 64, K and V, in float32
MEMORY = Path("/dev/shm")


def left_behind() -> set[str]:
    return {each.name for each in MEMORY.glob("vllm_offload_*")}


def test_cut_off_in_mid_load(start, server, llama):
    host, _, port = str(server.told["bulk"]).rpartition(":")
    relay, before = Relay(host, int(port)), left_behind()
    ask = prompt(1000)
    first = start(llama, tier_transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.close()
    engine = start(llama, tier_transfer(relay.address, timeout_s=2.0, retry_s=1.0))
    relay.left = 10 * ROW + ROW // 2
    cut = engine.ask(ask)
    assert cut["answers"][0]["ids"] == cold["ids"]
    assert cut["answers"][0]["cached"] < 992
    assert cut["counters"]["vllm:kvstore_tier_rows_failed"] > 0
    assert engine.log.read_text(errors="replace").count("kvstore tier loads:") == 1
    # Nothing is stuck: it goes on without the store.
    assert engine.ask(prompt(300, seed=3))["answers"][0]["cached"] == 0
    relay.close()
    engine.close()
    assert left_behind() == before


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_server_that_is_gone_or_stands_still(start, server, llama, number):
    ask = prompt(600)
    first = start(llama, tier_transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.close()
    engine = start(llama, tier_transfer(server.address, timeout_s=2.0, retry_s=1.0, lookup_timeout_s=0.5))
    process = server._process
    process.send_signal(number)
    try:
        answers = [engine.ask(ask), engine.ask(prompt(400, seed=9))]
        assert answers[0]["answers"][0]["ids"] == cold["ids"]
        assert [each["answers"][0]["cached"] for each in answers] == [0, 0]
    finally:
        process.send_signal(signal.SIGCONT)
    if number == signal.SIGKILL:
        server.stop()
        server.start()
        ask = prompt(500, seed=11)
        engine.ask_until_cached(ask)


def test_bytes_that_were_damaged_on_disk_are_recomputed(start, server, llama):
    ask = prompt(1000)
    first = start(llama, tier_transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.close()
    server.stop()
    damaged = sum(_damage(path, behind=512) for path in (server.folder / "segments").iterdir())
    assert damaged
    server.start()
    engine = start(llama, tier_transfer(server.address))
    warm = engine.ask(ask)
    assert warm["answers"][0]["ids"] == cold["ids"]
    assert 0 < warm["answers"][0]["cached"] < 992
    assert warm["counters"]["vllm:kvstore_tier_rows_failed"] > 0


def _damage(path: Path, behind: int) -> int:
    """Flip a bit in every record of a segment that lies behind a token; how many there were."""
    memory, damaged = bytearray(path.read_bytes()), 0
    for at in range(0, len(memory), BLOCK):
        if memory[at : at + 4] == MAGIC:
            record = unpack(memoryview(memory)[at : at + BLOCK])
            if record.position > behind:
                memory[at + record.header_bytes + record.stored // 2] ^= 0x10
                damaged += 1
    path.write_bytes(memory)
    return damaged
