"""A worker's side: copies between vLLM's blocks and the store, one for each tensor-parallel rank."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kvstore.client import Client
from kvstore.connectors.vllm._blocks import Blocks
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._loads import Loads, failure_text
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._order import Order
from kvstore.connectors.vllm._pinned import Pinned
from kvstore.connectors.vllm._plan import Plan
from kvstore.connectors.vllm._reports import Report, Took
from kvstore.connectors.vllm._saves import Saves
from kvstore.connectors.vllm._warn import Warn
from kvstore.spec import KVSpec

# The longest that an empty step waits for a load: about a step of a model, for which a request that arrives now would
# wait as well. Each further step of a load costs the way to the scheduler and back, and a core that the load needs.
REST_S = 0.05


class Worker:
    """See `KVConnectorBase_V1`'s worker side."""

    def __init__(
        self,
        client: Client,
        spec: KVSpec,
        block: int,
        options: Options,
        rank: int,
        groups: Sequence[Any],
        orders: Sequence[Order] | None,
    ) -> None:
        self._client, self._spec, self._block, self._options = client, spec, block, options
        self._rank, self._groups, self._orders = rank, groups, orders
        self.counts = Counts()
        self._pinned: Pinned | None = None
        self._loads: Loads | None = None
        self._saves: Saves | None = None
        self._took: dict[str, Took] = {}
        self._bad_blocks: set[int] = set()
        self._warn = Warn("loads", options.retry_s)

    def register(self, caches: Mapping[str, Any]) -> None:
        """Take vLLM's KV tensors, by layer name."""
        blocks = Blocks(caches, self._groups, self._spec, self._block, self._orders)
        if blocks.pins is not None:
            self._pinned = Pinned(blocks.pins)
        self._loads = Loads(self._client, self._spec, self._rank, blocks, self._options.readers, self.counts)
        self._saves = Saves(self._client, self._spec, self._rank, blocks, self._options, self.counts)

    def before(self, plan: Plan) -> None:
        """Copy what was freed and may be overwritten in this step."""
        if self._saves is not None:
            for job in plan.final_saves:
                self._saves.stage(job)
            for hint in plan.hints if self._rank == 0 else ():
                self._saves.tell(hint)

    def load(self, plan: Plan) -> None:
        """Begin this step's loads."""
        if self._loads is not None:
            for job in plan.loads:
                self._loads.start(job)

    def save(self, plan: Plan) -> None:
        """Copy out what this step has computed."""
        if self._saves is not None:
            for job in plan.saves:
                self._saves.stage(job)

    def rest(self) -> None:
        """In a step without work, wait for a load, so that most loads take one step."""
        if self._loads is not None:
            self._loads.wait(REST_S)

    def results(self) -> tuple[set[str], set[str]]:
        """Requests whose loads are over, and those of them that vLLM has to start anew.

        With one KV group the blocks that did not come are told instead, so that those before them are kept.
        """
        done: set[str] = set()
        failed: set[str] = set()
        if self._loads is None:
            return done, failed
        for outcome in self._loads.take():
            done.add(outcome.job.request)
            self.counts.add(loads=1, loaded_bytes=outcome.nbytes, load_s=outcome.seconds)
            if outcome.failed_at is None:
                self._took[outcome.job.request] = Took(outcome.nbytes, outcome.seconds)
                continue
            self.counts.add(loads_failed=1)
            self._warn(failure_text(outcome))
            if len(self._groups) > 1:
                failed.add(outcome.job.request)
            else:
                first, end = outcome.failed_at // self._block, outcome.job.end // self._block
                self._bad_blocks.update(outcome.job.blocks[0][first:end])
        return done, failed

    def report(self) -> Report | None:
        """What has become of the saves that the scheduler wants to hear of, and what loads took."""
        report = None if self._saves is None else self._saves.reports.take()
        if self._took:
            report = report or Report()
            report.loads, self._took = self._took, {}
        return report

    def bad_blocks(self) -> set[int]:
        """Blocks that did not come, each told once."""
        bad, self._bad_blocks = self._bad_blocks, set()
        return bad

    def close(self) -> None:
        """Wait for loads and saves."""
        if self._loads is not None:
            self._loads.close()
        if self._saves is not None:
            self._saves.close()
        if self._pinned is not None:
            self._pinned.close()
