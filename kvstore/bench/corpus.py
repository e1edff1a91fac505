"""Chunks for benchmarks: distinct content for every key, in memory that no cache holds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import InitVar, dataclass, field
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from kvstore.api import Want
from kvstore.client import Client
from kvstore.errors import InvalidArgument
from kvstore.keys import ChunkRef
from kvstore.spec import KVSpec, Part

MiB = 1 << 20
Bytes = npt.NDArray[np.uint8]


def spec_of(nbytes: int) -> KVSpec:
    """A dense bfloat16 model of 16 layers whose chunks of 256 tokens have `nbytes` bytes (a multiple of 256 KiB)."""
    layers, tokens, head_dim = 16, 256, 16
    heads, rest = divmod(nbytes, layers * 2 * tokens * head_dim * 2)
    if rest or not heads:
        raise InvalidArgument(f"a chunk of {nbytes} bytes is no multiple of 256 KiB")
    return KVSpec.dense(f"bench-{nbytes}", layers=layers, kv_heads=heads, head_dim=head_dim, chunk_tokens=tokens)


def content(seed: int, nbytes: int) -> Bytes:
    """Incompressible bytes that follow from `seed` alone."""
    words = np.random.Generator(np.random.SFC64(seed)).integers(0, 1 << 63, -(-nbytes // 8), np.uint64)
    return words.view(np.uint8)[:nbytes]


def ref_of(seed: int, tokens: int = 256) -> ChunkRef:
    """A chunk of its own, with no prompt around it."""
    return ChunkRef(hashlib.sha256(b"bench" + seed.to_bytes(8, "little")).digest(), bytes(32), 0, tokens)


def specs_of(sizes: Sequence[int], model: KVSpec | None) -> list[KVSpec]:
    """What a benchmark's chunks are: a model's, or synthetic ones of each size."""
    return [spec_of(nbytes) for nbytes in sizes] if model is None else [model]


def shape_facts(model: KVSpec | None) -> dict[str, Any]:
    """What a row says of the model whose chunks were moved."""
    return {} if model is None else {"model": model.model, "chunk_tokens": model.chunk_tokens, "tp": model.tp_size}


@cache
def layout(spec: KVSpec, tokens: int = 0) -> list[tuple[Part, slice]]:
    """Every part of a chunk and where it lies when all are written one after the other (0 tokens: a full chunk)."""
    found, at = [], 0
    for part in spec.all_parts:
        nbytes = spec.part_bytes(part, tokens or spec.chunk_tokens)
        found.append((part, slice(at, at + nbytes)))
        at += nbytes
    return found


def chunk_bytes(spec: KVSpec, tokens: int = 0) -> int:
    """The bytes of all parts of a chunk (0 tokens: a full one)."""
    return sum(spec.part_bytes(part, tokens or spec.chunk_tokens) for part in spec.all_parts)


def put_chunk(
    client: Client, spec: KVSpec, ref: ChunkRef, memory: Bytes, parts: Sequence[tuple[Part, slice]] | None = None
) -> bool:
    """Store all parts of a chunk that lie in `memory` one after the other; False if any was there already.

    `parts` is their `layout`, where what is timed is the store's work alone.
    """
    stored = True
    for part, at in layout(spec, ref.tokens) if parts is None else parts:
        stored &= client.put(spec, ref, memory[at], part=part)
    return stored


def wants_of(client: Client, spec: KVSpec, ref: ChunkRef, memory: Bytes) -> list[Want]:
    """What reads all parts of a chunk into `memory`."""
    return [client.want(spec, ref, memory[at], part=part) for part, at in layout(spec, ref.tokens)]


@dataclass
class Corpus:
    """`count` chunks of `nbytes` bytes: what is stored (`sources`), and slots to read into (`targets`).

    With `model` they are that model's chunks, which decides `nbytes`; without it they have one part.
    """

    nbytes: int
    count: int
    targets_count: int
    model: InitVar[KVSpec | None] = None
    spec: KVSpec = field(init=False)
    refs: list[ChunkRef] = field(init=False)
    sources: list[Bytes] = field(init=False)
    targets: list[Bytes] = field(init=False)

    def __post_init__(self, model: KVSpec | None) -> None:
        self.spec = spec_of(self.nbytes) if model is None else model
        self.nbytes = chunk_bytes(self.spec)
        self.refs = [ref_of(seed, self.spec.chunk_tokens) for seed in range(self.count)]
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
