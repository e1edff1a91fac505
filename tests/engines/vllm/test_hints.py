"""What a request says in `kv_transfer_params` reaches the store through a real vLLM."""

from __future__ import annotations

import time
from typing import Any

import pytest

import kvstore

from .harness import Server, prompt, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def hints(client: kvstore.Client, expected: int) -> dict[str, int]:
    """The store's counters of hints, once there are so many."""
    deadline = time.monotonic() + 20
    while True:
        counters = client.stats()["counters"]
        found = {name: count for name, count in counters.items() if name.startswith("hints_")}
        if sum(found.values()) >= expected or time.monotonic() > deadline:
            return found
        time.sleep(0.05)


def test_requests_say_what_becomes_of_their_prompts(start: Any, tmp_path: Any, llama: Any) -> None:
    server = Server(tmp_path / "store", "--store-policy", "value")
    try:
        engine = start(llama, transfer(server.address))
        with kvstore.connect(server.address) as client:
            plain = engine.ask(prompt(300, seed=1))["answers"][0]["ids"]
            engine.ask(prompt(600, seed=2), params={"kvstore.awaited_s": 60})
            assert hints(client, 1) == {"hints_awaited": 1}
            engine.ask(prompt(600, seed=3), params={"kvstore.ended": True})
            assert hints(client, 2) == {"hints_awaited": 1, "hints_ended": 1}
            # What cannot be is ignored, and what is another connector's passed over.
            told = engine.ask(prompt(300, seed=1), params={"kvstore.awaited_s": -1, "do_something": True})
            assert told["answers"][0]["ids"] == plain
            assert hints(client, 2) == {"hints_awaited": 1, "hints_ended": 1}
            assert engine.ask(prompt(600, seed=3))["answers"][0]["cached"] > 0  # it comes back all the same
            assert told["counters"]["hints"] == 2
    finally:
        server.stop()
