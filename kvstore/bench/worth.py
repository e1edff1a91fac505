"""`kvstore bench worth`: how often a load took longer than recomputing, and how often recomputing than a load.

Prompts lie in DRAM, on a disk, or behind a link; an engine is imagined: in each request it computes at another rate,
from a quarter of the tokens a second that are loaded to four times that. What is loaded is really loaded and checked;
what is computed takes the time that it would. Beside each request that is weighed its twin loads all there is.
"""

from __future__ import annotations

import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import numpy as np

from kvstore.bench.corpus import content
from kvstore.bench.measure import Row, expect
from kvstore.bench.worth_scenes import SCENES, Phase, Scene, Side
from kvstore.cost import Prefill, Prompt
from kvstore.keys import Chain
from kvstore.spec import KVSpec

MiB = 1 << 20
# 128 KiB a token, as Llama 3.1 8B has; 2 MiB a chunk.
SPEC = KVSpec.dense("worth", layers=32, kv_heads=8, head_dim=128, chunk_tokens=16)
PART = SPEC.part()
CHUNK = SPEC.part_bytes(PART, SPEC.chunk_tokens)
PROMPTS, LEAST_CHUNKS, MOST_CHUNKS = 16, 3, 12
STEP_S = 0.002
SPREAD = 4.0  # the engine's rate is that of loads divided or multiplied by up to so much
CLEARLY = 1.2  # times longer
QUIET = 10  # requests in a row without a loss, for what has changed to count as learnt
SLOWER_SHARE, MISSED_SHARE = 0.01, 0.05
FIRST = 3  # loads that tell at what rate to begin
POOL = 32 * MiB
# What a table shows besides.
FACTS = (
    "rounds", "loads", "slower", "slower_share", "median_loss", "worst_loss", "left_out", "missed", "missed_share",
    "learnt_after", "always_ratio",
)  # fmt: skip


class Asked(NamedTuple):
    """One request: how long it took weighed, with all loaded, and with all computed; `left` were left out."""

    took_s: float
    always_s: float
    recompute_s: float
    loaded: int
    left: int

    @property
    def lost(self) -> float:
        """How much longer than recomputing it took because something was loaded, as a share; 0 if it did not."""
        return max(0.0, self.took_s / self.recompute_s - 1) if self.loaded else 0.0

    @property
    def missed(self) -> bool:
        """Whether to load all would have been clearly faster."""
        return self.left > 0 and self.took_s > CLEARLY * self.always_s


@dataclass
class Judged:
    """The requests of one phase, in order."""

    phase: Phase
    asked: list[Asked] = field(default_factory=list)


def run(
    *, rounds: int = 100, path: Path | None = None, scenes: Sequence[Scene] = SCENES,
    advance: Callable[[], None] = lambda: None,
) -> list[Row]:  # fmt: skip
    """A row for each phase of each scene, and one for all that are steady, whose shares have to meet bars."""
    judged: list[Judged] = []
    for scene in scenes:
        with tempfile.TemporaryDirectory(prefix="kvstore-worth-", dir=path) as folder, ExitStack() as stack:
            sides = [scene.open(stack, Path(folder) / name) for name in ("weighed", "always")]
            contest = _Contest(stack, *sides)
            judged += [contest.phase(phase, rounds, advance) for phase in scene.phases]
    steady = [each for one in judged if one.phase.steady for each in one.asked]
    total = _row("all steady", steady)
    total["bar"] = f"slower ≤ {SLOWER_SHARE:.0%}, missed ≤ {MISSED_SHARE:.0%}"
    total["met"] = total["slower_share"] <= SLOWER_SHARE and total["missed_share"] <= MISSED_SHARE
    return [*(_row(each.phase.name, each.asked) for each in judged), total]


def rounds_of(rounds: int, scenes: Sequence[Scene] = SCENES) -> int:
    """How often `run` calls `advance`."""
    phases = [phase for scene in scenes for phase in scene.phases]
    return sum(round(phase.warm * rounds) + round(phase.share * rounds) for phase in phases)


