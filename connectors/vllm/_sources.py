"""Where a hit came from, in vLLM's words: its metrics count cached tokens by source."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvstore.keys import ChunkRef

if TYPE_CHECKING:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource


def cold_tokens(cold: Iterable[ChunkRef], start: int, end: int) -> int:
    """How many of the tokens `start` to `end` lie in the chunks `cold`, none of which overlap."""
    return sum(max(0, min(ref.end, end) - max(ref.position, start)) for ref in cold)


def hit_sources(tokens: int, cold: int) -> dict[CacheHitSource, int]:
    """`tokens` of a hit, of which `cold` were below the store's DRAM. What is zero is left out."""
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    split = {CacheHitSource.HOST: tokens - cold, CacheHitSource.DISK: cold}
    return {source: amount for source, amount in split.items() if amount}
