"""Save, restart, load and go on: a model that mixes sliding windows and full attention."""

from __future__ import annotations

import random

import pytest
import torch

from kvstore.connectors.transformers import load, save, spec_of
from kvstore.errors import SpecMismatch

TOKENS = random.Random(1).choices(range(3, 320), k=700)
NEXT = random.Random(2).choices(range(3, 320), k=9)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.gemma(window=100)


@pytest.mark.parametrize("count", [60, 99, 100, 101, 300, 512, 700])
def test_it_goes_on_where_the_prompt_ended(open_store, model, count, tiny):
    tokens = TOKENS[:count]
    spec, cache = spec_of(model), tiny.prefilled(model, tokens)
    save(open_store(), spec, cache, tokens, ack="persisted")
    loaded = load(open_store(), spec, tokens + NEXT, config=model.config)
    assert (loaded.tokens, loaded.failures) == (count, ())
    for ours, theirs in zip(loaded.cache.layers, cache.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys)
        assert torch.equal(ours.values, theirs.values)
        assert ours.get_seq_length() == theirs.get_seq_length() == count
    assert torch.equal(tiny.forward(model, loaded.cache, NEXT), tiny.forward(model, cache, NEXT))
    assert torch.equal(tiny.forward(model, loaded.cache, [7]), tiny.forward(model, cache, [7]))


def test_it_goes_on_generating_across_the_window(open_store, model, tiny):
    tokens = TOKENS[:90]
    spec, cache, client = spec_of(model), tiny.prefilled(model, tokens), open_store()
    save(client, spec, cache, tokens)
    loaded = load(client, spec, [*tokens, 5], config=model.config)
    ids = torch.tensor([[*tokens, 5]])
    options = {"max_new_tokens": 30, "do_sample": False, "pad_token_id": 0}
    continued = model.generate(ids, past_key_values=loaded.cache, **options)
    assert torch.equal(continued, model.generate(ids, past_key_values=cache, **options))


def test_only_what_the_window_holds_is_stored(open_store, model, tiny):
    spec, client = spec_of(model), open_store()
    result = save(client, spec, tiny.prefilled(model, TOKENS), TOKENS)
    assert (result.stored, result.outside) == (3 + 1, 2)
    again = save(client, spec, tiny.prefilled(model, TOKENS), TOKENS)
    assert (again.stored, again.present, again.outside) == (0, 4, 2)


@pytest.mark.parametrize("tokens", [TOKENS, TOKENS[:690] + NEXT, TOKENS[:512]])
def test_a_prefix_whose_window_is_gone_is_a_miss(open_store, model, tokens, tiny):
    spec, client = spec_of(model), open_store()
    save(client, spec, tiny.prefilled(model, TOKENS), TOKENS)
    assert load(client, spec, tokens, config=model.config).tokens == 0


def test_recording_the_past_keeps_what_shorter_prefixes_need(open_store, model, tiny):
    spec, client = spec_of(model), open_store()
    cache = tiny.prefilled(model, TOKENS, record_past=True)
    result = save(client, spec, cache, TOKENS)
    assert (result.stored, result.outside) == (6, 0)
    cache.crop(0)
    shorter = TOKENS[:600] + NEXT
    loaded = load(client, spec, shorter, config=model.config)
    assert loaded.tokens == 512
    split = tiny.prefilled(model, TOKENS[:512])
    torch.testing.assert_close(
        tiny.forward(model, loaded.cache, shorter[512:]), tiny.forward(model, split, shorter[512:])
    )
    assert load(client, spec, TOKENS, config=model.config).tokens == 512


def test_a_prompt_that_grows_turn_by_turn_is_found_each_time(open_store, model, tiny):
    spec, client, done = spec_of(model), open_store(), 0
    for count in (150, 333, 590):
        loaded = load(client, spec, TOKENS[:count], config=model.config)
        assert loaded.tokens == done
        tiny.forward(model, loaded.cache, TOKENS[loaded.tokens : count])
        save(client, spec, loaded.cache, TOKENS[:count], start=loaded.tokens)
        done = count
    whole = tiny.prefilled(model, TOKENS[:590])
    loaded = load(client, spec, TOKENS, config=model.config)
    torch.testing.assert_close(
        tiny.forward(model, loaded.cache, NEXT), tiny.forward(model, whole, NEXT), atol=1e-4, rtol=1e-4
    )


def test_a_window_in_every_layer(open_store, tiny):
    model = tiny.gemma(window=100)
    model.config.layer_types = ["sliding_attention"] * 6
    for layer in model.model.layers:
        layer.attention_type = "sliding_attention"
    spec, client = spec_of(model), open_store()
    save(client, spec, tiny.prefilled(model, TOKENS), TOKENS)
    assert load(client, spec, TOKENS + NEXT, config=model.config).tokens == 700


def test_the_configuration_must_be_the_specs(open_store, model, tiny):
    with pytest.raises(SpecMismatch, match="windows"):
        load(open_store(), spec_of(model), TOKENS, config=tiny.llama().config)
