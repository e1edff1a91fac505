"""Streams of requests for `kvstore bench mix`: prompts of documents with a Zipf popularity, or a trace of real ones.

A trace is a file as `kvstore.sim.formats` reads it. Its times are ignored: requests come as fast as they are served.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kvstore.errors import InvalidArgument
from kvstore.keys import ChunkRef
from kvstore.sim.formats import parse

Blocks = Sequence[tuple[int, int]]  # what a block stands for, and its tokens
LONGEST = 16  # chunks of a Zipf document: 1 to so many, all equally likely
_BLOCK = struct.Struct("<32sqI")


@dataclass(frozen=True)
class Workload:
    """Requests in order; `chunk_tokens` is the most tokens that a block of any has."""

    name: str
    chunk_tokens: int
    requests: Sequence[Blocks]


def chain_of(blocks: Blocks) -> list[ChunkRef]:
    """A prompt's chunks: each key stands for its block and all before it."""
    refs, parent, position = [], bytes(32), 0
    for number, tokens in blocks:
        key = hashlib.sha256(_BLOCK.pack(parent, number, tokens)).digest()
        refs.append(ChunkRef(key, parent, position, tokens))
        parent, position = key, position + tokens
    return refs


def zipf(*, exponent: float, requests: int, documents: int, tokens: int, seed: int = 0) -> Workload:
    """Requests for whole documents; the n-th most popular is asked for in proportion to n^-`exponent`."""
    if exponent < 0 or documents < 1:
        raise InvalidArgument(f"a Zipf exponent is 0 or more, documents are 1 or more; not {exponent} and {documents}")
    dice = np.random.default_rng(seed)
    lengths = dice.integers(1, LONGEST + 1, documents)
    weights = np.arange(1, documents + 1, dtype=float) ** -exponent
    chosen = dice.choice(documents, requests, p=weights / weights.sum())
    prompts = [[(document * LONGEST + i, tokens) for i in range(length)] for document, length in enumerate(lengths)]
    return Workload(f"zipf-{exponent:g}", tokens, [prompts[document] for document in chosen])


def trace(path: Path, requests: int) -> Workload:
    """The first so many requests of a file, without those of no tokens. `InvalidArgument` if it is no trace."""
    parsed = parse(path, most=requests, timed=False)
    kept = [list(zip(each.ids, each.tokens, strict=True)) for each in parsed.requests if each.ids]
    if not kept:
        raise InvalidArgument(f"{path} holds blocks without tokens")
    return Workload(parsed.name, parsed.block or max(tokens for blocks in kept for _, tokens in blocks), kept)
