"""`KVStoreCache` of a model in device memory; tests/connectors/transformers/test_cache.py has its logic on a CPU."""

from __future__ import annotations

import random

import pytest
import torch

from kvstore.connectors.transformers import KVStoreCache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: not run on hardware here")

TOKENS = random.Random(1).choices(range(3, 320), k=700)
NEXT = random.Random(2).choices(range(3, 320), k=9)


@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_from_one_device_to_another(open_store, tiny, kind):
    """Saved from a GPU, found after a restart by the same model on a GPU and on a CPU."""
    model = getattr(tiny, kind)().cuda()

    def text(tokens, **options):
        ids = torch.tensor([tokens], device=model.device)
        return model.generate(ids, max_new_tokens=20, do_sample=False, pad_token_id=0, eos_token_id=None, **options)

    expected = text(TOKENS)
    with KVStoreCache(open_store(), model, ack="persisted") as cache:
        assert torch.equal(text(TOKENS, past_key_values=cache), expected)
        assert cache.hit_tokens == 0
    for client in (again := open_store(), again):  # from NVMe, then from DRAM
        with KVStoreCache(client, model) as cache:
            assert torch.equal(text(TOKENS, past_key_values=cache), expected)
            assert cache.hit_tokens == len(TOKENS) - 1
    other = text(TOKENS[:600] + NEXT)
    with KVStoreCache(again, model) as cache:
        assert torch.equal(text(TOKENS[:600] + NEXT, past_key_values=cache), other)
        assert cache.hit_tokens >= 512
    model.cpu()
    with KVStoreCache(again, model) as cache:
        text(TOKENS + NEXT, past_key_values=cache)
        assert cache.hit_tokens >= len(TOKENS) - 1
