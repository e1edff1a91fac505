"""What a `KVStoreCache` refuses, so that no KV is ever found under ids that do not say all about it."""

from __future__ import annotations

import random

import pytest
import torch

from kvstore.connectors.transformers import KVStoreCache, spec_of
from kvstore.errors import InvalidArgument, SpecMismatch

TOKENS = random.Random(1).choices(range(3, 320), k=300)
IDS = torch.tensor([TOKENS])
GREEDY = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.llama()


@pytest.fixture
def cache(open_store, model):
    return KVStoreCache(open_store(), model)


def nothing_stored(cache):
    return not list(cache._client.list())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"input_ids": IDS.repeat(2, 1)}, "one sequence; this batch .* has 2"),
        ({"input_ids": IDS, "num_beams": 3}, "has 3"),
        ({"input_ids": IDS, "num_return_sequences": 2, "do_sample": True}, "has 2"),
        ({"input_ids": IDS, "attention_mask": torch.cat([torch.zeros(1, 9), torch.ones(1, 291)], 1).long()}, "padding"),
        ({"input_ids": IDS, "use_cache": False}, "use_cache=False"),
        ({"inputs_embeds": torch.zeros(1, 5, 64)}, "inputs_embeds"),
    ],
    ids=["batch", "beams", "sequences", "padding", "no cache", "embeddings"],
)
def test_generate_is_refused(cache, model, given, message):
    with pytest.raises(InvalidArgument, match=message):
        model.generate(past_key_values=cache, **{**GREEDY, **given})
    assert cache.token_ids == ()
    assert nothing_stored(cache)


@pytest.mark.parametrize("kind", ["static", "offloaded", "quantized"])
def test_transformers_refuses_another_cache_beside_it(cache, model, kind):
    with pytest.raises(ValueError, match="cache_implementation"):
        model.generate(IDS, past_key_values=cache, cache_implementation=kind, **GREEDY)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"position_ids": torch.arange(300)[None] + 5}, "position_ids"),
        ({"position_ids": torch.zeros(3, 1, 300).long()}, "position_ids"),
        ({"attention_mask": torch.ones(1, 1, 300, 300)}, "masks change KV"),
        ({"attention_mask": torch.ones(1, 299)}, "not .1, 300. of ones"),
        ({"pixel_values": torch.zeros(1, 3, 4, 4)}, "pixel_values"),
        ({"input_ids": IDS.float()}, "integers"),
    ],
    ids=["shifted", "three axes", "4D mask", "short mask", "image", "floats"],
)
def test_a_forward_is_refused(cache, model, given, message):
    with pytest.raises(InvalidArgument, match=message):
        model(**{"input_ids": IDS, **given}, past_key_values=cache)
    assert cache.save().stored == 0


def test_training_and_autocast(cache, tiny, open_store):
    model = tiny.llama().train()
    with pytest.raises(InvalidArgument, match="eval"):
        model(IDS, past_key_values=KVStoreCache(open_store(), model))
    model = cache.model
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(InvalidArgument, match="autocast"):
        model(IDS, past_key_values=cache)


def test_kv_of_a_forward_that_was_not_seen(cache, model, tiny):
    for other in (tiny.llama(seed=3), model.model):  # another model; the inside of this one
        with pytest.raises(InvalidArgument, match="was not shown"):
            other(IDS, past_key_values=cache)
    cache.close()
    with pytest.raises(InvalidArgument, match=r"before close\(\)"):
        model(IDS, past_key_values=cache)
    assert nothing_stored(cache)


def test_another_prompt_over_a_cache_in_use(cache, model):
    model.generate(IDS, past_key_values=cache, **GREEDY)
    with pytest.raises(InvalidArgument, match=r"load\(input_ids\)"):
        model.generate(IDS[:, :50], past_key_values=cache, **GREEDY)
    with pytest.raises(InvalidArgument, match="starts at position 0"):
        model(IDS.flip(1), position_ids=torch.arange(300)[None], past_key_values=cache)
    assert cache.load(IDS[:, :50]) == 49


def test_a_forward_that_broke_off(cache, model):
    def stop(*_):
        raise RuntimeError("out of memory")

    hook = model.model.layers[2].register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="out of memory"), cache:
        model(IDS, past_key_values=cache)
    hook.remove()
    with pytest.raises(InvalidArgument, match="broken off"):
        cache.save()
    assert nothing_stored(cache)
    cache.reset()
    assert cache.save().stored == 0


def test_going_back_further_than_the_windows_hold(open_store, tiny):
    model = tiny.gemma(window=100)
    with KVStoreCache(open_store(), model) as cache:
        model.generate(IDS, past_key_values=cache, **GREEDY)
        cache.crop(-200)  # nothing is dropped before it is saved
        assert cache.token_ids == tuple(TOKENS[:102])
        model(IDS[:, 102:], past_key_values=cache)
        cache.save()
        with pytest.raises(InvalidArgument, match="windows no longer hold"):
            cache.crop(-1)
        with pytest.raises(InvalidArgument, match="it has 300"):
            cache.crop(-301)


def test_beams_of_any_kind(cache):
    for call in (cache.reorder_cache, cache.batch_select_indices):
        with pytest.raises(InvalidArgument, match="one sequence"):
            call(torch.tensor([0, 0]))
    with pytest.raises(InvalidArgument, match="one sequence"):
        cache.batch_repeat_interleave(2)


def test_models_that_cannot_be_watched_or_named(open_store, model, tiny):
    with pytest.raises(InvalidArgument, match="Linear"):
        KVStoreCache(open_store(), torch.nn.Linear(2, 2))
    with pytest.raises(SpecMismatch, match="windows"):
        KVStoreCache(open_store(), model, spec=spec_of(tiny.gemma()))
    with pytest.raises(SpecMismatch, match="another model's"):
        KVStoreCache(open_store(), model, spec=spec_of(tiny.llama(seed=1)))
    with pytest.raises(InvalidArgument, match="not None"):
        KVStoreCache(None, model)
    spread = tiny.llama()
    spread.lm_head.to("meta")
    with pytest.raises(InvalidArgument, match="cpu, meta"):
        KVStoreCache(open_store(), spread)


def test_weights_that_change_under_a_cache(open_store, tiny):
    model = tiny.llama()
    cache = KVStoreCache(open_store(), model)
    model.generate(IDS, past_key_values=cache, **GREEDY)
    with torch.no_grad():
        model.model.norm.weight[0] += 1
    with pytest.raises(SpecMismatch, match="changed"):
        cache.save()
    assert nothing_stored(cache)


class StandInForLora(torch.nn.Linear):
    """What PEFT puts in a layer's place, by the only mark that is looked at: where its class is from."""


StandInForLora.__module__ = "peft.tuners.lora.layer"


def test_adapters_are_refused_whenever_they_come(open_store, tiny):
    model, client = tiny.llama(), open_store()
    attention = model.model.layers[1].self_attn
    cache = KVStoreCache(client, model)
    plain, attention.q_proj = attention.q_proj, StandInForLora(64, 64, bias=False)
    for call in (
        lambda: spec_of(model),
        lambda: KVStoreCache(client, model),
        lambda: model.generate(IDS, past_key_values=cache, **GREEDY),
    ):
        with pytest.raises(InvalidArgument, match=r"layers\.1\.self_attn\.q_proj has a PEFT adapter"):
            call()
    attention.q_proj = plain
    cache.reset()
    model.generate(IDS, past_key_values=cache, **GREEDY)
    attention.q_proj = StandInForLora(64, 64, bias=False)
    with pytest.raises(InvalidArgument, match="PEFT"):
        cache.save()
