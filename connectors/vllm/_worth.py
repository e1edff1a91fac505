"""Load or recompute, as this engine sees it: what it tells the store in look-ups, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from kvstore.channels.link_speed import LinkSpeed
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._prefill import PrefillMeter
from kvstore.connectors.vllm._reports import Took
from kvstore.cost import Plan, Prefill, Prompt


class _Load(NamedTuple):
    began: float
    recompute_s: float


class Worth:
    """What of a hit is loaded. All but `prompt` is for the scheduler's thread."""

    def __init__(self, options: Options, counts: Counts) -> None:
        self._on, self._counts = options.load_or_recompute, counts
        self._meter = PrefillMeter(options.prefill_tokens_per_s)
        self._link = LinkSpeed()
        self._loads: dict[str, _Load] = {}
        self._warm: set[str] = set()

    @property
    def prefill(self) -> Prefill | None:
        """How fast this engine computes; None until enough was measured, or where loads are not weighed."""
        return self._meter.prefill if self._on else None

    def scheduled(self, output: Any) -> None:
        """A step was planned."""
        if self._on:
            self._meter.scheduled(output)

    def completed(self) -> None:
        """The output of a step is there."""
        if self._on:
            self._meter.completed()

    def prompt(self, tokens: int) -> Prompt | None:
        """What goes into the look-up of a prompt."""
        prefill = self.prefill
        return None if prefill is None else Prompt(tokens, prefill, link_bytes_per_s=self._link.bytes_per_s)

    def pays(self, plan: Plan | None, prompt_tokens: int, computed: int, end: int) -> bool:
        """Whether what a plan loads is still worth it where the engine has `computed` tokens of it already."""
        prefill = self.prefill
        if plan is None or prefill is None or not computed or end <= computed:
            return True
        load_s = plan.seconds - prefill.step_s - float(prefill.seconds(plan.end, max(plan.end, prompt_tokens)))
        left = max(0.0, load_s) * (end - computed) / end
        return float(prefill.seconds(computed, end)) > prefill.step_s + left

    def began(self, request: str, start: int, end: int, *, warm: bool) -> None:
        """A load of these tokens begins; `warm` if all of them are in the store's DRAM."""
        prefill = self.prefill
        if prefill is not None:
            self._loads[request] = _Load(time.monotonic(), float(prefill.seconds(start, end)))
            (self._warm.add if warm else self._warm.discard)(request)

    def measured(self, loads: Mapping[str, Took]) -> None:
        """What loads took by the workers' own clocks, by request.

        The way here is learnt from these: when the scheduler hears of a load the step in which it ended is over too, or
        none was under way, which it cannot tell apart.
        """
        for request, took in loads.items():
            if request in self._warm:
                self._warm.discard(request)
                self._link.seen(took.nbytes, took.seconds, warm=True)

    def ended(self, request: str) -> None:
        """A load is over; what is never told of was given up."""
        load = self._loads.pop(request, None)
        if load is not None:
            slower = time.monotonic() - load.began > load.recompute_s
            self._counts.add(loads_weighed=1, loads_slower=slower)

    def forget(self, request: str) -> None:
        """A request has ended."""
        self._loads.pop(request, None)
        self._warm.discard(request)
