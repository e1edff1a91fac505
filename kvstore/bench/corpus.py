"""Chunks for benchmarks: distinct content for every key, in memory that no cache holds."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part

MiB = 1 << 20
Bytes = npt.NDArray[np.uint8]


def spec_of(nbytes: int) -> KVSpec:
    """A dense bfloat16 model of 16 layers whose chunks of 256 tokens have `nbytes` bytes (a multiple of 256 KiB)."""
    layers, tokens, head_dim = 16, 256, 16
    heads, rest = divmod(nbytes, layers * 2 * tokens * head_dim * 2)
    if rest:
        raise ValueError(f"{nbytes} is no multiple of 256 KiB")
    return KVSpec.dense(f"bench-{nbytes}", layers=layers, kv_heads=heads, head_dim=head_dim, chunk_tokens=tokens)


def content(seed: int, nbytes: int) -> Bytes:
    """Incompressible bytes that follow from `seed` alone."""
    words = np.random.Generator(np.random.SFC64(seed)).integers(0, 1 << 63, -(-nbytes // 8), np.uint64)
    return words.view(np.uint8)[:nbytes]


def ref_of(seed: int, tokens: int = 256) -> ChunkRef:
    """A chunk of its own, with no prompt around it."""
    return ChunkRef(hashlib.sha256(b"bench" + seed.to_bytes(8, "little")).digest(), bytes(32), 0, tokens)


@dataclass
class Corpus:
    """`count` chunks of `nbytes` bytes: what is stored (`sources`), and as many slots to read into (`targets`)."""

    nbytes: int
    count: int
    targets_count: int
    spec: KVSpec = field(init=False)
    part: Part = field(init=False)
    refs: list[ChunkRef] = field(init=False)
    sources: list[Bytes] = field(init=False)
    targets: list[Bytes] = field(init=False)

    def __post_init__(self) -> None:
        self.spec = spec_of(self.nbytes)
        self.part = self.spec.part()
        self.refs = [ref_of(seed) for seed in range(self.count)]
        whole = np.empty(self.count * self.nbytes, np.uint8)
        self.sources = np.split(whole, self.count)
        for seed, source in enumerate(self.sources):
            source[:] = content(seed, self.nbytes)
        self.targets = np.split(np.ones(self.targets_count * self.nbytes, np.uint8), self.targets_count)

    def target(self, slot: int) -> Bytes:
        """The memory that a slot is read into."""
        return self.targets[slot % self.targets_count]

    def arrived(self, slot: int) -> bool:
        """Whether a slot's target holds its content; forgets it, so that nothing is taken for read twice."""
        same = np.array_equal(self.target(slot), self.sources[slot])
        self.target(slot).fill(0)
        return same
