"""Streams of requests for `kvstore bench mix`: prompts of documents with a Zipf popularity, or a trace of real ones.

A trace is a file of JSON lines, gzipped or not, in one of two formats. `hash_ids` (Mooncake's): `input_length` in
tokens and a list of numbers, each standing for a block of equal length and all before it; the last may be a partial
one. `segments`: a list of `[id, tokens, kind]` in the order of the prompt. Times are ignored: requests are made as
fast as they are served.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kvstore.errors import InvalidArgument
from kvstore.keys import ChunkRef

Blocks = Sequence[tuple[int, int]]  # what a block stands for, and its tokens
LONGEST = 16  # chunks of a Zipf document: 1 to so many, all equally likely
_BLOCK = struct.Struct("<32sqI")
_UNITS = tuple(1 << n for n in range(4, 14))
_PROBED = 200


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
    """The first so many requests of a file. `InvalidArgument` if it cannot be read or has another format."""
    lines = _lines(path, requests)
    if not lines:
        raise InvalidArgument(f"{path} holds no requests")
    try:
        if "segments" in lines[0]:
            found: list[Blocks] = [
                [(int(number), int(tokens)) for number, tokens, _ in line["segments"]] for line in lines
            ]
        elif "hash_ids" in lines[0]:
            found = list(_hashed(path, lines))
        else:
            raise InvalidArgument(f"{path} is no trace: its lines have neither hash_ids nor segments")
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, InvalidArgument):
            raise
        raise InvalidArgument(f"{path} is no trace: {type(error).__name__} {error}") from None
    kept = [blocks for blocks in found if blocks]
    if not kept or min(tokens for blocks in kept for _, tokens in blocks) < 1:
        raise InvalidArgument(f"{path} holds blocks without tokens")
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return Workload(name, max(tokens for blocks in kept for _, tokens in blocks), kept)


def _lines(path: Path, most: int) -> list[Mapping[str, Any]]:
    found: list[Mapping[str, Any]] = []
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                read = json.loads(line)
                if not isinstance(read, dict):
                    raise InvalidArgument(f"{path} is no trace: line {number} is no JSON object")
                found.append(read)
                if number == most:
                    break
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path} cannot be read: {error}") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"{path} is no trace: line {len(found) + 1} is no JSON: {error}") from None
    return found


def _hashed(path: Path, lines: Sequence[Mapping[str, Any]]) -> Iterator[Blocks]:
    unit = _unit(path, [(int(line["input_length"]), len(line["hash_ids"])) for line in lines[:_PROBED]])
    for line in lines:
        left = int(line["input_length"])
        blocks = []
        for number in line["hash_ids"]:
            if left > 0:
                blocks.append((int(number), min(unit, left)))
            left -= unit
        yield blocks


def _unit(path: Path, known: Iterable[tuple[int, int]]) -> int:
    """The tokens of a block, which the format does not say: the one that explains the number of ids of every line."""
    pairs = list(known)
    for unit in _UNITS:
        if all(ids in (length // unit, -(-length // unit)) for length, ids in pairs):
            return unit
    raise InvalidArgument(f"{path}: no block length of {_UNITS[0]} to {_UNITS[-1]} tokens fits the numbers of hash_ids")
