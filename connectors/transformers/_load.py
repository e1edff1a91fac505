"""From the store into a `DynamicCache`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import DynamicCache

from kvstore import arrays
from kvstore.client import Client
from kvstore.connectors.transformers._save import as_numpy
from kvstore.connectors.transformers._spec import check_single
from kvstore.cost import Prefill, Prompt
from kvstore.errors import (
    Corrupt,
    DeadlineExceeded,
    InvalidArgument,
    KVStoreError,
    NotFound,
    Shed,
    SpecMismatch,
    StorageError,
    Unavailable,
)
from kvstore.hit import Hit
from kvstore.keys import Chain, ChunkRef, Extras, TokenIds
from kvstore.spec import KVGroup, KVSpec

READERS = 4
# What makes a chunk a miss. Anything else is a mistake, of the caller or of ours.
UNREADABLE = (NotFound, Corrupt, SpecMismatch, StorageError, Shed, Unavailable, DeadlineExceeded)
Lost = tuple[int, KVStoreError]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A `DynamicCache` that holds the first `tokens` tokens of a prompt, ready to go on (empty on a miss).

    `nbytes` were read for it. `failures` says what kept chunks that a look-up had found from being read: the prefix
    was cut before each.
    """

    cache: Any
    tokens: int
    nbytes: int = 0
    failures: tuple[KVStoreError, ...] = ()


def load(
    client: Client,
    spec: KVSpec,
    tokens: TokenIds,
    *,
    config: Any,
    device: torch.device | str = "cpu",
    max_tokens: int | None = None,
    block_tokens: int = 1,
    lease_s: float = 30.0,
    extras: Extras | None = None,
    prefill: Prefill | None = None,
) -> Loaded:
    """The longest stored prefix of `tokens`, at most all but the last one, as a cache that `model` goes on with.

    With `prefill`, how fast the model computes on its device, no more is loaded than what is quicker to load.

    `config` is the model's. The chunks are leased while they are read, and their bytes go once from the store's
    memory into the cache's tensors, `[1, kv_heads, tokens, head_dim]` on `device`. Tails are looked for at every
    `block_tokens` tokens. A prefix of full-attention layers may end anywhere inside a chunk; one with sliding
    windows ends where a chunk or tail does.

    A chunk that is gone or damaged shortens the prefix and is told, it never becomes wrong KV.
    """
    check_single(spec)
    check_config(spec, config)
    chain = client.chain(spec, tokens, extras)
    limit = len(chain.ids) - 1 if max_tokens is None else min(max_tokens, len(chain.ids) - 1)
    prompt = None if prefill is None else Prompt(max(1, len(chain.ids)), prefill)
    failures: list[KVStoreError] = []
    while limit > 0:
        refs = _candidates(client, spec, chain, limit, block_tokens)
        with client.lookup(spec, refs, lease_s=lease_s, prompt=prompt) as hit:
            usable = min(hit.tokens, limit) if hit.refs else 0
            if not usable:
                break
            states = [_empty(spec, group, usable) for group in spec.groups]
            lost = _read(client, hit, usable, states)
        if lost is None:
            nbytes = sum(each.nbytes for each in states)
            return Loaded(_cache(spec, config, states, usable, device), usable, nbytes, tuple(failures))
        limit, failure = lost
        failures.append(failure)
    return Loaded(DynamicCache(config=config), 0, 0, tuple(failures))


def _candidates(client: Client, spec: KVSpec, chain: Chain, limit: int, block_tokens: int) -> Sequence[ChunkRef]:
    """The chunks to ask for, and the tails that a shorter prompt may have left where the first whole one lacks.

    A window that was cut one token early is short of one at its other end, so with sliding layers nothing that
    ends after `limit` will do.
    """
    sliding = any(group.window for group in spec.groups)
    refs = [ref for ref in chain.refs if (ref.end if sliding else ref.position + 1) <= limit]
    full = next((number for number, group in enumerate(spec.groups) if not group.window), None)
    if full is None:
        return _last_run(client, spec, chain, refs, limit, block_tokens)
    there = _present(client, spec, refs, full)
    count = there.index(False) if False in there else len(refs)
    tails = _tails(chain, refs[count - 1].end if count else 0, limit if sliding else len(chain.ids), block_tokens)
    return [*refs[: count + 1], *tails]


def _last_run(
    client: Client, spec: KVSpec, chain: Chain, refs: Sequence[ChunkRef], limit: int, block_tokens: int
) -> Sequence[ChunkRef]:
    """Where every layer has a window: the last tail or whole chunk that is there, after those that lead to it.

    Nothing before the window need be there, so a tail may stand after any of the chunks that lack.
    """
    there = _present(client, spec, refs, 0)
    last = max((n + 1 for n, present in enumerate(there) if present), default=0)
    starts = [refs[last - 1].end if last else 0, *(ref.end for ref in refs[last:])]
    tails = [tail for start in starts for tail in _tails(chain, start, limit, block_tokens)]
    found = [tail for tail, present in zip(tails, _present(client, spec, tails, 0), strict=True) if present]
    ending = [max(found, key=lambda tail: tail.end)] if found else []
    whole = [ref for ref, present in zip(refs, there, strict=True) if present]
    return _unbroken([*whole, *ending])


