"""What a row of vLLM's offload memory means, and the key it is stored under.

A row is what `OffloadingConnector` keeps of one KV group for `block_size` tokens: the pages of every layer and every
rank, one after the other. vLLM names it by its own block hash and the group's number, and tells a tier neither the
token ids nor what they stand in. So the key here is not the store's chain over tokens, but a hash over vLLM's name,
in a domain of its own: it meets no other key, and says nothing of another engine's.
"""

from __future__ import annotations

import hashlib
import os
import struct
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.v1.kv_offload.base import get_offload_block_hash, get_offload_group_idx

from kvstore.connectors.vllm._identity import block_tokens, spec_of
from kvstore.connectors.vllm._options import Options
from kvstore.errors import ConfigError, InvalidArgument
from kvstore.keys import NO_PARENT, ChunkRef
from kvstore.spec import OPAQUE, KVGroup, KVSpec

HASHES = ("sha256", "sha256_cbor")
_DOMAIN = b"kvstore/vllm-row/1\0"
_GROUP = struct.Struct("<I")
# The direct connector's options that a tier has no use for: vLLM decides how long a row is, and nothing waits.
_MEANINGLESS = ("chunk_tokens", "fidelity", "lookup_wait_ms", "prefetch_mib")


@dataclass(frozen=True)
class RowIdentity:
    """`spec` has one part of `nbytes` bytes for `tokens` tokens; `domain` (32 bytes) is hashed into every key."""

    spec: KVSpec
    tokens: int
    nbytes: int
    domain: bytes

    def ref(self, key: bytes, end: int) -> ChunkRef:
        """The chunk that vLLM's `OffloadKey` names, which ends before token `end` of its prompt."""
        group = _GROUP.pack(get_offload_group_idx(key))
        digest = hashlib.sha256(_DOMAIN + self.domain + group + get_offload_block_hash(key)).digest()
        return ChunkRef(digest, NO_PARENT, end - self.tokens, self.tokens)


def tier_options(given: Mapping[str, Any]) -> Options:
    """Check a tier's own options; `ConfigError` names what is wrong."""
    for name in _MEANINGLESS:
        if name in given:
            raise ConfigError(f"secondary_tiers: {name} means nothing to KVStoreTier; leave it out")
    return Options.of(given)


def connector_above() -> tuple[Any, Any]:
    """The `VllmConfig` and the `KVCacheConfig` of the connector that is being built.

    vLLM hands a tier an `OffloadingConfig`, which leaves out what else changes the numbers in a row (overrides of the
    model's configuration, quantization, the revision of the weights) and what its KV groups are. The connector above
    has it all, and vLLM 0.32 keeps it nowhere else. Raises `InvalidArgument` where there is none.
    """
    frame = sys._getframe(1)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, KVConnectorBase_V1):
            return owner._vllm_config, owner._kv_cache_config
        if frame.f_back is None:
            break
        frame = frame.f_back
    raise InvalidArgument("KVStoreTier is built by vLLM's OffloadingConnector alone: nothing else says what rows mean")


def identity_of(config: Any, cache: Any, offloading: Any, options: Options) -> RowIdentity:
    """What rows mean under a `VllmConfig`, a `KVCacheConfig` and the `OffloadingConfig` made from them.

    Raises `InvalidArgument` with the reason for engines whose rows would not come back right.
    """
    algorithm = str(config.cache_config.prefix_caching_hash_algo)
    if algorithm not in HASHES:
        raise InvalidArgument(
            f"prefix_caching_hash_algo {algorithm!r} is not supported: vLLM seeds it anew in every process, so that "
            f"nothing would be found again, and it can be made to collide; use one of {', '.join(HASHES)}"
        )
    if config.lora_config is not None:
        raise InvalidArgument(
            "LoRA is not supported behind OffloadingConnector: vLLM names an adapter by its path, not by its content; "
            "use KVStoreConnector"
        )
    base = spec_of(config, cache, options)
    tokens = block_tokens(cache) * offloading.cache.blocks_per_chunk
    copies = 1 if offloading.replicated_layout else offloading.parallel.world_size
    nbytes = offloading.worker_kv_bytes_per_block * offloading.cache.blocks_per_chunk * copies
    elements, rest = divmod(nbytes, tokens * base.itemsize)
    if not elements or rest:
        raise InvalidArgument(f"a row of {nbytes} bytes is no whole number of {base.dtype} per token ({tokens} tokens)")
    order = "canonical" if offloading.canonical_layout else "by-rank"
    spec = KVSpec(
        model=base.model,
        revision=f"{base.revision} rows:{order}/{copies} of:{base.digest.hex()}",
        dtype=base.dtype,
        groups=(KVGroup((0,), latent_dim=elements),),
        rope=base.rope,
        chunk_tokens=tokens,
        tp_size=base.tp_size,
        layout=OPAQUE,
    )
    return RowIdentity(spec, tokens, nbytes, _hash_domain(algorithm))


def _hash_domain(algorithm: str) -> bytes:
    """How vLLM's block hashes come about. `PYTHONHASHSEED` is their seed where it is set, else a constant of vLLM's."""
    seed = os.environ.get("PYTHONHASHSEED")
    told = "default" if seed is None else f"seed:{seed}"
    return hashlib.sha256(f"{algorithm}\0{told}".encode()).digest()
