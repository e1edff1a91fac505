"""The scheduler's side: what to load, what to save. Nothing here touches a block or waits for the store."""

from __future__ import annotations

import time
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from kvstore.api import Fidelity
from kvstore.client import Client
from kvstore.connectors.vllm._ahead import Ahead
from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._extras import Origin
from kvstore.connectors.vllm._hints import awaited_s
from kvstore.connectors.vllm._lookups import Answer, Lookups
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._plan import NULL_BLOCK, Blocks, HintJob, LoadJob, Plan, SaveJob
from kvstore.connectors.vllm._reports import UNASKED
from kvstore.connectors.vllm._sources import cold_tokens
from kvstore.connectors.vllm._taint import Taint
from kvstore.connectors.vllm._warn import Warn
from kvstore.connectors.vllm._worth import Worth
from kvstore.errors import InvalidArgument
from kvstore.keys import Chain, ChunkRef
from kvstore.spec import KVSpec

if TYPE_CHECKING:
    from kvstore.connectors.vllm._events import Events

CLEAN = 1 << 62  # the first tainted token of a request that has none
TAINTED_BLOCKS = 1 << 20


@dataclass(slots=True)
class Tracked:
    """A request from its arrival to its end.

    `start` is the last number of local tokens that vLLM told; `saved` where the next whole chunk to be saved begins,
    `tail` where the last tail that is stored ends. `loaded_at` is the number of preemptions at which a load was
    asked for: one load for each time a request comes in, so that a failed one is not tried for ever. From token
    `tainted` on KV is, or was computed after, a lossy copy, up to `marked` blocks of which are known as such.
    """

    request: Any
    origin: Origin | None
    asked: Future[Answer] | None = None
    asked_at: float = 0.0
    asked_for: int = -1
    answer: Answer | None = None
    start: int = 0
    loading: bool = False
    loaded_at: int = -1
    saved: int = 0
    tail: int = 0
    prompt_saved: bool = False
    tainted: int = CLEAN
    marked: int = 0
    refs: list[ChunkRef] = field(default_factory=list)


