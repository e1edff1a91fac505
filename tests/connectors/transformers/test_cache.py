"""`KVStoreCache` in `generate` and in plain forwards: the text of a model without it, and hits where there must be."""

from __future__ import annotations

import copy
import random

import pytest
import torch

from kvstore.connectors.transformers import KVStoreCache, load, spec_of
from kvstore.cost import Prefill
from kvstore.errors import InvalidArgument, Unavailable
from kvstore.keys import Extras

TOKENS = random.Random(1).choices(range(3, 320), k=700)
NEXT = random.Random(2).choices(range(3, 320), k=9)
GREEDY = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


@pytest.fixture(scope="module", params=["full", "sliding"])
def model(request, tiny):
    return tiny.llama() if request.param == "full" else tiny.gemma(window=100)


def row(tokens):
    return torch.tensor([tokens])


def text(model, tokens, **options):
    return model.generate(row(tokens), **GREEDY, **options)[0].tolist()


def test_a_prompt_is_computed_once(open_store, model):
    expected = text(model, TOKENS)
    with KVStoreCache(open_store(), model, ack="persisted") as cache:
        assert text(model, TOKENS, past_key_values=cache) == expected
        assert (cache.hit_tokens, cache.token_ids) == (0, tuple(expected[:-1]))
    for client in (again := open_store(), again):  # from NVMe, then from DRAM
        with KVStoreCache(client, model) as cache:
            assert text(model, TOKENS, past_key_values=cache) == expected
            assert cache.hit_tokens == len(TOKENS) - 1
            assert cache.save().stored == 0


def test_only_what_is_not_stored_is_computed(open_store, model):
    client, computed = open_store(), []
    with KVStoreCache(client, model) as cache:
        text(model, TOKENS, past_key_values=cache)
    watch = model.get_input_embeddings().register_forward_hook(lambda _, given, __: computed.append(given[0].shape[1]))
    with KVStoreCache(client, model) as cache:
        text(model, TOKENS + NEXT, past_key_values=cache)
    watch.remove()
    assert computed[0] == 1 + len(NEXT)
    assert set(computed[1:]) == {1}


def test_what_the_model_computes_more_quickly_is_not_loaded(open_store, model):
    client, expected = open_store(), text(model, TOKENS)
    with KVStoreCache(client, model) as cache:
        text(model, TOKENS, past_key_values=cache)
    for rate, hit in ((1e12, 0), (1.0, len(TOKENS) - 1)):
        with KVStoreCache(client, model, prefill=Prefill.of_rate(rate)) as cache:
            assert text(model, TOKENS, past_key_values=cache) == expected
            assert cache.hit_tokens == hit
            assert copy.deepcopy(cache)._prefill is cache._prefill
    assert client.stats()["counters"]["left_out_slower"] > 0
    assert client.stats()["gauges"]["prefills"] == 1


def test_what_becomes_of_a_conversation_is_told_after_it_is_stored(open_store, model, monkeypatch):
    client, told = open_store(), []
    monkeypatch.setattr(client.backend, "hint", lambda spec, keys, seconds: told.append((list(keys), seconds)) or 1)
    with KVStoreCache(client, model, extras=Extras(salt="s")) as cache:
        text(model, TOKENS, past_key_values=cache)
        cache.awaited(30)
        keys = [ref.key for ref in client.chain(cache.spec, cache.token_ids, Extras(salt="s")).refs]
        assert told == [(keys, 30)]
        assert cache.save().stored == 0
        cache.ended()
        assert told[1:] == [(keys, 0.0)]
        for wrong in (0, -1, float("nan"), 1e9):
            with pytest.raises(InvalidArgument, match="up to 86400"):
                cache.awaited(wrong)


def test_a_store_that_cannot_be_told_costs_a_warning(open_store, model, monkeypatch):
    client = open_store()

    def gone(*given):
        raise Unavailable("nobody listens")

    monkeypatch.setattr(client.backend, "hint", gone)
    with KVStoreCache(client, model) as cache:
        text(model, TOKENS, past_key_values=cache)
        with pytest.warns(RuntimeWarning, match="nobody listens"):
            cache.ended()


