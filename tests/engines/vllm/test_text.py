"""The same text cold and warm, and a miss where the bytes would mean something else."""

from __future__ import annotations

import pytest

from . import models
from .harness import prompt, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_a_fresh_engine_goes_on_from_a_servers_memory_and_disk(start, alone, server, llama):
    ask = prompt(1000)
    plain = alone(llama).ask(ask)["answers"][0]
    first = start(llama, transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    assert (cold["ids"], cold["cached"]) == (plain["ids"], 0)
    first.close()

    second = start(llama, transfer(server.address))
    warm = second.ask(ask)
    assert warm["answers"][0]["ids"] == plain["ids"]
    assert warm["answers"][0]["cached"] == 992  # of 1,000: whole blocks of 32
    assert warm["counters"].get("loads_failed", 0) == 0

    server.stop()
    server.start()
    third = start(llama, transfer(server.address))
    again = third.ask(ask)["answers"][0]
    assert (again["ids"], again["cached"]) == (plain["ids"], 992)


def test_salts_prefixes_and_lengths(start, server, llama):
    engine = start(llama, transfer(server.address))
    ask = prompt(800)
    cold = engine.ask(ask)["answers"][0]
    other = engine.ask(ask, salt="another tenant")["answers"][0]
    assert (other["cached"], other["ids"]) == (0, cold["ids"])
    # All of the prompt is stored: the last token alone is computed again.
    again = engine.ask_until_cached(ask, tokens=800, salt="another tenant")["answers"][0]
    assert (again["cached"], again["ids"]) == (800, cold["ids"])
    # A prompt that goes on elsewhere shares what comes before, up to a chunk or a stored tail.
    shared = engine.ask(ask[:600] + prompt(200, seed=5))["answers"][0]
    assert shared["cached"] == 512
    assert engine.ask(ask[:512])["answers"][0]["cached"] == 512
    # The answer's own tokens are stored too.
    longer = ask + cold["ids"] + prompt(100, seed=7)
    assert engine.ask(longer)["answers"][0]["cached"] in (800, 768 + 32)


@pytest.mark.parametrize("change", [{"dtype": "bfloat16"}, {"hf_overrides": {"rms_norm_eps": 1e-3}}])
def test_another_meaning_is_a_miss(start, server, llama, change):
    first = start(llama, transfer(server.address))
    first.ask(prompt(600))
    first.close()
    second = start(llama, transfer(server.address), **change)
    assert second.ask(prompt(600))["answers"][0]["cached"] == 0


def test_an_engines_own_store_without_a_server(start, llama):
    engine = start(llama, transfer("", dram_mib=256))
    cold = engine.ask(prompt(700))["answers"][0]
    warm = engine.ask_until_cached(prompt(700), tokens=672)["answers"][0]
    assert (cold["cached"], warm["cached"]) == (0, 672)
    assert warm["ids"] == cold["ids"]


@pytest.mark.parametrize("way", ["module path", "MultiConnector"])
def test_the_other_ways_to_name_it(start, server, llama, way):
    given = transfer(server.address)
    if way == "module path":
        given["kv_connector_module_path"] = "kvstore.connectors.vllm"
    else:
        inner = {key: value for key, value in given.items() if key != "kv_load_failure_policy"}
        given = {
            "kv_connector": "MultiConnector",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"connectors": [inner]},
        }
    engine = start(llama, given)
    cold = engine.ask(prompt(300))["answers"][0]
    warm = engine.ask_until_cached(prompt(300), tokens=288)["answers"][0]
    assert (warm["ids"], warm["cached"]) == (cold["ids"], 288)


def test_other_weights_are_a_miss(start, server, llama, tmp_path):
    ask = prompt(600)
    first = start(llama, transfer(server.address))
    first.ask(ask)
    first.close()
    other = models.llama(tmp_path / llama.name, seed=1)  # the same name, shape and configuration
    plain = start(other).ask(ask)["answers"][0]
    told = start(other, transfer(server.address)).ask(ask)["answers"][0]
    assert (told["ids"], told["cached"]) == (plain["ids"], 0)


def test_adapters_are_kept_apart_by_what_is_in_their_files(start, server, llama, tmp_path):
    ask = prompt(600)
    one, two = models.adapter(tmp_path / "one", 1), models.adapter(tmp_path / "two", 2)
    lora = {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
    plain = start(llama, **lora)
    expected = {path: plain.ask(ask, lora=str(path))["answers"][0]["ids"] for path in ("", one, two)}
    assert len({tuple(ids) for ids in expected.values()}) == 3
    plain.close()
    first = start(llama, transfer(server.address), **lora)
    for path, ids in expected.items():
        cold = first.ask(ask, lora=str(path))["answers"][0]
        assert (cold["ids"], cold["cached"]) == (ids, 0)
    first.close()
    # Elsewhere, under other names and in another order: what counts is the content.
    moved = tmp_path / "moved"
    two.rename(moved)
    second = start(llama, transfer(server.address), **lora)
    for path, source in ((moved, two), (one, one), ("", "")):
        warm = second.ask(ask, lora=str(path))["answers"][0]
        assert (warm["ids"], warm["cached"]) == (expected[source], 576)
    # An adapter that changes under a running engine has no name any more.
    models.adapter(moved, 3)
    assert second.ask(ask, lora=str(moved))["answers"][0]["cached"] == 0


def test_beside_another_connector(start, alone, server, llama, tmp_path):
    """Inside MultiConnector with vLLM's own example: the first that has a prefix loads it, both save."""
    folder = {"shared_storage_path": str(tmp_path / "example")}
    example = {"kv_connector": "ExampleConnector", "kv_role": "kv_both", "kv_connector_extra_config": folder}
    ours = {key: value for key, value in transfer(server.address).items() if key != "kv_load_failure_policy"}
    ask = prompt(600)
    plain = alone(llama).ask(ask)["answers"][0]
    for connectors in ([ours, example], [example, ours]):
        given = {"kv_connector": "MultiConnector", "kv_role": "kv_both", "kv_load_failure_policy": "recompute",
                 "kv_connector_extra_config": {"connectors": connectors}}  # fmt: skip
        engine = start(llama, given)
        assert engine.ask(ask)["answers"][0]["ids"] == plain["ids"]
        warm = engine.ask_until_cached(ask, tokens=576)["answers"][0]
        assert (warm["ids"], warm["cached"] >= 576) == (plain["ids"], True)
        engine.close()
