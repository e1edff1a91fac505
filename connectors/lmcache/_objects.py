"""LMCache's objects as chunks: what their bytes mean, and what they are found by."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any

from kvstore.keys import NO_PARENT, ChunkRef
from kvstore.spec import OPAQUE, KVGroup, KVSpec

Layout = tuple[tuple[tuple[int, ...], str, int], ...]  # of each tensor: shape, dtype, bytes per element


def layout_of(shapes: Sequence[Any], dtypes: Sequence[Any]) -> Layout:
    """The tensors of an object, as `MemoryObj` and `MemoryLayoutDesc` name them."""
    return tuple(
        (tuple(int(size) for size in shape), str(dtype).removeprefix("torch."), int(dtype.itemsize))
        for shape, dtype in zip(shapes, dtypes, strict=True)
    )


@lru_cache(1024)
def spec_of(model: str, group: int, layout: Layout, revision: str) -> KVSpec:
    """A chunk is an object's bytes as they lie, opaque: one element of the spec's one token is one byte.

    LMCache says how many bytes of which dtype in which shape, not which axis is what; all of that is in the revision,
    so that an object of another shape or dtype is not found. `revision` is the user's name for the weights.
    """
    nbytes = sum(prod(shape) * itemsize for shape, _, itemsize in layout)
    tensors = json.dumps([[list(shape), dtype] for shape, dtype, _ in layout], separators=(",", ":"))
    return KVSpec(
        model=model,
        revision=" ".join(filter(None, (revision, _version(), f"group:{group}", f"tensors:{tensors}"))),
        dtype="uint8",
        groups=(KVGroup((0,), latent_dim=nbytes),),
        chunk_tokens=1,
        layout=OPAQUE,
    )


def ref_of(key: Any) -> ChunkRef:
    """The chunk of an `ObjectKey`: LMCache's hash over the tokens, which rank's slice of the KV, and the salt."""
    digest = hashlib.sha256(b"kvstore/lmcache-object/1\0" + key.kv_rank.to_bytes(8, "little"))
    for field in (key.chunk_hash, key.cache_salt.encode()):
        digest.update(len(field).to_bytes(4, "little") + field)
    return ChunkRef(digest.digest(), NO_PARENT, 0, 1)


def _version() -> str:
    """What LMCache hashes may change with its version."""
    from importlib.metadata import version

    return f"lmcache-{version('lmcache')}"
