"""Look-ups in the background, so that the scheduler never waits for a network longer than it is told to."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from kvstore.api import Fidelity
from kvstore.client import Client
from kvstore.connectors.vllm._extras import Adapters, Origin
from kvstore.connectors.vllm._options import Options
from kvstore.connectors.vllm._warn import Warn
from kvstore.connectors.vllm._worth import Worth
from kvstore.cost import Plan
from kvstore.errors import InvalidArgument, KVStoreError
from kvstore.hit import Hit
from kvstore.keys import Chain, ChunkRef, Extras
from kvstore.spec import KVSpec

TAILS = 32  # tokens between the places where a tail is looked for, at most a block


@dataclass(slots=True)
class Answer:
    """What a look-up found: `tokens` can be loaded, in whole blocks and at most all but one of those asked for.

    `stored` is how far the store's chunks reach, also where `plan` leaves out the end of them as slower to load,
    `exact` how far they are exact. `extras` is None where the request has no key: nothing of it is loaded or saved.
    `at` is when the lease was taken (monotonic seconds).
    """

    tokens: int = 0
    stored: int = 0
    exact: int = 0
    refs: tuple[ChunkRef, ...] = ()
    chain: Chain | None = None
    extras: Extras | None = None
    hit: Hit | None = None
    at: float = 0.0
    plan: Plan | None = None


class Lookups:
    """Asks the store for prefixes in a thread of its own.

    `waits` counts how often the scheduler waited at all, each time for `lookup_wait_ms` at most; there is no other
    place where it waits.
    """

    def __init__(
        self, client: Client, spec: KVSpec, block: int, options: Options, *, leased: bool, worth: Worth | None = None
    ) -> None:
        """`worth` says what the engine would take to compute a prompt itself."""
        self._client, self._spec, self._block, self._options = client, spec, block, options
        self._leased, self._worth = leased, worth
        self._adapters = Adapters()
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="kvstore-lookup")
        self._down_until = 0.0
        self._warn = Warn("look-ups", options.retry_s)
        self._sliding = any(group.window for group in spec.groups)
        # Tails that engines with smaller blocks have left are of use too, up to a whole block of this one. Windows
        # must end where a chunk does.
        self._grid = block if self._sliding or block % TAILS else TAILS
        self.waits = 0
        self._pool.submit(self._greet)

    @property
    def down(self) -> bool:
        """Whether the store is being left alone after a failure."""
        return time.monotonic() < self._down_until

    def ask(self, ids: list[int], origin: Origin, found: Callable[[Hit], None] | None = None) -> Future[Answer]:
        """Start a look-up for token ids; `found` is told of a hit, in a thread of its own."""
        if self.down:
            done: Future[Answer] = Future()
            done.set_result(Answer())
            return done
        return self._pool.submit(self._look, ids, origin, found)

    def poll(self, asked: Future[Answer], since: float) -> Answer | None:
        """The answer, or None to ask again. An answer that takes longer than `lookup_timeout_s` is a miss."""
        if not asked.done():
            self.waits += 1
            try:
                return asked.result(self._options.lookup_wait_ms / 1e3)
            except NotYet:
                if time.monotonic() - since < self._options.lookup_timeout_s:
                    return None
            asked.add_done_callback(self.forget)
            self.lost(f"no answer within {self._options.lookup_timeout_s} s")
            return Answer()
        return asked.result()

    def lost(self, reason: str) -> None:
        """Leave the store alone for a while."""
        self._down_until = time.monotonic() + self._options.retry_s
        self._warn(f"the store is not asked for {self._options.retry_s} s, prompts are computed: {reason}")

    def release(self, hit: Hit | None) -> None:
        """End a lease, in the background."""
        if hit is not None and hit.lease:
            self._pool.submit(_release, hit)

    def close(self) -> None:
        """Stop. Answers that are still awaited come or fail first, within the client's time limit."""
        self._pool.shutdown(wait=True, cancel_futures=self.down)

    def _greet(self) -> None:
        """Find the way to the server before the first request waits for it."""
        try:
            self._client.describe()
        except KVStoreError as error:
            self.lost(str(error))

    def forget(self, asked: Future[Answer]) -> None:
        """Nobody waits for this any more: give its lease back (this runs in the look-up's thread)."""
        if not asked.cancelled() and asked.exception() is None:
            _release(asked.result().hit)

    def later(self, call: Callable[[], None]) -> None:
        """Run a call to the store beside the look-ups, unless they are being ended."""
        with suppress(RuntimeError):  # they are
            self._pool.submit(call)

    def _look(self, ids: list[int], origin: Origin, found: Callable[[Hit], None] | None) -> Answer:
        try:
            extras = self._adapters.extras(origin)
        except (InvalidArgument, OSError) as error:
            self._warn(f"a request is neither loaded nor saved: {error}")
            return Answer()
        # Of a prompt that is there as a whole vLLM computes the last token again. A window would lack what that needs
        # at its other end, as does one that is cut short at this end.
        limit = (len(ids) - self._sliding) // self._block * self._block
        reach = limit if self._sliding else len(ids) // self._grid * self._grid
        chain = Chain.of(ids[:reach], self._spec.chunk_tokens, extras)
        if limit <= 0:
            return Answer(chain=chain, extras=extras)
        try:
            hit, exact = self._longest(chain, limit, len(ids))
        except Exception as error:  # noqa: BLE001 - the scheduler takes the answer, and would end with it
            self.lost(str(error) if isinstance(error, KVStoreError) else f"{type(error).__name__}: {error}")
            return Answer()
        if found is not None and hit.cold:
            self.later(partial(found, hit))
        usable = min(hit.tokens, limit) // self._block * self._block
        stored = hit.tokens + hit.left_out
        return Answer(usable, stored, exact, hit.refs, chain, extras, hit, time.monotonic(), hit.plan)

    def _longest(self, chain: Chain, limit: int, tokens: int) -> tuple[Hit, int]:
        """The longest hit, and how far it is exact. A lossy one only where it is longer than what is exact."""
        lease = self._options.lease_s if self._leased else 0.0
        look = partial(self._client.lookup, self._spec, chain, lease_s=lease, block_tokens=self._grid)
        prompt = None if self._worth is None else self._worth.prompt(tokens)
        exact = look() if prompt is None else look(prompt=prompt)
        if self._options.fidelity == "exact" or exact.tokens >= limit:
            return exact, exact.tokens
        lossy = look(fidelity=Fidelity.LOSSY) if prompt is None else look(fidelity=Fidelity.LOSSY, prompt=prompt)
        longer = lossy.tokens > exact.tokens
        _release(exact if longer else lossy)
        return (lossy if longer else exact), exact.tokens


def _release(hit: Hit | None) -> None:
    if hit is not None:
        try:
            hit.release()
        except KVStoreError:
            return  # it ends by itself