def _unbroken(refs: Sequence[ChunkRef]) -> Sequence[ChunkRef]:
    """The last of `refs` that follow each other without a gap."""
    start = max((n + 1 for n, (ref, after) in enumerate(pairwise(refs)) if ref.end != after.position), default=0)
    return refs[start:]


def _present(client: Client, spec: KVSpec, refs: Sequence[ChunkRef], group: int) -> list[bool]:
    return client.contains(spec, refs, parts=[spec.part(group)]) if refs else []


def _tails(chain: Chain, position: int, limit: int, block_tokens: int) -> list[ChunkRef]:
    return [ref for ref in chain.tails(position, block_tokens) if ref.end <= limit]


def _read(client: Client, hit: Hit, usable: int, states: Sequence[torch.Tensor]) -> Lost | None:
    """Fill `states`, several chunks at a time; where the first chunk lies that could not be read, or None."""
    jobs = [
        (number, ref)
        for number, group in enumerate(hit.spec.groups)
        for ref in hit.refs
        if ref.end > group.first_needed(usable) and ref.position < usable
    ]

    def fill(job: tuple[int, ChunkRef]) -> Lost | None:
        number, ref = job
        first = hit.spec.groups[number].first_needed(usable)
        try:
            with _part_array(client, hit.spec, ref, number, first) as source:
                _place(as_numpy(states[number]), source, ref.position, first)
        except UNREADABLE as error:
            return ref.position, error
        return None

    with ThreadPoolExecutor(READERS, "kvstore-load") as pool:
        lost = [each for each in pool.map(fill, jobs) if each is not None]
    return min(lost, key=lambda each: each[0], default=None)


@contextmanager
def _part_array(client: Client, spec: KVSpec, ref: ChunkRef, number: int, first: int) -> Iterator[npt.NDArray[Any]]:
    """One part of a chunk, `[layer, 2, token, kv_head, dim]`: the store's own memory where it can be had."""
    part = spec.part(number)
    shape = spec.part_shape(part, ref.tokens)
    try:
        view = client.view(spec, ref, part=part)
    except (InvalidArgument, Shed):  # this way in has no views, or DRAM has no room to load it into
        yield client.get(spec, ref, part=part)
        return
    with view:
        valid = ref.position + view.record.first_valid
        if valid > max(first, ref.position):
            raise NotFound(f"chunk {ref.key.hex()} is valid from token {valid}, needed from {first}")
        yield np.frombuffer(view.data, arrays.numpy_dtype(spec.dtype)).reshape(shape)


def _place(target: npt.NDArray[Any], source: npt.NDArray[Any], position: int, first: int) -> None:
    """Copy a chunk at `position` into `[layer, 2, kv_head, token, dim]`, whose first token is token `first`."""
    start, end = max(position, first), min(position + source.shape[2], first + target.shape[3])
    chosen = source[:, :, start - position : end - position]
    np.copyto(target[:, :, :, start - first : end - first], chosen.swapaxes(2, 3))


def _empty(spec: KVSpec, group: KVGroup, tokens: int) -> torch.Tensor:
    """Room for what a group needs of a prefix, `[layer, 2, kv_head, token, dim]`."""
    held = tokens - group.first_needed(tokens)
    shape = (len(group.layers), 2, group.kv_heads, held, group.head_dim)
    return torch.empty(shape, dtype=getattr(torch, spec.dtype))


def _cache(spec: KVSpec, config: Any, states: Sequence[torch.Tensor], tokens: int, device: torch.device | str) -> Any:
    """A `DynamicCache` over `states`, as it would be after a forward of `tokens` tokens."""
    cache = DynamicCache(config=config)
    for group, held in zip(spec.groups, states, strict=True):
        placed = held.to(device)
        for row, number in enumerate(group.layers):
            layer, keys, values = cache.layers[number], placed[row, 0][None], placed[row, 1][None]
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            if group.window:
                layer.cumulative_length = tokens
    return cache


def check_config(spec: KVSpec, config: Any) -> None:
    """Raise `SpecMismatch` unless the configuration's cache has the layers and windows that the spec says."""
    layers = DynamicCache(config=config).layers
    windows = {n: int(getattr(layer, "sliding_window", 0) or 0) for n, layer in enumerate(layers)}
    expected = {layer: group.window for group in spec.groups for layer in group.layers}
    if windows != expected:
        raise SpecMismatch(f"the configuration's layers have the windows {windows}; the spec says {expected}")
