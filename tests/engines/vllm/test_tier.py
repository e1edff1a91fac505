"""`KVStoreTier` behind vLLM's own OffloadingConnector."""

from __future__ import annotations

import pytest

from .harness import prompt, tier_transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("rows", [0, 4])
def test_a_fresh_engine_goes_on_from_a_servers_memory_and_disk(start, alone, server, llama, rows):
    ask = prompt(1000)
    plain = alone(llama).ask(ask)["answers"][0]
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


def test_sliding_windows_in_groups_of_their_own(start, alone, server, gemma):
    ask = prompt(1000)
    plain = alone(gemma).ask(ask)["answers"][0]
    first = start(gemma, tier_transfer(server.address), max_num_batched_tokens=300)
    assert first.ask(ask)["answers"][0]["ids"] == plain["ids"]
    first.close()
    second = start(gemma, tier_transfer(server.address))
    warm = second.ask(ask)
    assert warm["answers"][0]["ids"] == plain["ids"]
    assert warm["answers"][0]["cached"] == 992
    assert warm["counters"].get("vllm:kvstore_tier_rows_failed", 0) == 0


PAIR = {
    "tensor_parallel_size": 2,
    "distributed_executor_backend": "mp",
    "processes": True,
    "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"},
}


def test_two_ranks_find_their_own_and_nothing_of_one(start, server, llama):
    ask = prompt(700)
    one = start(llama, tier_transfer(server.address))
    cold = one.ask(ask)["answers"][0]
    one.close()
    two = start(llama, tier_transfer(server.address), **PAIR)
    other = two.ask(ask)["answers"][0]
    assert (other["cached"], other["ids"]) == (0, cold["ids"])
    two.close()
    again = start(llama, tier_transfer(server.address), **PAIR).ask(ask)["answers"][0]
    assert (again["ids"], again["cached"]) == (cold["ids"], 672)


def test_preemption_and_a_primary_tier_that_is_too_small(start, alone, server, llama):
    asks, long = [prompt(450, seed=n) for n in range(4)], prompt(900, seed=8)
    engine = alone(llama)
    plain, plain_long = engine.ask(*asks, max_tokens=120)["answers"], engine.ask(long)["answers"][0]
    options = {"max_model_len": 1024, "max_num_batched_tokens": 200}
    small = start(llama, tier_transfer(server.address), num_gpu_blocks_override=48, **options)
    asked = small.ask(*asks, max_tokens=120)
    assert asked["preemptions"] > 0
    assert [each["ids"] for each in asked["answers"]] == [each["ids"] for each in plain]
    small.ask(long)
    small.close()
    # 16 rows of 32 tokens, 4 layers and 2 KV heads of 64 in float32: a short prompt has 14, the long one 28.
    tight = start(llama, tier_transfer(server.address, primary_mib=2))
    warm = [tight.ask(each, max_tokens=120)["answers"][0] for each in asks]
    assert [each["ids"] for each in warm] == [each["ids"] for each in plain]
    assert all(each["cached"] == 448 for each in warm)
    # As much as there is room for: none while vLLM still writes out what was there, the end of which it sees in steps.
    for _ in range(20):
        part = tight.ask(long)["answers"][0]
        assert part["ids"] == plain_long["ids"]
        if part["cached"]:
            break
        tight.ask(prompt(20, seed=9), max_tokens=60)
    assert 0 < part["cached"] <= 512
    # All at once they take room from each other: how much is found is vLLM's affair, the text is not.
    crowd = tight.ask(*asks, max_tokens=120)["answers"]
    assert [each["ids"] for each in crowd] == [each["ids"] for each in plain]


def test_a_store_of_the_engines_own(start, llama):
    # The primary tier has room for one of the two prompts.
    engine = start(llama, tier_transfer("", primary_mib=2, dram_mib=64))
    one, two = prompt(450, seed=1), prompt(450, seed=2)
    cold = engine.ask(one)["answers"][0]
    engine.ask(two)
    warm = engine.ask(one)["answers"][0]
    assert (cold["cached"], warm["cached"]) == (0, 448)
    assert warm["ids"] == cold["ids"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prefix_caching_hash_algo": "xxhash"}, "seeds it anew in every process"),
        ({"enable_lora": True}, "names an adapter by its path"),
    ],
)
def test_what_cannot_be_right_is_refused_with_the_reason(start, server, llama, change, reason):
    with pytest.raises(AssertionError, match=reason):
        start(llama, tier_transfer(server.address), **change)


def test_a_reset_of_the_caches_ends_the_use_of_the_store(start, server, llama):
    ask = prompt(600)
    first = start(llama, tier_transfer(server.address))
    cold = first.ask(ask)["answers"][0]
    first.close()
    second = start(llama, tier_transfer(server.address))
    assert second.ask(ask)["answers"][0]["cached"] == 576
    second.reset()
    after = second.ask(ask)["answers"][0]
    assert (after["cached"], after["ids"]) == (0, cold["ids"])
    assert second.log.read_text(errors="replace").count("the caches were reset") == 1