class _Contest:
    """Both sides of a scene, and their prompts."""

    def __init__(self, stack: ExitStack, weighed: Side, always: Side) -> None:
        self._weighed, self._always = weighed, always
        self._random = np.random.default_rng(11)
        self._contents = content(7, POOL + CHUNK)
        self._prompts = [self._prompt(seed) for seed in range(PROMPTS)]
        self._asked = 0
        self._rates = {busy: deque[float](maxlen=16) for busy in (False, True)}  # of loads, in tokens a second
        self._beside = stack.enter_context(ThreadPoolExecutor(1))
        self._out, self._other_out = (np.zeros((MOST_CHUNKS, CHUNK), np.uint8) for _ in range(2))
        for side in (weighed, always):
            for prompt in self._prompts:
                for ref in prompt.refs:
                    side.client.put(SPEC, ref, self._content(ref.key), ack="persisted" if side.stored else "stored")

    def phase(self, phase: Phase, rounds: int, advance: Callable[[], None]) -> Judged:
        """All rounds of a phase."""
        if phase.link:
            for side in (self._weighed, self._always):
                assert side.link is not None
                side.link.bytes_per_s = phase.link
            for rates in self._rates.values():
                rates.clear()
        for busy in {False, phase.busy}:
            for _ in range(FIRST if not self._rates[busy] else 0):
                self._load_all(self._always, self._next(), busy=busy)
        judged = Judged(phase)
        for number in range(-round(phase.warm * rounds), round(phase.share * rounds)):
            asked = self._round(number, busy=phase.busy and self._random.random() < 0.5)
            if number >= 0:
                judged.asked.append(asked)
            advance()
        return judged

    def _round(self, number: int, *, busy: bool) -> Asked:
        """One request, weighed and with all loaded, in turns."""
        rate = median(self._rates[busy]) * SPREAD ** self._random.uniform(-1, 1)
        prefill, prompt = Prefill.of_rate(rate, STEP_S), self._next()
        total, always_s = len(prompt.ids), 0.0
        if number % 2:
            always_s = self._load_all(self._always, prompt, busy=busy)
        seconds, loaded = self._request(self._weighed, prompt, Prompt(total, prefill), busy=busy)
        if not number % 2:
            always_s = self._load_all(self._always, prompt, busy=busy)
        took = seconds + float(prefill.seconds(loaded, total)) + (STEP_S if loaded else 0.0)
        return Asked(took, always_s + STEP_S, float(prefill.seconds(0, total)), loaded, total - loaded)

    def _load_all(self, side: Side, prompt: Chain, *, busy: bool) -> float:
        seconds, tokens = self._request(side, prompt, None, busy=busy)
        self._rates[busy].append(tokens / seconds)
        return seconds

    def _request(self, side: Side, prompt: Chain, asked: Prompt | None, *, busy: bool) -> tuple[float, int]:
        """Look up and load; the seconds of both, and how many tokens were loaded."""
        side.forget()
        other = self._beside.submit(self._get, side, self._next().refs, self._other_out) if busy else None
        began = time.perf_counter()
        with side.client.lookup(SPEC, prompt, lease_s=30, prompt=asked) as hit:
            outcomes = self._get(side, hit.refs, self._out)
        seconds = time.perf_counter() - began
        for number, ref in enumerate(hit.refs):
            if (failure := outcomes[number]) is not None:
                raise failure
            expect(np.array_equal(self._out[number], self._content(ref.key)), "load", number)
        if other is not None:
            other.result()
        return seconds, hit.tokens

    def _get(self, side: Side, refs: Any, out: Any) -> Any:
        wants = [side.client.want(SPEC, ref, out[number], part=PART) for number, ref in enumerate(refs)]
        return side.client.get_many(SPEC, wants)

    def _next(self) -> Chain:
        self._asked += 1
        return self._prompts[self._asked * 5 % PROMPTS]

    def _prompt(self, seed: int) -> Chain:
        random = np.random.default_rng(seed)
        chunks = int(random.integers(LEAST_CHUNKS, MOST_CHUNKS + 1))
        return Chain.of(random.integers(0, 50_000, chunks * SPEC.chunk_tokens), SPEC.chunk_tokens)

    def _content(self, key: bytes) -> Any:
        at = int.from_bytes(key[:8], "little") % POOL
        return self._contents[at : at + CHUNK]


def _row(name: str, asked: Sequence[Asked]) -> Row:
    """`ratio` is the time of computing everything over the time it took, `always_ratio` over that of loading all."""
    loads, left = [each for each in asked if each.loaded], [each for each in asked if each.left]
    lost, missed = sorted(each.lost for each in loads if each.lost), sum(each.missed for each in left)
    took, recompute = [each.took_s for each in asked], fmean(each.recompute_s for each in asked)
    return {
        "case": name, "mode": "", "bytes": 0, "p50_s": float(np.median(took)), "p99_s": float(np.percentile(took, 99)),
        "gbps": None, "baseline": "recompute", "ratio": recompute / fmean(took), "p99_ratio": None,
        "always_ratio": round(recompute / fmean(each.always_s for each in asked), 3), "rounds": len(asked),
        "loads": len(loads), "slower": len(lost), "slower_share": _share(len(lost), len(loads)),
        "median_loss": round(median(lost), 4) if lost else 0.0, "worst_loss": round(lost[-1], 4) if lost else 0.0,
        "left_out": len(left), "missed": missed, "missed_share": _share(missed, len(left)),
        "learnt_after": learnt_after(asked),
        "note": "loads are real and checked; prefill is computed by its rate, not run", "bar": None, "met": None,
        "bar_ratio": None, "bar_p50_s": None,
    }  # fmt: skip


def learnt_after(asked: Sequence[Asked]) -> int:
    """How many requests went by before ten in a row neither lost nor missed anything."""
    wrong = [number for number, each in enumerate(asked) if each.lost or each.missed]
    for before, after in zip([-1, *wrong], [*wrong, len(asked) + QUIET], strict=True):
        if after - before > QUIET:
            return before + 1
    return len(asked)


def _share(some: int, of: int) -> float:
    return round(some / of, 4) if of else 0.0
