"""What requests say about their prompts' future, for the secondary tier: which rows a hint is about."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from kvstore.connectors.vllm._counts import Counts
from kvstore.connectors.vllm._hints import awaited_s
from kvstore.connectors.vllm._plan import HintJob
from kvstore.connectors.vllm._warn import Warn
from kvstore.errors import InvalidArgument
from kvstore.keys import ChunkRef


class TierHints:
    """Requests that say something, and their rows as far as the tier sees them: looked up, loaded or stored.

    vLLM tells a tier of no others: of a prompt whose head lies in vLLM's own memory a hint is about the rest.
    """

    def __init__(self, counts: Counts, retry_s: float) -> None:
        self._counts, self._warn = counts, Warn("tier hints", retry_s)
        self._said: dict[str, float] = {}
        self._rows: dict[str, dict[bytes, ChunkRef]] = {}

    def begin(self, context: Any) -> None:
        """A request has come: a `ReqContext`. What cannot be said is counted, logged once, and ignored."""
        try:
            seconds = awaited_s(context)
        except InvalidArgument as error:
            self._counts.add(hints_failed=1)
            self._warn(str(error))
            return
        if seconds is not None:
            self._said[context.req_id] = seconds
            self._rows[context.req_id] = {}

    def seen(self, request: str, refs: Iterable[ChunkRef]) -> None:
        """Rows of a request."""
        rows = self._rows.get(request)
        if rows is not None:
            rows.update((ref.key, ref) for ref in refs)

    def end(self, request: str) -> HintJob | None:
        """A request has ended: what the store is to be told, in prompt order."""
        seconds, rows = self._said.pop(request, None), self._rows.pop(request, {})
        if seconds is None or not rows:
            return None
        return HintJob(tuple(sorted(rows.values(), key=lambda ref: ref.position)), seconds)
