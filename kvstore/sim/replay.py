"""One trace, one set-up of tiers, one policy: the native replay and what its columns add up to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kvstore import _native
from kvstore.config import SECOND_TOUCH
from kvstore.errors import InvalidArgument
from kvstore.sim.setup import TOUCHES, Setup, Tiers
from kvstore.sim.trace import Column, Trace


@dataclass(frozen=True)
class Outcome:
    """By request [n] of the whole trace: tokens hit, tokens worth loading, FLOPs saved, seconds until all of the prompt
    has KV, seconds in the policy. `tiers`: what happened in each while it counted. `elapsed_s`: the replay's own time.
    """

    hit_tokens: Column
    loaded_tokens: Column
    flops_saved: Column
    ttft_s: Column
    policy_s: Column
    tiers: Sequence[dict[str, int]]
    elapsed_s: float


class Replay:
    """A trace made ready to be played in one way, with any policy and tiers."""

    def __init__(self, trace: Trace, setup: Setup, *, chunk_bytes: Sequence[int] | None = None) -> None:
        """`chunk_bytes` of every chunk of the trace, where they are not the model's KV alone.

        `InvalidArgument` for shares that are not one a tenant, and whole blocks of what has none.
        """
        if setup.shares and len(setup.shares) != len(trace.names):
            raise InvalidArgument(f"{trace.name} has {len(trace.names)} tenants, so as many shares, not {setup.shares}")
        if setup.whole_blocks and not trace.block:
            raise InvalidArgument(f"{trace.name} has no block length, so no whole blocks")
        self.trace, self.setup = trace, setup
        self.first = int(setup.warm * trace.requests)
        self.prefill = setup.model.prefill(setup.flops_per_s, setup.step_s)
        tokens = np.full(trace.chunks, trace.block) if setup.whole_blocks else trace.chunk_tokens
        if chunk_bytes is None:
            self.chunk_bytes = np.maximum(1, np.round(tokens * setup.model.token_bytes)).astype(np.uint64)
        else:
            self.chunk_bytes = np.array(chunk_bytes, np.uint64)
        self._native = _native.SimTrace(
            trace.times_ms, trace.input_tokens, trace.tenants, trace.linked, trace.starts, trace.chunk,
            trace.chunk_tokens, self.chunk_bytes, told_to_have_ended(trace, setup.ended),
        )  # fmt: skip

    @property
    def counted(self) -> Column:
        """`input_tokens` of the requests that count, int64."""
        return self.trace.input_tokens[self.first :].astype(np.int64)

    def capacities(self, tiers: Tiers) -> list[int]:
        """In bytes. `InvalidArgument` for one that is less than the largest chunk takes there."""
        total, largest = int(self.chunk_bytes.sum()), int(self.chunk_bytes.max())
        found = [tier.capacity.of(total) for tier in tiers]
        for tier, nbytes in zip(tiers, found, strict=True):
            if nbytes * tier.smaller < largest:
                raise InvalidArgument(
                    f"{tier.name} of {tier.capacity.text} has {nbytes} bytes, and a chunk of {self.trace.name} "
                    f"{largest}: that is no cache"
                )
        return found

    def play(self, policy: str, tiers: Tiers) -> Outcome:
        """The whole trace. `policy` is one of the store's, or `belady`.

        Belady's rule need not take in what is used later than all that is there, except in the order `forward`.
        """
        setup = self.setup
        given = [
            (nbytes, tier.smaller, tier.speed, tier.admit == SECOND_TOUCH, tier.write_bytes_per_day)
            for nbytes, tier in zip(self.capacities(tiers), tiers, strict=True)
        ]
        start = time.perf_counter()
        told: dict[str, Any] = _native.sim_replay(
            self._native, policy, given, list(setup.shares) or [1.0] * len(self.trace.names), self.prefill.packed,
            TOUCHES.index(setup.touch), setup.overlap, setup.touch != "forward", self.first,
        )  # fmt: skip
        return Outcome(**told, elapsed_s=time.perf_counter() - start)


def told_to_have_ended(trace: Trace, ended: str) -> Column:
    """Of every request, uint8 [n]: whether its prompt is said to have ended, of `setup.ENDED`.

    It is true of one whose last whole block no later request has. A partial block is in no longer prompt anyway.
    """
    if ended != "known":
        return np.full(trace.requests, ended == "always", np.uint8)
    request = trace.request_of()
    last_use = np.zeros(trace.chunks, np.int64)
    np.maximum.at(last_use, trace.chunk, request)
    whole = np.ones(trace.events, bool) if not trace.block else trace.chunk_tokens[trace.chunk] == trace.block
    told = np.zeros(trace.requests, np.uint8)
    told[request[whole]] = last_use[trace.chunk[whole]] == request[whole]  # the last one of each request stays
    return told
