"""Save, restart, load and go on: a model with full attention."""

from __future__ import annotations

import random

import pytest
import torch
import transformers

from kvstore.connectors.transformers import load, save, spec_of
from kvstore.errors import Corrupt, InvalidArgument, NotFound, SpecMismatch

TOKENS = random.Random(1).choices(range(3, 320), k=700)
NEXT = random.Random(2).choices(range(3, 320), k=9)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny.llama()


def kv_equal(left, right, tokens):
    """Whether two caches hold the same bits for the first `tokens` tokens."""
    return all(
        torch.equal(a.keys[:, :, :tokens], b.keys[:, :, :tokens])
        and torch.equal(a.values[:, :, :tokens], b.values[:, :, :tokens])
        for a, b in zip(left.layers, right.layers, strict=True)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_was_saved_comes_back_after_a_restart(open_store, dtype, tiny):
    model = tiny.llama(dtype=dtype)
    spec, cache = spec_of(model), tiny.prefilled(model, TOKENS)
    result = save(open_store(), spec, cache, TOKENS, ack="persisted")
    assert (result.stored, result.present, result.shed) == (3, 0, 0)
    loaded = load(open_store(), spec, TOKENS + NEXT, config=model.config)
    assert (loaded.tokens, loaded.failures) == (700, ())
    assert (
        loaded.nbytes
        == result.nbytes
        == spec.part_bytes(spec.part(), 700 % 256) + 2 * spec.part_bytes(spec.part(), 256)
    )
    assert kv_equal(loaded.cache, cache, 700)
    assert torch.equal(tiny.forward(model, loaded.cache, NEXT), tiny.forward(model, cache, NEXT))


def test_it_goes_on_generating_with_generate(open_store, model, tiny):
    spec, cache = spec_of(model), tiny.prefilled(model, TOKENS)
    client = open_store()
    save(client, spec, cache, TOKENS)
    loaded = load(client, spec, [*TOKENS, 5], config=model.config)
    ids = torch.tensor([[*TOKENS, 5]])
    options = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    continued = model.generate(ids, past_key_values=loaded.cache, **options)
    assert torch.equal(continued, model.generate(ids, past_key_values=cache, **options))


def test_at_least_one_token_is_left_to_compute(open_store, model, tiny):
    spec, cache, client = spec_of(model), tiny.prefilled(model, TOKENS), open_store()
    save(client, spec, cache, TOKENS)
    loaded = load(client, spec, TOKENS, config=model.config)
    assert loaded.tokens == 699
    assert kv_equal(loaded.cache, cache, 699)
    assert load(client, spec, TOKENS, config=model.config, max_tokens=300).tokens == 300
    assert load(client, spec, TOKENS[:1], config=model.config).tokens == 0


def test_a_prompt_that_shares_300_tokens_hits_the_whole_chunks_of_them(open_store, model, tiny):
    spec, cache, client = spec_of(model, chunk_tokens=64), tiny.prefilled(model, TOKENS), open_store()
    save(client, spec, cache, TOKENS)
    other = TOKENS[:300] + random.Random(3).choices(range(3, 320), k=400)
    loaded = load(client, spec, other, config=model.config)
    assert loaded.tokens == 256
    assert kv_equal(loaded.cache, cache, 256)
    expected = tiny.forward(model, tiny.prefilled(model, other[:256]), other[256:])
    torch.testing.assert_close(tiny.forward(model, loaded.cache, other[256:]), expected)


def test_a_shorter_prompts_tail_is_found_and_then_extended(open_store, model, tiny):
    spec, cache, client = spec_of(model), tiny.prefilled(model, TOKENS[:333]), open_store()
    assert save(client, spec, cache, TOKENS[:333]).stored == 2
    loaded = load(client, spec, TOKENS, config=model.config)
    assert loaded.tokens == 333
    tiny.forward(model, loaded.cache, TOKENS[333:])
    result = save(client, spec, loaded.cache, TOKENS, start=loaded.tokens)
    assert (result.stored, result.present) == (2, 0)
    assert load(client, spec, TOKENS + NEXT, config=model.config).tokens == 700


def test_a_tail_is_cut_to_whole_blocks_if_asked(open_store, model, tiny):
    spec, cache, client = spec_of(model), tiny.prefilled(model, TOKENS[:333]), open_store()
    save(client, spec, cache, TOKENS[:333], block_tokens=16)
    assert load(client, spec, TOKENS, config=model.config, block_tokens=16).tokens == 320


def test_the_cache_is_placed_where_the_model_is(open_store, tiny, model):
    spec, client = spec_of(model), open_store()
    save(client, spec, tiny.prefilled(model, TOKENS), TOKENS)
    layer = load(client, spec, TOKENS, config=model.config, device="meta").cache.layers[-1]
    assert (layer.keys.device.type, layer.values.device.type, layer.device.type) == ("meta", "meta", "meta")


def test_what_is_there_is_not_stored_again(open_store, model, tiny):
    spec, cache, client = spec_of(model), tiny.prefilled(model, TOKENS), open_store()
    save(client, spec, cache, TOKENS)
    again = save(client, spec, cache, TOKENS)
    assert (again.stored, again.present, again.nbytes) == (0, 3, 0)


def test_another_meaning_is_a_miss(open_store, model, tiny):
    spec, client = spec_of(model), open_store()
    save(client, spec, tiny.prefilled(model, TOKENS), TOKENS)
    half = tiny.llama(dtype=torch.bfloat16)
    for other, config in [
        (spec_of(half), half.config),
        (spec_of(tiny.llama(seed=7)), model.config),
        (spec_of(model, chunk_tokens=128), model.config),
    ]:
        loaded = load(client, other, TOKENS, config=config)
        assert (loaded.tokens, loaded.failures) == (0, ())
        assert loaded.cache.get_seq_length() == 0


def test_extras_keep_callers_apart(open_store, model, tiny):
    from kvstore.keys import Extras

    spec, client = spec_of(model), open_store()
    save(client, spec, tiny.prefilled(model, TOKENS), TOKENS, extras=Extras(salt="a"))
    assert load(client, spec, TOKENS, config=model.config, extras=Extras(salt="b")).tokens == 0
    assert load(client, spec, TOKENS, config=model.config, extras=Extras(salt="a")).tokens == 699


def test_more_than_one_sequence_is_refused(open_store, model):
    cache = transformers.DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.tensor([TOKENS[:8], TOKENS[8:16]]), past_key_values=cache)
    with pytest.raises(InvalidArgument, match="batch size 1"):
        save(open_store(), spec_of(model), cache, TOKENS[:8])