class Scheduler:
    """See `KVConnectorBase_V1`'s scheduler side. `counts` go into the statistics, `events` are set where wanted."""

    def __init__(self, client: Client, spec: KVSpec, block: int, options: Options, *, loads: bool, saves: bool) -> None:
        self._spec, self._block, self._options = spec, block, options
        self._loads, self._saves = loads, saves
        self.counts = Counts()
        self.worth = Worth(options, self.counts)
        self.lookups = Lookups(client, spec, block, options, leased=loads, worth=self.worth)
        self._tracked: dict[str, Tracked] = {}
        self._plan = Plan()
        self._taint = Taint(TAINTED_BLOCKS)
        least = Fidelity.EXACT if options.fidelity == "exact" else Fidelity.LOSSY
        self._ahead = Ahead(client, spec, options.prefetch_bytes, least, self.counts, self.lookups.later)
        self._warn = Warn("hints", options.retry_s)
        self.events: Events | None = None

    def arrived(self, request: Any) -> None:
        """Begin the look-up while the request waits in the queue."""
        if self._loads or self._saves:
            self._ask(self._track(request))

    def matched(self, request: Any, computed: int) -> tuple[int | None, bool]:
        """See `get_num_new_matched_tokens`. Without side effects but for a look-up that has not begun yet."""
        tracked = self._track(request)
        if not self._loads or tracked.origin is None or tracked.loaded_at == request.num_preemptions:
            return 0, False
        answer = self._answer(tracked)
        if answer is None:
            self.counts.add(retries=1)
            return None, False
        tracked.start = computed
        if self._options.fidelity != "exact":
            self._inherit_taint(tracked, computed)
        found = max(0, answer.tokens - computed)
        if not self.worth.pays(answer.plan, len(request.all_token_ids), computed, answer.tokens):
            found = 0
        return found, found > 0

    def cold(self, request: Any, external: int) -> int:
        """Of the tokens that are loaded from the store: how many were not in its DRAM when it was asked."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.answer is None or tracked.answer.hit is None:
            return 0
        return cold_tokens(tracked.answer.hit.cold, tracked.start, tracked.start + external)

    def allocated(self, request: Any, blocks: Blocks, external: int) -> None:
        """Plan the load, once vLLM has decided for it."""
        tracked = self._tracked.get(request.request_id)
        if tracked is None or tracked.answer is None:
            return
        self._ahead.end(request.request_id)
        if external > 0 and not tracked.loading:
            answer, end = tracked.answer, tracked.start + external
            refs = tuple(ref for ref in answer.refs if ref.end > tracked.start and ref.position < end)
            self._plan.loads.append(LoadJob(request.request_id, tracked.start, end, refs, blocks, answer.exact))
            tracked.loading, tracked.loaded_at = True, request.num_preemptions
            self.worth.began(request.request_id, tracked.start, end, warm=not self.cold(request, external))
            self.counts.add(hit_tokens=external, lossy_tokens=max(0, end - max(answer.exact, tracked.start)))
            if end > answer.exact:
                tracked.tainted = min(tracked.tainted, max(answer.exact, tracked.start) // self._block * self._block)
                self._mark(tracked)
        elif not tracked.loading:
            self._release(tracked)

    def plan(self, output: Any) -> Plan:
        """This step's plan. Called once per step."""
        plan, self._plan = self._plan, Plan()
        plan.idle = output.total_num_scheduled_tokens == 0
        self.worth.scheduled(output)
        if self._saves:
            for identity, computed in _computed(output):
                tracked = self._tracked.get(identity)
                if tracked is not None:
                    self._save_computed(tracked, computed, output, plan)
        return plan

    def loaded(self, requests: set[str]) -> None:
        """The workers are done with loading these, well or not."""
        for identity in requests:
            self.worth.ended(identity)
            tracked = self._tracked.get(identity)
            if tracked is not None:
                tracked.loading = False
                self._release(tracked)

    def finished(self, request: Any, blocks: Blocks) -> None:
        """Save the tail, and forget the request. Its blocks are copied before anything overwrites them."""
        self.worth.forget(request.request_id)
        tracked = self._tracked.pop(request.request_id, None)
        if tracked is None:
            return
        # The last token's KV is never computed; while a load runs nothing is what it says it is.
        end = min(request.num_computed_tokens, len(request.all_token_ids) - 1) // self._block * self._block
        self._mark(tracked)
        if end > tracked.tainted:
            self.counts.add(saves_tainted=1)
        if self._saves and not tracked.loading and self._ready(tracked):
            for ref in self._due(tracked, end, whole_only=False):
                self._plan.final_saves.append(self._job(tracked, ref, blocks))
        if (self._loads or self._saves) and self._ready(tracked):
            self._hint(tracked, end)
        self._release(tracked)

    def stop(self) -> None:
        """Neither load nor save from now on. What was to be copied out of blocks may no longer be in them."""
        self._loads = self._saves = False
        self._plan.final_saves.clear()
        self._plan.hints.clear()
        for tracked in self._tracked.values():
            self._release(tracked)

    def close(self) -> None:
        """Give every lease back and stop."""
        for tracked in self._tracked.values():
            self._release(tracked)
        self.lookups.close()

    def _track(self, request: Any) -> Tracked:
        tracked = self._tracked.get(request.request_id)
        if tracked is None:
            try:
                origin: Origin | None = Origin.of(request)
            except InvalidArgument:
                origin = None
            tracked = self._tracked[request.request_id] = Tracked(request, origin)
        return tracked

    def _ask(self, tracked: Tracked) -> None:
        if tracked.origin is None:
            return
        self._release(tracked)
        tracked.answer, tracked.asked_at = None, time.monotonic()
        tracked.asked_for = tracked.request.num_preemptions
        name = tracked.request.request_id
        self._ahead.expect(name)
        tracked.asked = self.lookups.ask(
            list(tracked.request.all_token_ids), tracked.origin, partial(self._ahead.begin, name)
        )
        self.counts.add(lookups=1)

    def _answer(self, tracked: Tracked) -> Answer | None:
        """The look-up's answer. One from before a preemption, or whose lease may end soon, is asked for again."""
        stale = tracked.asked_for != tracked.request.num_preemptions
        answer = tracked.answer
        if answer is not None and answer.hit is not None and answer.hit.lease:
            stale |= time.monotonic() - answer.at > self._options.lease_s / 2
        if tracked.asked is None or stale:
            self._ask(tracked)
        if tracked.answer is None and tracked.asked is not None:
            tracked.answer = self.lookups.poll(tracked.asked, tracked.asked_at)
            self._start_saving(tracked)
        return tracked.answer

    def _start_saving(self, tracked: Tracked) -> None:
        answer = tracked.answer
        if answer is None or answer.chain is None:
            return
        chunk = self._spec.chunk_tokens
        tracked.saved = max(tracked.saved, answer.stored // chunk * chunk)
        tracked.tail = max(tracked.tail, answer.stored)
        tracked.refs = [ref for ref in answer.chain.refs if ref.tokens == chunk]
        self.counts.add(asked_tokens=len(answer.chain.ids))
        if answer.hit is not None and answer.hit.left_out:
            self.counts.add(lookups_cut=1, left_out_tokens=answer.hit.left_out)

    def _ready(self, tracked: Tracked) -> bool:
        """Whether it is known under what keys a request is saved."""
        if tracked.answer is None and tracked.asked is not None and tracked.asked.done():
            tracked.answer = tracked.asked.result()
            self._start_saving(tracked)
        return tracked.answer is not None and tracked.answer.extras is not None

    def _hint(self, tracked: Tracked, end: int) -> None:
        """Have the store told what the request says of the prompt's future, answer included, up to token `end`."""
        try:
            seconds = awaited_s(tracked.request)
        except InvalidArgument as error:
            self.counts.add(hints_failed=1)
            self._warn(str(error))
            return
        if seconds is None or end <= 0:
            return
        assert tracked.answer is not None
        ids = tracked.request.all_token_ids[:end]
        refs = Chain.of(ids, self._spec.chunk_tokens, tracked.answer.extras).refs
        self._plan.hints.append(HintJob(refs, seconds))

    def _inherit_taint(self, tracked: Tracked, computed: int) -> None:
        """What vLLM's own prefix cache gives may itself have been computed after something lossy."""
        first = self._taint.first(list(tracked.request.block_hashes[: computed // self._block]))
        if first is not None:
            tracked.tainted = min(tracked.tainted, first * self._block)

    def _mark(self, tracked: Tracked) -> None:
        """Remember which blocks of vLLM's own cache will be tainted."""
        if tracked.tainted == CLEAN or tracked.marked == len(tracked.request.block_hashes):
            return
        hashes = list(tracked.request.block_hashes)
        self._taint.mark(hashes[max(tracked.marked, tracked.tainted // self._block) :])
        tracked.marked = len(hashes)

    def _release(self, tracked: Tracked) -> None:
        self._ahead.end(tracked.request.request_id)
        if tracked.answer is not None:
            self.lookups.release(tracked.answer.hit)
            tracked.answer.hit = None
        elif tracked.asked is not None:
            tracked.asked.add_done_callback(self.lookups.forget)
            tracked.asked = None

    def _save_computed(self, tracked: Tracked, computed: int, output: Any, plan: Plan) -> None:
        request = tracked.request
        self._mark(tracked)
        known = min(computed, len(request.all_token_ids))
        prompt_over = known >= request.num_prompt_tokens and not tracked.prompt_saved
        if not prompt_over and known < tracked.saved + self._spec.chunk_tokens:
            return
        if tracked.tainted <= tracked.saved or not self._ready(tracked):
            return
        tracked.prompt_saved |= prompt_over
        end = request.num_prompt_tokens // self._block * self._block if prompt_over else known
        due = self._due(tracked, end, whole_only=not prompt_over)
        blocks = output.kv_connector_block_state.get_block_ids(request.request_id) if due else None
        if blocks is not None:
            plan.saves.extend(self._job(tracked, ref, blocks) for ref in due)

    def _due(self, tracked: Tracked, end: int, *, whole_only: bool) -> list[ChunkRef]:
        """The whole chunks up to token `end` that are not saved yet, and the tail; they count as saved from now on."""
        chunk = self._spec.chunk_tokens
        if end > tracked.tainted:
            end, whole_only = tracked.tainted, True
        first, last = tracked.saved // chunk, max(tracked.saved, end) // chunk
        refs = tracked.refs
        tail = end % chunk and not whole_only and end > tracked.tail
        if len(refs) < last or tail:
            assert tracked.answer is not None
            ids = tracked.request.all_token_ids[:end]
            refs = list(Chain.of(ids, chunk, tracked.answer.extras).refs)
            tracked.refs = refs[:last]
        tracked.saved = max(tracked.saved, last * chunk)
        due = refs[first:last]
        if tail:
            due = [*due, refs[last]]
            tracked.tail = end
        return due

    def _job(self, tracked: Tracked, ref: ChunkRef, blocks: Blocks) -> SaveJob:
        first, last = ref.position // self._block, ref.end // self._block
        cut = tuple(list(table[first:last]) for table in blocks)
        padded = tuple([*table, *[NULL_BLOCK] * (last - first - len(table))] for table in cut)
        number = UNASKED if self.events is None else self.events.expect(tracked.request, ref, padded)
        return SaveJob(tracked.request.request_id, ref, padded, number)


def _computed(output: Any) -> list[tuple[str, int]]:
    """For each request of a step: how many of its tokens have KV after it."""
    scheduled = output.num_scheduled_tokens
    cached = output.scheduled_cached_reqs
    before = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
    before += zip(cached.req_ids, cached.num_computed_tokens, strict=True)
    return [(identity, computed + scheduled.get(identity, 0)) for identity, computed in before]
