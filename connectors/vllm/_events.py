"""KV events: what the store has taken, told in vLLM's own words and under its own block hashes.

A router sends a request where its prefix lies, so an event goes out only once every rank has stored its part of a
chunk in every KV group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from vllm.distributed.kv_events import MEDIUM_STORAGE, BlockStored
from vllm.v1.core.kv_cache_utils import (
    generate_block_hash_extra_keys,
    maybe_convert_block_hash,
    resolve_block_hashes,
    to_event_extra_keys,
)
from vllm.v1.kv_cache_interface import get_kv_cache_spec_kind, get_kv_cache_spec_sliding_window

from kvstore.connectors.vllm._plan import Blocks, first_block
from kvstore.connectors.vllm._reports import UNASKED, Report
from kvstore.keys import ChunkRef


@dataclass(slots=True)
class _Awaited:
    """A chunk that workers are storing: its events, and how many ranks are not done yet."""

    events: list[BlockStored]
    ranks: int


class Events:
    """The scheduler's account of the chunks on their way into the store. Not for several threads."""

    def __init__(self, groups: Sequence[Any], block: int, hash_block: int, ranks: int) -> None:
        """`groups` are vLLM's `kv_cache_groups`, blocks have `block` tokens and are hashed by `hash_block`."""
        specs = [group.kv_cache_spec for group in groups]
        self._kinds = [(get_kv_cache_spec_kind(spec).value, get_kv_cache_spec_sliding_window(spec)) for spec in specs]
        self._block, self._hash_block, self._ranks = block, hash_block, ranks
        self._numbers = count(UNASKED + 1)
        self._awaited: dict[int, _Awaited] = {}
        self._ready: list[BlockStored] = []

    @property
    def awaited(self) -> bool:
        """Whether workers have not reported on everything yet."""
        return bool(self._awaited)

    def expect(self, request: Any, ref: ChunkRef, blocks: Blocks) -> int:
        """A chunk of a request is going to be saved from `blocks`: the number under which workers report on it.

        `UNASKED` for one that will lack what every hit needs.
        """
        events = []
        for group, (kind, window) in enumerate(self._kinds):
            first = first_block(blocks[group], windowed=window is not None)
            if first is not None:
                start = ref.position // self._block + first
                events.append(self._stored(request, group, kind, window, start, ref.end // self._block))
            elif window is None:
                return UNASKED
        number = next(self._numbers)
        self._awaited[number] = _Awaited(events, self._ranks)
        return number

    def reported(self, report: Report) -> None:
        """Take the reports of one step. What is complete becomes an event, what failed somewhere never does."""
        for number in report.failed:
            awaited = self._awaited.get(number)
            if awaited is not None:
                awaited.events = []
        for number, ranks in report.done.items():
            awaited = self._awaited.get(number)
            if awaited is None:
                continue
            awaited.ranks -= ranks
            if awaited.ranks == 0:
                self._ready += self._awaited.pop(number).events

    def take(self) -> list[BlockStored]:
        """The events since the last call."""
        ready, self._ready = self._ready, []
        return ready

    def _stored(self, request: Any, group: int, kind: str, window: int | None, first: int, end: int) -> BlockStored:
        """Blocks `first` to `end` of a request, as vLLM tells of those in its own cache."""
        block, lora = self._block, request.lora_request
        hashes = resolve_block_hashes(request.block_hashes, self._hash_block, block)
        extras, item = [], 0
        for number in range(first, end):
            keys, item = generate_block_hash_extra_keys(request, number * block, (number + 1) * block, item)
            extras.append(keys)
        return BlockStored(
            block_hashes=[maybe_convert_block_hash(hashes[number]) for number in range(first, end)],
            parent_block_hash=maybe_convert_block_hash(hashes[first - 1]) if first else None,
            token_ids=list(request.all_token_ids[first * block : end * block]),
            block_size=block,
            lora_id=lora.adapter_id if lora else None,
            medium=MEDIUM_STORAGE,
            lora_name=lora.name if lora else None,
            extra_keys=to_event_extra_keys(extras),
            group_idx=group,
            kv_cache_spec_kind=kind,
            kv_cache_spec_sliding_window=window,
            session_id=request.session_id,
        )
