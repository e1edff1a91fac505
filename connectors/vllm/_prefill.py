"""How fast this engine computes, from its own steps: nothing is run or waited for to know it."""

from __future__ import annotations

import time
from collections import deque
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kvstore.cost import Prefill

KEPT = 64  # steps that a fit looks at
LEAST = 8  # steps of prefill before anything is said
REFIT = 4  # new ones before it is fitted anew
PREFILL_TOKENS = 16  # a request that computes fewer in a step decodes, or has a rest that says nothing
PREFILL_SHARE = 0.8  # of a step's tokens that makes it one of prefill
IN_FLIGHT = 2  # steps between their planning and their end, with asynchronous scheduling
OUTLIERS = 3.0  # times the median deviation


class _Step(NamedTuple):
    """`work` is the sum over requests of their tokens times the mean position of these."""

    began: float
    tokens: int
    work: float
    is_prefill: bool


class PrefillMeter:
    """Fits seconds = step + a · tokens + b · work to the steps that are mostly prefill.

    `scheduled` is called when a step is planned, `completed` when its output is there, both by the scheduler's thread;
    `prefill` may be read by any.
    """

    def __init__(self, tokens_per_s: float = 0.0) -> None:
        """`tokens_per_s` is the engine's speed where it is known beforehand; then only steps are measured."""
        self._rate = tokens_per_s
        self._running: deque[_Step] = deque()
        self._samples: deque[tuple[int, float, float]] = deque(maxlen=KEPT)
        self._steps: deque[float] = deque(maxlen=KEPT)
        self._since_fit = 0
        self._last_end = 0.0
        self.prefill: Prefill | None = Prefill.of_rate(tokens_per_s) if tokens_per_s > 0 else None

    def scheduled(self, output: Any) -> None:
        """A step was planned: a `SchedulerOutput`."""
        counts = output.num_scheduled_tokens
        cached = output.scheduled_cached_reqs
        before = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        before.update(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        total = sum(counts.values())
        long = sum(count for count in counts.values() if count >= PREFILL_TOKENS)
        work = sum(count * (before.get(identity, 0) + count / 2) for identity, count in counts.items())
        if len(self._running) >= IN_FLIGHT:  # of one that had no output nothing is heard
            self._running.popleft()
        is_prefill = total > 0 and long >= PREFILL_SHARE * total
        self._running.append(_Step(time.monotonic(), total, work, is_prefill))

    def completed(self) -> None:
        """The output of the oldest step that was planned is there. One without work lasted as long as a load did."""
        now = time.monotonic()
        if not self._running:
            return
        step = self._running.popleft()
        seconds = now - max(step.began, self._last_end)
        self._last_end = now
        if seconds > 0 and step.tokens:
            self.took(step.tokens, step.work, seconds, is_prefill=step.is_prefill)

    def took(self, tokens: int, work: float, seconds: float, *, is_prefill: bool) -> None:
        """A step took so long."""
        self._steps.append(seconds)
        if is_prefill:
            self._samples.append((tokens, work, seconds))
            self._since_fit += 1
        if self._rate > 0:
            self.prefill = Prefill.of_rate(self._rate, self._step_s)
        elif len(self._samples) >= LEAST and self._since_fit >= REFIT:
            self._since_fit = 0
            self.prefill = self._fitted()

    @property
    def _step_s(self) -> float:
        """How long a request that has loaded waits to be scheduled: a step, as they are of late."""
        return float(np.median(self._steps))

    def _fitted(self) -> Prefill:
        """A long prompt takes a step for every batch of it, so that a batch's share of the overhead is each token's."""
        samples = np.array(self._samples, np.float64)
        overhead, per_token, per_work = fit(samples)
        batch = float(np.percentile(samples[:, 0], 90))
        return Prefill(max(per_token + overhead / batch, 1e-12), per_work, 1.0, self._step_s)


def fit(samples: npt.NDArray[np.float64]) -> tuple[float, float, float]:
    """Seconds of a step, of a token, and of a token for each token before it, none negative.

    `samples` are rows of tokens, work and seconds. Relative errors count, and those far from the rest (a compilation, a
    pause) are left out.
    """
    kept = samples
    for _ in range(3):
        found = _non_negative(kept)
        errors = np.abs(_columns(samples) @ found / samples[:, 2] - 1)
        near = errors <= max(OUTLIERS * 1.5 * float(np.median(errors)), 1e-3)
        kept = samples[near]
    overhead, per_token, per_work = found.tolist()
    return overhead, per_token, per_work


def _columns(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.column_stack([np.ones(len(samples)), samples[:, 0], samples[:, 1]])


def _non_negative(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Least squares of relative errors; a column that would be negative is left out."""
    columns = _columns(samples) / samples[:, 2:3]
    used, found = [0, 1, 2], np.zeros(3)
    while used:
        scale = np.maximum(np.linalg.norm(columns[:, used], axis=0), 1e-300)
        some = np.linalg.lstsq(columns[:, used] / scale, np.ones(len(columns)), rcond=1e-6)[0] / scale
        worst = int(np.argmin(some))
        if some[worst] >= 0:
            found[used] = some
            break
        used.pop(worst)
    return found
