"""A disk that is slower than the engine: what lies there is computed, and the text is the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from .harness import Server, prompt, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
SLOW = str(Path(__file__).with_name("slow_disk.py"))


def test_what_is_slower_to_load_is_computed(start, alone, tmp_path, llama):
    ask, taught = prompt(1000), [prompt(512, seed=seed) for seed in range(20, 24)]
    expected = alone(llama).ask(ask)["answers"][0]["ids"]
    server = Server(tmp_path / "store")
    try:
        first = start(llama, transfer(server.address))
        for each in (ask, *taught):
            assert first.ask(each)["answers"][0]["cached"] == 0
        first.close()
        server.stop()  # which writes what it has to the disk
        server.program = (SLOW, str(1 << 18))  # four seconds for 256 tokens
        server.start()

        # What such a model really takes depends on the machine: a quick one computes these sooner than any disk reads.
        known = {"load_or_recompute": True, "prefill_tokens_per_s": 2000.0}
        engine = start(llama, transfer(server.address, lookup_timeout_s=10.0, **known))
        # Nobody knows yet how slow this disk is: the first are loaded, until that is known.
        cached = [engine.ask(each)["answers"][0]["cached"] for each in taught]
        assert cached[0] > 0
        told = engine.ask(ask)
        answer = told["answers"][0]
        assert answer["ids"] == expected
        assert answer["cached"] == 0
        assert told["counters"]["left_out_tokens"] >= 992
        assert told["counters"].get("loads_failed", 0) == 0
    finally:
        server.stop()
