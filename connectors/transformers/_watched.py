"""A `DynamicCache` that knows the ids of the tokens whose KV it holds.

A `Cache` is never told token ids. This one watches the forward of its model, by a hook ahead of it, and so knows them
whoever calls: `generate` in any of its modes, or the caller. It can neither be told wrong ids nor be given KV of
tokens that it did not see.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from kvstore.connectors.transformers import _forward
from kvstore.connectors.transformers._spec import check_adapters
from kvstore.connectors.transformers._windows import RecordedWindow
from kvstore.errors import InvalidArgument


class WatchedCache(DynamicCache):  # type: ignore[misc]  # transformers is untyped
    """The KV of one sequence of one model, with its token ids; sliding layers keep what left their windows."""

    layers: list[Any]

    def __init__(self, model: Any) -> None:
        if not isinstance(model, PreTrainedModel):
            raise InvalidArgument(
                f"this cache watches the forward of a PreTrainedModel, which a {type(model).__name__} is not: pass "
                "the model that is inside"
            )
        self.device = _one_device(model)
        super().__init__(config=model.config)
        self.layers = [RecordedWindow(each.sliding_window) if each.is_sliding else each for each in self.layers]
        self.model = model
        self._ids: list[int] = []
        self._prompt_ends: list[int] = []  # without the last tokens, whose logits were asked for
        self._in_prompt = False
        self._hook = model.register_forward_pre_hook(_watch(weakref.ref(self)), with_kwargs=True)
        weakref.finalize(self, self._hook.remove)

    @property
    def token_ids(self) -> tuple[int, ...]:
        """The tokens whose KV the cache holds, in order. The last one generated is not among them yet."""
        return tuple(self._ids)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As in `Cache`. Raises `InvalidArgument` for KV of tokens that the cache did not see."""
        if self.get_seq_length(layer_idx) + key_states.shape[-2] != len(self._ids):
            raise InvalidArgument(
                f"KV of {key_states.shape[-2]} tokens whose ids this cache was not shown: call the "
                f"{type(self.model).__name__} it was made for, itself, and before close()"
            )
        states: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        return states

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last `-tokens_to_remove` tokens."""
        keep = len(self._ids) - abs(tokens_to_remove)
        if keep < 0 or not self.reaches(keep):
            raise InvalidArgument(
                f"the cache cannot go back to its first {keep} tokens: "
                + (f"it has {len(self._ids)}" if keep < 0 else "its windows no longer hold what they need")
                + ". Call load(input_ids), or reset()"
            )
        super().crop(tokens_to_remove)
        del self._ids[keep:]
        self._prompt_ends = [end for end in self._prompt_ends if end <= keep]

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self._ids, self._prompt_ends = [], []

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Refused: beams are several sequences."""
        raise InvalidArgument(f"this cache holds one sequence; {len(beam_idx)} beams are more: use num_beams=1")

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Refused, as `reorder_cache`."""
        raise InvalidArgument(f"this cache holds one sequence and cannot become {repeats}: copy.deepcopy it")

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Refused, as `reorder_cache`."""
        raise InvalidArgument(f"this cache holds one sequence; {len(indices)} cannot be chosen from it")

    def reaches(self, tokens: int) -> bool:
        """Whether all windows still hold what the first `tokens` tokens need to go on."""
        return all(window.reaches(tokens) for window in self.windows)

    @property
    def windows(self) -> list[RecordedWindow]:
        """The sliding layers."""
        return [layer for layer in self.layers if isinstance(layer, RecordedWindow)]

    def find(self, ids: list[int], most: int) -> None:
        """Hold what can be had of the first tokens of `ids`, `most` at most: here, without a store, nothing.

        Called before a forward of `ids` over an empty cache.
        """

    def take_over(self, other: DynamicCache, ids: list[int]) -> None:
        """Hold what another cache holds: the KV of `ids`. It is shared until it grows."""
        for mine, theirs in zip(self.layers, other.layers, strict=True):
            mine.lazy_initialization(theirs.keys, theirs.values)
            mine.keys, mine.values = theirs.keys, theirs.values
            if mine.is_sliding:
                mine.cumulative_length = theirs.cumulative_length
        self._ids, self._prompt_ends = list(ids), []

    def check_whole(self) -> None:
        """Raise `InvalidArgument` unless every layer holds the KV of all the tokens."""
        seen = {int(layer.get_seq_length()) for layer in self.layers}
        if seen != {len(self._ids)}:
            raise InvalidArgument(
                f"the cache's layers hold {sorted(seen)} tokens, its forwards had {len(self._ids)}: one was broken "
                "off. Call reset(), or make another cache"
            )

    def _before_forward(self, model: Any, given: _forward.Arguments) -> _forward.Arguments:
        """Learn the ids of a forward over this cache; the forward that is left to compute."""
        self.check_whole()
        held = len(self._ids)
        ids, start = _forward.read_ids(model, given, held)
        if len(ids) > 1:
            check_adapters(model)
        needed = _forward.tokens_needed(model, given)
        if not held and needed:
            self.find(ids, len(ids) - needed)
        elif start < held and not (0 < needed <= len(ids) - held and ids[:held] == self._ids):
            raise InvalidArgument(
                f"a forward starts at position 0 over a cache of {held} tokens, and is not those with more to follow: "
                "call load(input_ids) first, or make another cache"
            )
        skipped = len(self._ids) - start
        self._ids += ids[skipped:]
        self._note_prompt(len(ids), max(1, needed))
        return _forward.shorten(given, skipped) if skipped else given

    def _note_prompt(self, count: int, needed: int) -> None:
        """Note where a prompt ends, which may come in several forwards; tokens that are generated want all logits."""
        if count > needed:
            if self._in_prompt and self._prompt_ends:
                self._prompt_ends.pop()
            self._prompt_ends.append(len(self._ids) - needed)
        self._in_prompt = count > needed


def _watch(cache_of: Callable[[], WatchedCache | None]) -> Callable[[Any, Any, Any], Any]:
    """A hook ahead of a model's forward that shows a cache what it is about to be given."""

    def before(model: Any, args: Any, kwargs: Any) -> Any:
        cache, given = cache_of(), _forward.by_name(model, args, kwargs)
        if given.get("past_key_values") is not cache or cache is None:
            return None
        return (), cache._before_forward(model, given)

    return before


def _one_device(model: Any) -> torch.device:
    devices: set[torch.device] = {parameter.device for parameter in model.parameters()}
    if len(devices) != 1:
        raise InvalidArgument(f"the model lies on {', '.join(sorted(map(str, devices)))}; this cache is for one device")
    return devices.pop()
