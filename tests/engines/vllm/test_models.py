"""Several KV groups, latent attention, tensor parallelism, chunked prefill, preemption."""

from __future__ import annotations

import pytest

from .harness import prompt, transfer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def test_sliding_windows_in_groups_of_their_own(start, alone, server, gemma):
    ask = prompt(1000)
    plain = alone(gemma).ask(ask)["answers"][0]
    first = start(gemma, transfer(server.address), max_num_batched_tokens=300)
    assert first.ask(ask)["answers"][0]["ids"] == plain["ids"]
    first.close()
    second = start(gemma, transfer(server.address))
    warm = second.ask(ask)
    assert warm["answers"][0]["ids"] == plain["ids"]
    assert warm["answers"][0]["cached"] == 992
    # Cut at a whole chunk, behind which the windows have all they need.
    shared = second.ask(ask[:600] + prompt(200, seed=5))
    assert shared["answers"][0]["cached"] == 512
    assert shared["counters"].get("loads_failed", 0) == 0


def test_latent_attention(start, server, deepseek):
    """On CPUs with AMX vLLM goes on from a prefix, elsewhere it does not, and that is refused with the reason.

    In bfloat16, which is all that AMX takes; so the text to expect is that of a hit in vLLM's own prefix cache.
    """
    import torch

    options = {"dtype": "bfloat16", "max_num_batched_tokens": 2048}
    if not torch.cpu._is_amx_tile_supported():
        with pytest.raises(AssertionError, match="cannot go on from a prefix"):
            start(deepseek, transfer(server.address), **options)
        return
    ask = prompt(1000)
    plain = start(deepseek, enable_prefix_caching=True, **options)
    plain.ask(ask)
    own = plain.ask(ask)["answers"][0]
    plain.close()
    first = start(deepseek, transfer(server.address), **options)
    first.ask(ask)
    first.close()
    warm = start(deepseek, transfer(server.address), **options).ask(ask)["answers"][0]
    assert own["cached"] == warm["cached"] == 992
    assert warm["ids"] == own["ids"]


def test_two_ranks_find_their_own_and_nothing_of_one(start, server, llama):
    ask = prompt(700)
    one = start(llama, transfer(server.address))
    cold = one.ask(ask)["answers"][0]
    one.close()
    pair = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp", "processes": True,
            "env": {"VLLM_CPU_OMP_THREADS_BIND": "0|1"}}  # fmt: skip
    two = start(llama, transfer(server.address), **pair)
    other = two.ask(ask)["answers"][0]
    assert other["cached"] == 0
    warm = two.ask_until_cached(ask, tokens=672)["answers"][0]
    assert (warm["ids"], warm["cached"]) == (other["ids"], 672)
    assert other["ids"] == cold["ids"]


def test_chunked_prefill_and_preemption(start, alone, server, llama):
    asks = [prompt(450, seed=n) for n in range(4)]
    plain = alone(llama).ask(*asks, max_tokens=120)["answers"]
    options = {"max_model_len": 1024, "max_num_batched_tokens": 200}
    # Room for three of the four as they come, but not as they have grown: they preempt each other.
    small = start(llama, transfer(server.address), num_gpu_blocks_override=48, **options)
    asked = small.ask(*asks, max_tokens=120)
    cold = asked["answers"]
    assert asked["preemptions"] > 0
    assert [each["ids"] for each in cold] == [each["ids"] for each in plain]
    small.close()
    fresh = start(llama, transfer(server.address))
    warm = fresh.ask(*asks, max_tokens=120)["answers"]
    assert [each["ids"] for each in warm] == [each["ids"] for each in plain]
    assert all(each["cached"] == 448 for each in warm)


@pytest.mark.parametrize("name", ["SMOLLM2", "GEMMA3"])
def test_real_models_say_the_same(start, server, name):
    """Cold, with vLLM's own prefix cache, and from the store; Gemma 3 has six KV groups, five of them with windows."""
    from kvstore.demo import models as packaged

    model = packaged.convert(getattr(packaged, name))
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    ask = AutoTokenizer.from_pretrained(model)(topics["compound"]).input_ids[:1100]
    options = {"max_model_len": 2048, "max_num_batched_tokens": 2048}
    plain = start(model, enable_prefix_caching=True, **options)
    cold = plain.ask(ask, max_tokens=48)["answers"][0]
    own = plain.ask(ask, max_tokens=48)["answers"][0]
    assert (own["ids"], own["cached"]) == (cold["ids"], 1088)
    plain.close()
    first = start(model, transfer(server.address), **options)
    assert first.ask(ask, max_tokens=48)["answers"][0]["ids"] == cold["ids"]
    first.close()
    warm = start(model, transfer(server.address), **options).ask(ask, max_tokens=48)["answers"][0]
    assert (warm["ids"], warm["cached"]) == (cold["ids"], own["cached"])