def test_what_was_generated_is_stored_too(open_store, model):
    client = open_store()
    with KVStoreCache(client, model) as cache:
        said = text(model, TOKENS, past_key_values=cache)
    with KVStoreCache(client, model) as cache:
        assert text(model, said + NEXT, past_key_values=cache) == text(model, said + NEXT)
        assert cache.hit_tokens == len(said) - 1


@pytest.mark.parametrize("shared", [255, 256, 300, 512, 600])
def test_a_prompt_that_goes_another_way_inside_a_chunk(open_store, model, shared):
    client, other = open_store(), TOKENS[:shared] + [2] + NEXT * 5
    with KVStoreCache(client, model) as cache:
        text(model, TOKENS, past_key_values=cache)
    with KVStoreCache(client, model) as cache:
        assert text(model, other, past_key_values=cache) == text(model, other)
        assert cache.hit_tokens == shared // 256 * 256


@pytest.mark.parametrize("count", [1, 2, 17, 99, 100, 101, 256, 257])
def test_short_prompts(open_store, model, count):
    client, prompt = open_store(), TOKENS[:count]
    expected = text(model, prompt)
    for hit in (0, count - 1):
        with KVStoreCache(client, model) as cache:
            assert text(model, prompt, past_key_values=cache) == expected
            assert cache.hit_tokens == hit


def test_turn_after_turn_with_one_cache_and_with_one_for_each(open_store, model):
    client, said, held = open_store(), TOKENS[:150], 0
    with KVStoreCache(client, model) as going_on:
        for turn in range(4):
            said = said + NEXT * (10 * turn + 1)
            expected = text(model, said)
            with KVStoreCache(client, model) as fresh:
                assert text(model, said, past_key_values=fresh) == expected
                assert fresh.hit_tokens == held
            assert text(model, said, past_key_values=going_on) == expected
            said, held = expected, len(expected) - 1
            assert len(going_on.token_ids) == held


def test_saving_between_turns_stores_each_token_once(open_store, model):
    client = open_store()
    with KVStoreCache(client, model) as cache:
        said = text(model, TOKENS[:300], past_key_values=cache)
        first = cache.save()
        assert first.stored
        assert cache.save() == type(first)()
        said = text(model, said + NEXT * 20, past_key_values=cache)
        assert cache.save().stored
    spec = spec_of(model)
    assert load(client, spec, said, config=model.config).tokens == len(said) - 1
    assert load(client, spec, TOKENS[:300], config=model.config).tokens == 299


@pytest.mark.parametrize("options", [{"prompt_lookup_num_tokens": 3}, {"prefill_chunk_size": 300}, {"do_sample": True}])
def test_other_ways_to_generate(open_store, model, options):
    def said(**more):
        torch.manual_seed(3)
        return model.generate(row(TOKENS * 2), **{**GREEDY, **options}, **more)[0].tolist()

    client, expected = open_store(), said()
    for hit in (0, 1399):
        with KVStoreCache(client, model) as cache:
            cache.load(row(TOKENS * 2))
            assert said(past_key_values=cache) == expected
            assert (cache.hit_tokens, cache.token_ids) == (hit, tuple(expected[:-1]))


def test_assisted_by_another_model(open_store, model, tiny):
    client, expected = open_store(), text(model, TOKENS)
    helper = tiny.llama(seed=5)
    for hit in (0, 699):
        with KVStoreCache(client, model) as cache:
            said = text(model, TOKENS, past_key_values=cache, assistant_model=helper)
            assert (said, cache.hit_tokens, cache.token_ids) == (expected, hit, tuple(expected[:-1]))
            more = text(model, said + NEXT, past_key_values=cache, assistant_model=helper)
            assert more == text(model, said + NEXT)


