"""Traces for tests: small ones by hand and by chance, and the real ones where they lie."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvstore.sim.formats import Parsed, Request
from kvstore.sim.trace import Trace, from_parsed, read

# Beside the checkout, or where the variable says.
TRACES = Path(os.environ.get("TRACES_FOLDER", Path(__file__).resolve().parents[3] / "shared" / "traces"))
REAL = ("mooncake_conversation", "mooncake_synthetic", "agent_sessions")
BLOCK = 16


def real(name: str) -> Trace:
    """One of the real traces; skips where it is not."""
    path = TRACES / f"{name}.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"there is no {path}: TRACES_FOLDER names the folder of the real traces")
    return _kept(path)


@cache
def _kept(path: Path) -> Trace:
    return read(path)


def head(trace: Trace, requests: int) -> Trace:
    """Its first requests, and the chunks that they have: these are numbered in the order in which they come."""
    chunk = trace.chunk[: int(trace.starts[min(requests, trace.requests)])]
    return replace(
        trace, times_ms=trace.times_ms[:requests], input_tokens=trace.input_tokens[:requests],
        tenants=trace.tenants[:requests], linked=trace.linked[:requests], starts=trace.starts[: requests + 1],
        chunk=chunk, position=trace.position[: len(chunk)], chunk_tokens=trace.chunk_tokens[: int(chunk.max()) + 1],
    )  # fmt: skip


def linked(prompts: Sequence[Sequence[int]], *, tail: int = BLOCK) -> Trace:
    """Prompts of blocks of 16 tokens, one a second, whose last block has `tail` tokens."""
    requests = [
        Request(
            1000 * n, BLOCK * (len(ids) - 1) + tail if ids else 0, ids, [BLOCK] * (len(ids) - 1) + [tail] * bool(ids)
        )
        for n, ids in enumerate(prompts)
    ]
    return from_parsed(Parsed("by-hand", True, BLOCK, requests))


def segmented(prompts: Sequence[Sequence[tuple[int, int]]]) -> Trace:
    """Prompts of (id, tokens) segments, one a second."""
    requests = [
        Request(1000 * n, sum(size for _, size in each), [i for i, _ in each], [size for _, size in each])
        for n, each in enumerate(prompts)
    ]
    return from_parsed(Parsed("segments", False, 0, requests))


def conversations(requests: int, *, seed: int = 0, users: int = 40) -> list[list[int]]:
    """Prompts of users who go on, or begin anew, each after one of a few system prompts."""
    dice = np.random.default_rng(seed)
    systems = [list(range(s * 100, s * 100 + 4 + s)) for s in range(5)]
    fresh, state, found = 10_000, {}, []
    for _ in range(requests):
        user = int(dice.zipf(1.4)) % users
        if user not in state or len(state[user]) > 30 or dice.random() < 0.1:
            state[user] = list(systems[int(dice.integers(5))])
        grown = int(dice.integers(1, 5))
        state[user] = state[user] + list(range(fresh, fresh + grown))
        fresh += grown
        found.append(list(state[user]))
    return found


def write(path: Path, lines: Sequence[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path
