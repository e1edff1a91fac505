"""Real models: what was saved comes back after a restart, and the text goes on as it would have."""

from __future__ import annotations

import pytest
import torch
from transformers import DynamicCache

from kvstore.connectors.transformers import KVStoreCache, load, save, spec_of
from kvstore.demo import document, inference, models, places

pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(600)]
TOKENS, GENERATED = 700, 16


@pytest.fixture(scope="module", params=[models.SMOLLM2, models.GEMMA3], ids=lambda model: model.name)
def model_and_ids(request):
    model, tokenizer = models.load(models.convert(request.param))
    return model, document.token_ids(tokenizer, TOKENS + 20)


def test_the_continuation_is_the_same(open_store, model_and_ids):
    model, ids = model_and_ids
    spec, prefix = spec_of(model), ids[:TOKENS]
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(torch.tensor([prefix]), past_key_values=cache, logits_to_keep=1)
    result = save(open_store(), spec, cache, prefix, ack="persisted")
    assert result.stored
    assert not result.shed
    loaded = load(open_store(), spec, ids, config=model.config)
    assert (loaded.tokens, loaded.failures) == (TOKENS, ())
    for ours, theirs in zip(loaded.cache.layers, cache.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
    rest = torch.tensor([ids[TOKENS:]])
    with torch.inference_mode():
        expected = model(rest, past_key_values=cache).logits
        assert torch.equal(model(rest, past_key_values=loaded.cache).logits, expected)
    ours, theirs = (
        inference.continuation(model, inference.FirstToken(each, int(expected[0, -1].argmax()), 0.0, 0.0), GENERATED)
        for each in (loaded.cache, cache)
    )
    assert ours == theirs


def test_it_is_what_a_cold_run_says(open_store, model_and_ids):
    model, ids = model_and_ids
    spec = spec_of(model)
    first = inference.cold(model, ids[:TOKENS])
    save(open_store(), spec, first.cache, ids[:TOKENS], ack="persisted")
    warm = inference.warm(model, ids, open_store(), spec)
    assert warm.hit_tokens == TOKENS
    whole = inference.cold(model, ids)
    assert inference.continuation(model, warm, GENERATED) == inference.continuation(model, whole, GENERATED)


def generated(model, ids, cache=None):
    return model.generate(
        torch.tensor([ids]), past_key_values=cache, max_new_tokens=GENERATED, do_sample=False, eos_token_id=None
    )[0].tolist()


def test_generate_says_the_same_from_a_servers_dram_and_nvme(model_and_ids, tmp_path):
    model, ids = model_and_ids
    prompt = ids[:TOKENS]
    expected = generated(model, prompt)
    with places.served(tmp_path) as client:
        for hit in (0, TOKENS - 1):  # cold, from DRAM
            with KVStoreCache(client, model, ack="persisted") as cache:
                assert (generated(model, prompt, cache), cache.hit_tokens) == (expected, hit)
    with places.served(tmp_path) as client:  # restarted: from NVMe
        with KVStoreCache(client, model) as cache:
            assert (generated(model, prompt, cache), cache.hit_tokens) == (expected, TOKENS - 1)
            turn = expected + ids[TOKENS:]
            more = generated(model, turn)
            assert generated(model, turn, cache) == more
        with KVStoreCache(client, model) as cache:
            assert (generated(model, turn, cache), cache.hit_tokens) == (more, len(turn) - 1)
        other = prompt[:600] + ids[100:180]  # parts from the prompt inside its third chunk
        with KVStoreCache(client, model) as cache:
            assert (generated(model, other, cache), cache.hit_tokens) == (generated(model, other), 512)
        short = ids[300:350]
        for hit in (0, 49):
            with KVStoreCache(client, model) as cache:
                assert (generated(model, short, cache), cache.hit_tokens) == (generated(model, short), hit)
