"""A trace in columns, as the native replay reads it; several as one, of tenants side by side or one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from kvstore.errors import InvalidArgument
from kvstore.sim.formats import Parsed, parse

Column: TypeAlias = npt.NDArray[Any]


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their time.

    By request [n]: `times_ms` int64, `input_tokens` uint32, `tenants` uint16, `linked` uint8 (1: a chunk counts only
    behind all before it), `starts` uint64 [n + 1]. By event: `chunk` uint32 and `position` int64, the tokens before it
    in its prompt; those of request i are `chunk[starts[i]:starts[i + 1]]`. By distinct chunk: `chunk_tokens` uint32.
    `block` is the tokens of a whole block, 0 where there is no such thing. `names` are the tenants'.
    """

    name: str
    names: tuple[str, ...]
    block: int
    times_ms: Column
    input_tokens: Column
    tenants: Column
    linked: Column
    starts: Column
    chunk: Column
    position: Column
    chunk_tokens: Column

    @property
    def requests(self) -> int:
        """How many there are."""
        return len(self.times_ms)

    @property
    def events(self) -> int:
        """Ids of requests: one is one use of one chunk."""
        return len(self.chunk)

    @property
    def chunks(self) -> int:
        """Distinct ones."""
        return len(self.chunk_tokens)

    @property
    def counts(self) -> Column:
        """Events of every request, int64 [n]."""
        return np.diff(self.starts.astype(np.int64)).astype(np.int64)

    def request_of(self) -> Column:
        """The number of the request that each event belongs to, int64."""
        return np.repeat(np.arange(self.requests), self.counts)


def read(path: Path, *, block: int = 0, most: int = 0) -> Trace:
    """A file as `kvstore.sim.formats.parse` reads it. `InvalidArgument` if it holds no ids."""
    trace = from_parsed(parse(path, block=block, most=most))
    if not trace.events:
        raise InvalidArgument(f"{path} holds no ids: there is nothing to replay")
    return trace


def from_parsed(parsed: Parsed) -> Trace:
    """Columns of what was read. Ids are numbered anew, from 0, in the order in which they come."""
    requests = parsed.requests
    counts = np.fromiter((len(each.ids) for each in requests), np.int64, len(requests))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint64)
    ids = np.fromiter(chain.from_iterable(each.ids for each in requests), np.int64, int(starts[-1]))
    tokens = np.fromiter(chain.from_iterable(each.tokens for each in requests), np.int64, len(ids))
    known, first, places = np.unique(ids, return_index=True, return_inverse=True)
    number = np.empty(len(known), np.uint32)
    number[np.argsort(first, kind="stable")] = np.arange(len(known), dtype=np.uint32)
    chunk = number[places]
    # An id that is once the last, partial block of a prompt and once a whole one is as long as the longest.
    chunk_tokens = np.zeros(len(known), np.uint32)
    np.maximum.at(chunk_tokens, chunk, tokens.astype(np.uint32))
    before = np.cumsum(tokens) - tokens
    return Trace(
        parsed.name, (parsed.name,), parsed.block,
        np.fromiter((each.at_ms for each in requests), np.int64, len(requests)),
        np.fromiter((each.input_tokens for each in requests), np.uint32, len(requests)),
        np.zeros(len(requests), np.uint16), np.full(len(requests), parsed.linked, np.uint8),
        starts, chunk, before - np.repeat(_at(before, starts), counts), chunk_tokens,
    )  # fmt: skip


def mix(traces: Sequence[Trace]) -> Trace:
    """All traces at once, each beginning at time 0 and each a tenant of its own."""
    return _joined(traces, [-int(trace.times_ms[0]) for trace in traces], range(len(traces)), "+")


def then(traces: Sequence[Trace]) -> Trace:
    """One trace after the other, of one tenant: a load that changes."""
    shifts, at = [], 0
    for trace in traces:
        shifts.append(at - int(trace.times_ms[0]))
        at = int(trace.times_ms[-1]) + shifts[-1]
    return _joined(traces, shifts, [0] * len(traces), ">")


def _joined(traces: Sequence[Trace], shifts: Sequence[int], tenants: Sequence[int], sign: str) -> Trace:
    name = sign.join(trace.name for trace in traces)
    times = np.concatenate([trace.times_ms + shift for trace, shift in zip(traces, shifts, strict=True)])
    order = np.argsort(times, kind="stable")
    counts = np.concatenate([trace.counts for trace in traces])
    chunk_shift = np.cumsum([0, *(trace.chunks for trace in traces)])
    event_shift = np.cumsum([0, *(trace.events for trace in traces)])
    begins = np.concatenate(
        [trace.starts[:-1].astype(np.int64) + by for trace, by in zip(traces, event_shift, strict=False)]
    )
    starts = np.concatenate([[0], np.cumsum(counts[order])])
    # Where each event of the joined trace stood among all events.
    events = np.arange(starts[-1]) + np.repeat(begins[order] - starts[:-1], counts[order])
    chunk = np.concatenate([trace.chunk + np.uint32(by) for trace, by in zip(traces, chunk_shift, strict=False)])
    tenant = np.concatenate([np.full(each.requests, n, np.uint16) for each, n in zip(traces, tenants, strict=True)])
    blocks = {trace.block for trace in traces}
    return Trace(
        name, _names(traces) if len(set(tenants)) > 1 else (name,),
        blocks.pop() if len(blocks) == 1 else 0, times[order],
        np.concatenate([trace.input_tokens for trace in traces])[order], tenant[order],
        np.concatenate([trace.linked for trace in traces])[order], starts.astype(np.uint64), chunk[events],
        np.concatenate([trace.position for trace in traces])[events],
        np.concatenate([trace.chunk_tokens for trace in traces]),
    )  # fmt: skip


def _names(traces: Sequence[Trace]) -> tuple[str, ...]:
    """Of every trace a name that no other has."""
    found: list[str] = []
    for trace in traces:
        same = sum(each.name == trace.name for each in traces[: len(found)])
        found.append(f"{trace.name} {same + 1}" if same else trace.name)
    return tuple(found)


def _at(values: Column, starts: Column) -> Column:
    """The value at the beginning of every request; anything for one without events."""
    if not len(values):
        return np.zeros(len(starts) - 1, np.int64)
    return values[np.minimum(starts[:-1].astype(np.int64), len(values) - 1)]
