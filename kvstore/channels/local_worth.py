"""What of a hit is worth copying, for a client that reads the server's memory: nothing has to be asked for that."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import cache

import numpy as np

from kvstore import _native, cost
from kvstore.api import Found, Query
from kvstore.cost import Prompt, TierSpeed
from kvstore.rows import REF_DTYPE

MEASURED_BYTES = 8 << 20
TELL_S = 60.0  # between two look-ups of a spec that tell the server of the engine


def weigh(found: Found, query: Query, prompt: Prompt, token_bytes: int, copied_bytes_per_s: float = 0.0) -> Found:
    """The answer cut to what is worth loading: all of it raw in DRAM, `token_bytes` a token.

    `copied_bytes_per_s` is how fast this client has copied of late (0: it has not). What was leased and is not loaded
    is held until the lease ends.
    """
    refs = np.frombuffer(query.refs, REF_DTYPE)
    start = int(refs["position"][0]) if len(refs) else 0
    used = refs[: len(found.used)] if isinstance(found.used, range) else refs[np.asarray(found.used, np.uint32)]
    ends = used["position"].astype(np.int64) + used["tokens"]
    tokens = cost.tokens_between(start, ends)
    link = prompt.link_bytes_per_s or copied_bytes_per_s or copy_bytes_per_s()
    plan = cost.plan(
        tokens, tokens.astype(np.uint64) * token_bytes, np.zeros(len(used), np.uint8), prefill=prompt.prefill,
        speeds=[TierSpeed(0.0, link)], prompt=max(prompt.tokens, found.tokens), start=start, overlap=prompt.overlap,
    )  # fmt: skip
    if plan.start == start and plan.end == found.tokens:
        return replace(found, plan=plan)
    reached = plan.end if plan.tokens else start
    kept = np.flatnonzero((ends > plan.start) & (ends <= reached)).tolist()
    used_left = [found.used[number] for number in kept]
    return replace(found, tokens=reached, used=used_left, plan=plan, left_out=found.tokens - reached)


class Telling:
    """When the server is asked although it need not be, so that it hears now and then how fast an engine computes."""

    def __init__(self) -> None:
        self._told: dict[bytes, float] = {}

    def is_due(self, spec: bytes) -> bool:
        """Whether this look-up of a spec, which has a prompt, is to be a call."""
        now = time.monotonic()
        if spec in self._told and now < self._told[spec] + TELL_S:
            return False
        self._told[spec] = now
        return True


@cache
def copy_bytes_per_s() -> float:
    """How fast this process copies memory, measured when it is first asked for."""
    source, out = np.ones(MEASURED_BYTES, np.uint8), np.empty(MEASURED_BYTES, np.uint8)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        _native.copy(out.data, source.data)
        seconds.append(time.perf_counter() - began)
    return MEASURED_BYTES / min(seconds)
