"""Transformers: keep the KV of a `DynamicCache` by prefix and load the longest prefix back.

with KVStoreCache(client, model) as cache:
    output = model.generate(input_ids, past_key_values=cache)

or, step by step,

spec = spec_of(model)
loaded = load(client, spec, token_ids, config=model.config)
output = model(input_ids[:, loaded.tokens :], past_key_values=loaded.cache)
save(client, spec, loaded.cache, token_ids, start=loaded.tokens)

One sequence at a time (batch size 1), full and sliding-window attention. A sliding layer of a `DynamicCache` keeps
the last window-1 tokens only, so that after one forward of a long prompt the prefix can be continued where the
prompt ended and nowhere before; `cache.activate_past_recording()` ahead of the prefill keeps what shorter prefixes
need, and `cache.crop(0)` drops it after `save`.
"""

from kvstore.connectors.transformers._cache import KVStoreCache
from kvstore.connectors.transformers._load import Loaded, load
from kvstore.connectors.transformers._save import SaveResult, save
from kvstore.connectors.transformers._spec import spec_of, weights_digest

__all__ = ["KVStoreCache", "Loaded", "SaveResult", "load", "save", "spec_of", "weights_digest"]
