"""From a `DynamicCache` into the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kvstore import arrays
from kvstore.api import Ack
from kvstore.client import Client
from kvstore.connectors.transformers._spec import check_single
from kvstore.errors import InvalidArgument, Shed, SpecMismatch
from kvstore.keys import ChunkRef, Extras, TokenIds
from kvstore.spec import KVSpec


@dataclass(slots=True)
class SaveResult:
    """What `save` did, counted in parts (one per chunk and KV group).

    `present` were in the store already, `outside` had left the sliding window, `shed` were refused under pressure.
    """

    stored: int = 0
    nbytes: int = 0
    present: int = 0
    outside: int = 0
    shed: int = 0

    def __add__(self, other: SaveResult) -> SaveResult:
        """What both did."""
        return SaveResult(
            self.stored + other.stored,
            self.nbytes + other.nbytes,
            self.present + other.present,
            self.outside + other.outside,
            self.shed + other.shed,
        )


@dataclass(frozen=True, slots=True)
class _Piece:
    """The tokens of one KV group that a cache still holds.

    Per layer, keys and values `[kv_heads, tokens, head_dim]`; the first of these tokens is at `first`.
    """

    group: int
    layers: tuple[tuple[npt.NDArray[Any], npt.NDArray[Any]], ...]
    first: int

    def write(self, out: npt.NDArray[Any], ref: ChunkRef) -> None:
        """Transpose a chunk into `out`, `[layer, 2, token, kv_head, dim]`; zeros before the first valid token."""
        start = max(ref.position, self.first)
        gone = start - ref.position
        out[:, :, :gone] = 0
        span = slice(start - self.first, ref.end - self.first)
        for layer, both in enumerate(self.layers):
            for which, states in enumerate(both):
                np.copyto(out[layer, which, gone:], states[:, span].swapaxes(0, 1))


def save(
    client: Client,
    spec: KVSpec,
    cache: Any,
    tokens: TokenIds,
    *,
    ack: Ack | str = Ack.STORED,
    start: int = 0,
    block_tokens: int = 1,
    extras: Extras | None = None,
) -> SaveResult:
    """Store the KV of `tokens`, all of which `cache` must hold, chunk by chunk where it is not there yet.

    `tokens` are the ids from the start of the sequence, `cache` a `DynamicCache` whose layers hold keys and values
    `[1, kv_heads, tokens, head_dim]`. Chunks that end at or before `start` are taken to be stored (pass
    `Loaded.tokens`). The tail becomes a chunk of its own, cut to whole blocks of `block_tokens`. A sliding window
    stores what it still holds; `first_valid` marks a chunk whose first tokens are gone. Each chunk is transposed
    once, straight into the store's memory.

    Raises `InvalidArgument` for more than one sequence and for tokens that the cache does not hold, `SpecMismatch`
    where the cache does not fit the spec. Ends early, and says so in `shed`, when the store refuses more.
    """
    check_single(spec)
    chain = client.chain(spec, tokens, extras)
    kept = len(chain.ids) // block_tokens * block_tokens
    if kept < len(chain.ids):
        chain = client.chain(spec, chain.ids[:kept], extras)
    refs = [ref for ref in chain.refs if ref.end > start]
    if not refs:
        return SaveResult()
    pieces = [_piece(spec, number, cache, len(chain.ids)) for number in range(len(spec.groups))]
    there = [client.contains(spec, refs, parts=[spec.part(piece.group)]) for piece in pieces]
    result = SaveResult()
    for n, ref in enumerate(refs):
        for piece, present in zip(pieces, there, strict=True):
            if present[n]:
                result.present += 1
            elif ref.end <= piece.first:
                result.outside += 1
            elif not _store(client, spec, ref, piece, Ack(ack), result):
                return result
    return result


def _store(client: Client, spec: KVSpec, ref: ChunkRef, piece: _Piece, ack: Ack, result: SaveResult) -> bool:
    """Store one part; False if the store refuses more."""
    part = spec.part(piece.group)
    try:
        with client.reserve(spec, ref, part=part, first_valid=max(0, piece.first - ref.position)) as room:
            out = np.frombuffer(room.data, arrays.numpy_dtype(spec.dtype))
            piece.write(out.reshape(spec.part_shape(part, ref.tokens)), ref)
            del out
            new = room.commit(ack)
    except Shed:
        result.shed += 1
        return False
    result.present += not new
    result.stored += new
    result.nbytes += new * spec.part_bytes(part, ref.tokens)
    return True


def _piece(spec: KVSpec, number: int, cache: Any, tokens: int) -> _Piece:
    """Check one KV group of the cache against the spec."""
    group = spec.groups[number]
    if len(cache.layers) <= group.layers[-1]:
        raise SpecMismatch(f"the cache has {len(cache.layers)} layers; the spec's group {number} has {group.layers}")
    layers = [cache.layers[layer] for layer in group.layers]
    seen = {int(layer.get_seq_length()) for layer in layers}
    held = {int(layer.keys.shape[-2]) if layer.is_initialized else 0 for layer in layers}
    if len(seen) != 1 or len(held) != 1 or tokens > max(seen):
        raise InvalidArgument(
            f"the cache has seen {sorted(seen)} tokens and cannot be saved as {tokens}: pass the tokens it holds "
            "(the last one that was generated is not in it yet)"
        )
    first = seen.pop() - held.pop()
    if first and not group.window:
        raise SpecMismatch(
            f"the cache lacks the first {first} tokens of a full-attention group (layers {group.layers})"
        )
    pairs = [(_states(layer.keys, spec, number), _states(layer.values, spec, number)) for layer in layers]
    return _Piece(number, tuple(pairs), first)


def _states(states: torch.Tensor, spec: KVSpec, number: int) -> npt.NDArray[Any]:
    """Keys or values of one layer as `[kv_heads, tokens, head_dim]`, without a copy where they are on the CPU."""
    group = spec.groups[number]
    batch, heads, _, dim = states.shape
    if batch != 1:
        raise InvalidArgument(f"the cache holds {batch} sequences; save one at a time (batch size 1)")
    name = str(states.dtype).removeprefix("torch.")
    if (heads, dim, name) != (group.kv_heads, group.head_dim, spec.dtype):
        raise SpecMismatch(
            f"the cache holds {heads} heads of {dim} in {name}; the spec says {group.kv_heads} of {group.head_dim} "
            f"in {spec.dtype}"
        )
    return as_numpy(states.detach()[0].cpu())


def as_numpy(states: torch.Tensor) -> npt.NDArray[Any]:
    """The same memory for NumPy; bfloat16, which it lacks, as uint16."""
    array: npt.NDArray[Any] = (states.view(torch.uint16) if states.dtype == torch.bfloat16 else states).numpy()
    return array
