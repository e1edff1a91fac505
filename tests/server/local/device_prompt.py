"""What the tests of device views store: 256 KiB a chunk, its bytes a function of its key."""

from __future__ import annotations

from typing import Any

import numpy as np

import kvstore
from kvstore.keys import Chain, ChunkRef

SPEC = kvstore.KVSpec.dense("device", layers=4, kv_heads=4, head_dim=64, chunk_tokens=64)


def prompt(chunks: int) -> tuple[ChunkRef, ...]:
    """The chunks of a prompt."""
    return Chain.of(np.arange(chunks * SPEC.chunk_tokens), SPEC.chunk_tokens).refs


def content(ref: ChunkRef) -> Any:
    """The array of a chunk."""
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(ref.key[:8], "little")))
    shape = SPEC.part_shape(SPEC.part(), ref.tokens)
    return generator.integers(0, 1 << 16, shape, np.uint16)