def test_a_forward_of_ones_own(open_store, model, tiny):
    client, whole = open_store(), tiny.forward(model, None, TOKENS)
    with KVStoreCache(client, model) as cache, torch.no_grad():
        got = model(row(TOKENS), past_key_values=cache, use_cache=True).logits  # all logits: nothing may be skipped
        torch.testing.assert_close(got[0], whole)
    with KVStoreCache(client, model) as cache, torch.no_grad():
        start = cache.load(row(TOKENS))
        assert start == 699
        torch.testing.assert_close(model(row(TOKENS)[:, start:], past_key_values=cache).logits[0], whole[start:])
    with KVStoreCache(client, model) as cache, torch.no_grad():
        got = model(row(TOKENS), None, past_key_values=cache, logits_to_keep=2).logits
        torch.testing.assert_close(got[0], whole[-2:])
        assert cache.hit_tokens == (698 if model.config.model_type == "llama" else 512)


@pytest.mark.parametrize(
    "asked", [{"output_hidden_states": True}, {"output_attentions": True}, {"labels": row(TOKENS)}]
)
def test_who_wants_results_for_every_token_gets_them(open_store, model, asked):
    client = open_store()
    with KVStoreCache(client, model) as cache:
        text(model, TOKENS, past_key_values=cache)
    with KVStoreCache(client, model) as cache, torch.no_grad():
        output = model(row(TOKENS), past_key_values=cache, **asked)
        assert output.logits.shape[1] == len(TOKENS)


def test_load_goes_back_to_where_two_prompts_part(open_store, model):
    other = TOKENS[:680] + NEXT
    with KVStoreCache(open_store(), model) as cache:
        text(model, TOKENS, past_key_values=cache)
        assert cache.load(row(other)) == 680  # held, though not stored
        assert text(model, other, past_key_values=cache) == text(model, other)
        cache.save()
        assert cache.load(row(TOKENS[:300] + NEXT)) == (300 if model.config.model_type == "llama" else 256)
        assert cache.load(row(NEXT)) == 0
        assert text(model, NEXT, past_key_values=cache) == text(model, NEXT)


def test_shorter_prefixes_are_stored_with_sliding_windows(open_store, tiny):
    model, client = tiny.gemma(window=100), open_store()
    with KVStoreCache(client, model) as cache:
        text(model, TOKENS, past_key_values=cache)
        assert cache.save().outside == 0
        assert all(window.keys.shape[-2] == 99 for window in cache.windows)
    assert load(client, spec_of(model), TOKENS[:300], config=model.config).tokens == 256


def test_a_copy_goes_its_own_way(open_store, model):
    with KVStoreCache(open_store(), model) as cache:
        cache.load(row(TOKENS))
        with torch.no_grad():
            model(row(TOKENS), past_key_values=cache)
        for ending in (NEXT, NEXT[::-1]):
            with copy.deepcopy(cache) as branch:
                assert text(model, TOKENS + ending, past_key_values=branch) == text(model, TOKENS + ending)
        assert cache.token_ids == tuple(TOKENS)


def test_another_models_weights_and_other_extras_are_a_miss(open_store, tiny):
    model, client = tiny.llama(), open_store()
    with KVStoreCache(client, model, extras=Extras(salt="a")) as cache:
        text(model, TOKENS, past_key_values=cache)
    for other, salt, hit in ((tiny.llama(seed=1), "a", 0), (model, "", 0), (model, "b", 0), (model, "a", 699)):
        with KVStoreCache(client, other, extras=Extras(salt=salt)) as cache:
            assert text(other, TOKENS, past_key_values=cache) == text(other, TOKENS)
            assert cache.hit_tokens == hit


def test_a_model_forgets_its_caches(open_store, model):
    client, before = open_store(), len(model._forward_pre_hooks)
    caches = [KVStoreCache(client, model) for _ in range(3)]
    assert len(model._forward_pre_hooks) == before + 3
    caches[0].close()
    del caches
    assert len(model._forward_pre_hooks) == before