def test_tokens_that_the_cache_lacks_are_refused(open_store, model, tiny):
    with pytest.raises(InvalidArgument, match="not in it yet"):
        save(open_store(), spec_of(model), tiny.prefilled(model, TOKENS[:8]), TOKENS[:9])


def test_a_cache_of_another_model_is_refused(open_store, model, tiny):
    half = tiny.llama(dtype=torch.bfloat16)
    with pytest.raises(SpecMismatch, match="bfloat16"):
        save(open_store(), spec_of(model), tiny.prefilled(half, TOKENS[:8]), TOKENS[:8])


def test_a_chunk_that_cannot_be_read_shortens_the_hit(open_store, model, monkeypatch, tiny):
    spec, cache, client = spec_of(model), tiny.prefilled(model, TOKENS), open_store()
    save(client, spec, cache, TOKENS)
    bad = client.chain(spec, TOKENS).refs[1].key
    whole = type(client).view

    def view(self, spec, ref, *, part=None):
        if ref.key == bad:
            raise NotFound("gone")
        return whole(self, spec, ref, part=part)

    monkeypatch.setattr(type(client), "view", view)
    loaded = load(client, spec, TOKENS, config=model.config)
    assert (loaded.tokens, [str(each) for each in loaded.failures]) == (256, ["gone"])
    assert kv_equal(loaded.cache, cache, 256)


def test_it_works_without_views(open_store, model, monkeypatch, tiny):
    spec, cache, client = spec_of(model), tiny.prefilled(model, TOKENS), open_store()
    save(client, spec, cache, TOKENS)

    def view(self, spec, ref, *, part=None):
        raise InvalidArgument("no views here")

    monkeypatch.setattr(type(client), "view", view)
    loaded = load(client, spec, TOKENS, config=model.config)
    assert loaded.tokens == 699
    assert kv_equal(loaded.cache, cache, 699)


def test_a_damaged_chunk_shortens_the_hit_and_nothing_more(open_store, tiny, model, tmp_path):
    spec, cache = spec_of(model), tiny.prefilled(model, TOKENS)
    client = open_store()
    save(client, spec, cache, TOKENS, ack="persisted")
    second = client.get(spec, client.chain(spec, TOKENS).refs[1]).tobytes()
    client.close()
    damage(tmp_path / "nvme", second[-64:])
    loaded = load(open_store(), spec, TOKENS + NEXT, config=model.config)
    assert loaded.tokens == 256
    assert [type(each) for each in loaded.failures] == [Corrupt]
    assert kv_equal(loaded.cache, cache, 256)
    rest = TOKENS[256:] + NEXT
    expected = tiny.forward(model, tiny.prefilled(model, TOKENS[:256]), rest)
    torch.testing.assert_close(tiny.forward(model, loaded.cache, rest), expected)


def damage(folder, content):
    """Flip a bit wherever `content` lies in the files of a folder."""
    hits = 0
    for file in (each for each in folder.rglob("*") if each.is_file()):
        data = bytearray(file.read_bytes())
        at = data.find(content)
        if at >= 0:
            data[at] ^= 1
            file.write_bytes(data)
            hits += 1
    assert hits
