"""`KVStoreTier` behind vLLM's own OffloadingConnector."""

from __future__ import annotations

import pytest

from .harness import prompt, tier_transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("rows", [0, 4])
def test_a_fresh_engine_goes_on_from_a_servers_memory_and_disk(start, server, llama, rows):
    ask = prompt(1000)
    plain = start(llama).ask(ask)["answers"][0]
    first = start(llama, tier_transfer(server.address, rows=rows))
    cold = first.ask(ask)["answers"][0]
    assert (cold["ids"], cold["cached"]) == (plain["ids"], 0)
    first.close()
    whole = 1000 // (32 * max(rows, 1)) * 32 * max(rows, 1)

    second = start(llama, tier_transfer(server.address, rows=rows))
    warm = second.ask(ask)
    assert (warm["answers"][0]["ids"], warm["answers"][0]["cached"]) == (plain["ids"], whole)
    assert warm["counters"].get("vllm:kvstore_tier_rows_failed", 0) == 0

    server.stop()
    server.start()
    third = start(llama, tier_transfer(server.address, rows=rows))
    again = third.ask(ask)["answers"][0]
    assert (again["ids"], again["cached"]) == (plain["ids"], whole)
