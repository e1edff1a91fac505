"""`kvstore bench worth`: how often a load took longer than recomputing would have, with hits weighed and without.

A store whose prompts lie on its disk, and an engine that is imagined: in each round it computes at another rate, from a
quarter of the tokens a second that are loaded to four times that. Half of the rounds another reader loads at the same
time. What is loaded is really loaded and checked; what is computed takes the time that it would.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

import kvstore
from kvstore.bench.measure import Row, expect
from kvstore.client import Client
from kvstore.config import Config, DramConfig, NvmeConfig
from kvstore.cost import Prefill, Prompt
from kvstore.keys import Chain
from kvstore.spec import KVSpec

MiB = 1 << 20
# 128 KiB a token, as Llama 3.1 8B has; 2 MiB a chunk.
SPEC = KVSpec.dense("worth", layers=32, kv_heads=8, head_dim=128, chunk_tokens=16)
PART = SPEC.part()
PROMPTS, LEAST_CHUNKS, MOST_CHUNKS = 16, 4, 24
STEP_S = 0.002
FIRST_RATE = 5000.0  # tokens a second
SPREAD = 4.0  # the engine's rate is that of loads divided or multiplied by up to so much
SLOWER_SHARE = 0.01


@dataclass
class _Mode:
    """What one way to decide has led to."""

    name: str
    weighed: bool
    ttft_s: list[float] = field(default_factory=list)
    recompute_s: list[float] = field(default_factory=list)
    loads: int = 0
    slower: int = 0
    tokens: int = 0


def run(*, rounds: int = 200, path: Path | None = None, advance: Callable[[], None] = lambda: None) -> list[Row]:
    """A row for `always` (whatever is stored is loaded) and for `weighed`: TTFT, `loads`, `slower`, `tokens_loaded`."""
    with tempfile.TemporaryDirectory(prefix="kvstore-worth-", dir=path) as folder:
        nvme = NvmeConfig(Path(folder), capacity=2048 * MiB, segment=64 * MiB, reserve=0)
        with closing(kvstore.open(Config(dram=DramConfig(64 * MiB, 64 * MiB), nvme=nvme))) as client:
            bench = _Bench(client)
            bench.fill()
            modes = (_Mode("always", weighed=False), _Mode("weighed", weighed=True))
            for number in range(-rounds // 4, rounds):  # the first teach the store its disk, and do not count
                bench.round(modes, counts=number >= 0)
                advance()
    return [_row(mode) for mode in modes]


class _Bench:
    """The store, its prompts and the reader beside."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._random = np.random.default_rng(11)
        self._prompts = [self._prompt(seed) for seed in range(PROMPTS)]
        self._next = 0
        self._rates = deque[float](maxlen=64)  # tokens a second of loads of late
        self._pool = ThreadPoolExecutor(1)
        self._out = np.zeros((MOST_CHUNKS, SPEC.part_bytes(PART, SPEC.chunk_tokens)), np.uint8)
        self._other_out = np.zeros_like(self._out)

    def fill(self) -> None:
        """Store every prompt, and wait until all of it is on the disk."""
        for prompt in self._prompts:
            for ref in prompt.refs:
                self._client.put(SPEC, ref, _content(ref.key), ack="persisted")

    def round(self, modes: tuple[_Mode, ...], *, counts: bool) -> None:
        """One request decided each way, of prompts that have left DRAM."""
        rate = (median(self._rates) if self._rates else FIRST_RATE) * SPREAD ** self._random.uniform(-1, 1)
        prefill = Prefill.of_rate(rate, STEP_S)
        busy = self._random.random() < 0.5
        beside = [self._pool.submit(self._load, self._take(), self._other_out) for _ in modes] if busy else []
        for mode in modes:
            self._request(mode, self._take(), prefill, counts)
        for each in beside:
            each.result()

    def _request(self, mode: _Mode, prompt: Chain, prefill: Prefill, counts: bool) -> None:
        total = len(prompt.ids)
        began = time.perf_counter()
        asked = Prompt(total, prefill) if mode.weighed else None
        with self._client.lookup(SPEC, prompt, lease_s=30, prompt=asked) as hit:
            outcomes = self._get(hit.refs, self._out)
        seconds = time.perf_counter() - began
        for number, ref in enumerate(hit.refs):
            expect(outcomes[number] is None and np.array_equal(self._out[number], _content(ref.key)), mode.name, number)
        ttft = seconds + float(prefill.seconds(hit.tokens, total)) + (prefill.step_s if hit.tokens else 0.0)
        recompute = float(prefill.seconds(0, total))
        if not mode.weighed:
            self._rates.append(hit.tokens / seconds)
        if counts:
            mode.ttft_s.append(ttft)
            mode.recompute_s.append(recompute)
            mode.loads += hit.tokens > 0
            mode.slower += hit.tokens > 0 and ttft > recompute
            mode.tokens += hit.tokens

    def _load(self, prompt: Chain, out: Any) -> None:
        self._get(prompt.refs, out)

    def _get(self, refs: Any, out: Any) -> Any:
        wants = [self._client.want(SPEC, ref, out[number], part=PART) for number, ref in enumerate(refs)]
        return self._client.get_many(SPEC, wants)

    def _take(self) -> Chain:
        self._next += 1
        return self._prompts[self._next % PROMPTS]

    def _prompt(self, seed: int) -> Chain:
        random = np.random.default_rng(seed)
        chunks = int(random.integers(LEAST_CHUNKS, MOST_CHUNKS + 1))
        return Chain.of(random.integers(0, 50_000, chunks * SPEC.chunk_tokens), SPEC.chunk_tokens)


def _content(key: bytes) -> Any:
    seed = int.from_bytes(key[:8], "little")
    return np.random.Generator(np.random.SFC64(seed)).integers(
        0, 256, SPEC.part_bytes(PART, SPEC.chunk_tokens), np.uint8
    )


def _row(mode: _Mode) -> Row:
    """`ratio` is the time of computing everything over the time it took."""
    share = mode.slower / mode.loads if mode.loads else 0.0
    times = np.array(mode.ttft_s)
    row: Row = {
        "case": mode.name, "mode": "", "bytes": 0, "p50_s": float(np.median(times)),
        "p99_s": float(np.percentile(times, 99)), "gbps": None, "baseline": "recompute",
        "ratio": fmean(mode.recompute_s) / fmean(mode.ttft_s), "p99_ratio": None, "rounds": len(times),
        "loads": mode.loads, "slower": mode.slower, "slower_share": round(share, 4), "tokens_loaded": mode.tokens,
        "note": "prompts on the disk, read with O_DIRECT; prefill is computed by its rate, not run", "bar": None,
        "met": None, "bar_ratio": None, "bar_p50_s": None,
    }  # fmt: skip
    if mode.weighed:
        row["bar"], row["met"] = f"slower ≤ {SLOWER_SHARE:.0%}", share <= SLOWER_SHARE
    return row
