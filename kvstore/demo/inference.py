"""Prefill, time to first token, and the greedy continuation."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from kvstore.client import Client
from kvstore.connectors.transformers import load
from kvstore.spec import KVSpec


@dataclass(frozen=True, slots=True)
class FirstToken:
    """One request, from the tokens in hand until the next token is known.

    `hit_tokens` of the prompt and `nbytes` came from the store, `forward_s` of `ttft_s` computed the rest. `failures`
    are what the store found and could not read.
    """

    cache: Any
    token: int
    ttft_s: float
    forward_s: float
    hit_tokens: int = 0
    nbytes: int = 0
    failures: tuple[str, ...] = ()


def cold(model: Any, ids: Sequence[int]) -> FirstToken:
    """Compute the whole prompt."""
    start = time.perf_counter()
    cache = DynamicCache(config=model.config)
    token = _next(model, cache, ids)
    took = time.perf_counter() - start
    return FirstToken(cache, token, took, took)


def warm(model: Any, ids: Sequence[int], client: Client, spec: KVSpec) -> FirstToken:
    """Look the prompt up, load what is there and compute the rest."""
    start = time.perf_counter()
    loaded = load(client, spec, ids, config=model.config)
    ready = time.perf_counter()
    token = _next(model, loaded.cache, ids[loaded.tokens :])
    end = time.perf_counter()
    failures = tuple(str(each) for each in loaded.failures)
    return FirstToken(loaded.cache, token, end - start, end - ready, loaded.tokens, loaded.nbytes, failures)


def warm_up(model: Any, ids: Sequence[int]) -> None:
    """Have libraries, weights and memory in place, as in a process that has served such prompts before."""
    first = cold(model, ids)
    continuation(model, first, 4)


def continuation(model: Any, first: FirstToken, count: int) -> list[int]:
    """`count` tokens of greedy decoding, the first one included."""
    tokens = [first.token]
    while len(tokens) < count:
        tokens.append(_next(model, first.cache, tokens[-1:]))
    return tokens


def kv_digest(cache: Any, tokens: int) -> str:
    """SHA-256 over every bit of the keys and values of the first `tokens` tokens, layer by layer."""
    digest = hashlib.sha256()
    for layer in cache.layers:
        for states in (layer.keys, layer.values):
            digest.update(states[:, :, :tokens].contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.inference_mode()
def _next(model: Any, cache: Any, ids: Sequence[int]) -> int:
    logits = model(torch.tensor([list(ids)]), past_key_values=cache, logits_to_keep=1).logits
    return int(logits[0, -1].argmax())
