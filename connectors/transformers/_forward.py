"""What a model's forward is given, read and shortened before it runs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from kvstore.errors import InvalidArgument

Arguments = dict[str, Any]
# What may stand beside the token ids: it says nothing about their KV, or `read_ids` checks that it does not.
_PLAIN = frozenset(
    {
        "input_ids",
        "attention_mask",
        "position_ids",
        "past_key_values",
        "use_cache",
        "logits_to_keep",
        "labels",
        "return_dict",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
    }
)
_WHOLE = ("labels", "output_attentions", "output_hidden_states")


def by_name(model: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Arguments:
    """The arguments of a forward, all by name."""
    if not args:
        return dict(kwargs)
    return {**dict(zip(inspect.signature(model.forward).parameters, args, strict=False)), **kwargs}


def one_sequence(input_ids: Any) -> list[int]:
    """Token ids as a list; `input_ids` is `[1, tokens]`, or one axis of integers."""
    ids = torch.as_tensor(input_ids)
    if ids.ndim == 2 and ids.shape[0] != 1:
        raise InvalidArgument(
            f"a KVStoreCache holds one sequence; this batch (with its beams) has {ids.shape[0]}: give each sequence "
            "a cache and a call of its own, num_beams=1 and num_return_sequences=1"
        )
    if ids.ndim not in (1, 2) or ids.is_floating_point() or ids.dtype == torch.bool:
        raise InvalidArgument(f"token ids are integers [1, tokens], not {ids.dtype} of shape {list(ids.shape)}")
    found: list[int] = ids.reshape(-1).tolist()
    return found


def read_ids(model: Any, given: Arguments, held: int) -> tuple[list[int], int]:
    """The token ids of a forward over a cache of `held` tokens, and the position of the first.

    That position is `held`, or 0 where a caller starts over with the whole sequence, as assisted generation does.
    Raises `InvalidArgument` for everything that makes KV of these tokens depend on more than their ids: padding,
    other positions, embeddings, images, dropout, another dtype under autocast.
    """
    odd = sorted(name for name, value in given.items() if value is not None and name not in _PLAIN)
    if odd or given.get("input_ids") is None:
        raise InvalidArgument(f"a KVStoreCache knows KV by token ids alone; this forward is given {odd or 'no ids'}")
    if model.training:
        raise InvalidArgument("the model is in training mode, where dropout makes KV random: call model.eval()")
    if torch.is_autocast_enabled(model.device.type):
        raise InvalidArgument("under autocast KV has another dtype than the model's: load the model in that dtype")
    if given.get("use_cache") is False:
        raise InvalidArgument("use_cache=False beside a KVStoreCache: leave one of them out")
    ids = one_sequence(given["input_ids"])
    _check_mask(given.get("attention_mask"), {held + len(ids), len(ids)})
    return ids, _start(given.get("position_ids"), len(ids), held)


def tokens_needed(model: Any, given: Arguments) -> int:
    """Of how many last tokens the caller wants results; 0 if of all."""
    if any(given.get(name) is not None and given[name] is not False for name in _WHOLE):
        return 0
    if any(getattr(model.config, name, False) for name in ("output_hidden_states", "output_attentions")):
        return 0
    kept = given.get("logits_to_keep")
    return max(0, kept) if isinstance(kept, int) else 0


def shorten(given: Arguments, skipped: int) -> Arguments:
    """The same forward without its first `skipped` tokens, which the cache holds."""
    cut = {name: given[name][..., skipped:] for name in ("input_ids", "position_ids") if given.get(name) is not None}
    return {**given, **cut}


def _start(positions: Any, count: int, held: int) -> int:
    """The position of the first of `count` tokens; they must follow each other."""
    if positions is None:
        return held
    told = positions.tolist() if positions.ndim == 1 else positions[0].tolist() if len(positions) == 1 else None
    for start in (held, 0):
        if told == list(range(start, start + count)):
            return start
    shown = list(positions.shape) if told is None else f"{told[:3]}…{told[-1:]}"
    raise InvalidArgument(
        f"position_ids {shown} are not those of {count} tokens after the {held} that the cache holds. For another "
        "prompt call load(input_ids) first, or make another cache"
    )


def _check_mask(mask: Any, lengths: set[int]) -> None:
    """All ones, for as many tokens as the cache will hold; assisted generation starts over, see `read_ids`."""
    if mask is not None and not (mask.ndim == 2 and mask.shape[1] in lengths and bool((mask == 1).all())):
        raise InvalidArgument(
            f"an attention mask of shape {list(mask.shape)} that is not [1, {max(lengths)}] of ones: padding and masks "
            "change KV and are not in its key; pass the one sequence without them"
        )
